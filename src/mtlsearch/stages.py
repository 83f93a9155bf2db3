"""The Trainers of the command line: one a stage."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlsearch.namespace import pl

PACKAGE = Path(__file__).resolve().parent
Epochs = int | Mapping[str, int | None]


def make_trainer(stage: str, epochs: Epochs, dir: Path, logger: Any = False, **arguments: Any) -> pl.Trainer:
    """The Trainer of a stage.

    Args:
        stage: its name; "evaluate" trains nothing.
        epochs: of every stage, or by stage; "retrain" stands for "retrain_1", "retrain_2" and so on, "branch" for
            "branch_TASK". None stands for a stage that there is not.
        dir: the run's folder.
        logger: Lightning's.
        arguments: further ones of `Trainer`.

    Raises:
        ValueError: no epochs for this stage, or arguments that Lightning refuses.
    """
    import pytorch_lightning as pl
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    by_stage = epochs if isinstance(epochs, Mapping) else {stage: epochs}
    name = stage if stage in by_stage else stage.partition("_")[0]
    count = 1 if stage == "evaluate" else by_stage.get(name)
    if count is None:
        raise ValueError(f"epochs has no {name!r}: add ++epochs.{name}=N.")
    try:
        return pl.Trainer(
            **arguments,
            max_epochs=count,
            logger=logger,
            use_distributed_sampler=False,  # our samplers know the processes
            enable_checkpointing=False,  # `search` sees to these three
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=dir,
            # A job that SLURM requeues goes on by its own command, not by Lightning's way of a second one.
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
        )
    except (MisconfigurationException, TypeError) as error:
        raise ValueError(f"trainer: {error}") from error


def check_epochs(epochs: Any) -> None:
    """Raise a ValueError where a number of epochs is none."""
    for count in epochs.values() if isinstance(epochs, Mapping) else [epochs]:
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"epochs must be whole numbers from 1 up, not {count!r}.")


def quiet() -> None:
    """Keep back Lightning's remarks on what is chosen here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_is_heard)
    warnings.filterwarnings("ignore", "There is a wandb run already in progress")  # all stages log into one
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", ".*sync_dist=True")  # what is logged has been reduced
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def _is_heard(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or Path(record.pathname).is_relative_to(PACKAGE)
