"""The command line: `python -m mtlsearch.run searcher=mtlnas backbone=resnet50`. `--help` says what there is.

YAML names classes and their arguments, Hydra composes it, and here the objects are made and handed to
`mtlsearch.search`: no other file knows Hydra. Torch is imported once a command line has been understood.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

if TYPE_CHECKING:
    from mtlsearch.namespace import pl
    from mtlsearch.task import Task

Settings = dict[str, Any]

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if (path / "run.yaml").exists())
FOLDER = "MTLSEARCH_RUN"
"""The environment variable by which the first process tells those that it starts in which folder to work."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default the program's own, and return the exit code."""
    if arguments is not None:
        sys.argv[1:] = arguments
    return answer(_dispatch)


def console() -> None:
    """The console script, which lacks what `python -m` has: classes in the working folder can be named."""
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main())


def _dispatch() -> None:
    arguments = sys.argv[1:]
    resumed = [argument for argument in arguments if argument.startswith("resume=")]
    if FOLDER in os.environ and not is_first():
        dir = Path(os.environ[FOLDER])
        run(read(dir), dir)
    elif resumed:
        others = [argument for argument in arguments if argument not in resumed[:1]]
        if others:
            raise ValueError(
                f"{resumed[0]} goes on with that run's own settings, without {' '.join(others)}."
            )
        dir = Path(resumed[0].removeprefix("resume="))
        run(read(dir), dir)
    else:
        named = any(argument.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for argument in arguments)
        if not is_first():
            if not named:
                raise ValueError(
                    "Several processes were started: name one folder for all, hydra.run.dir=DIR."
                )
            sys.argv.append("hydra.output_subdir=null")
        Sweep.dir = None
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(job)()
        finally:
            if Sweep.dir is not None:
                show_sweep(Sweep.dir)


def is_first() -> bool:
    """Whether this process is the first, or the only one, of a run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


# One run


def job(config: DictConfig) -> float:
    """A run in the folder that Hydra made; what it returns is compared by a sweep."""
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return run(settings, Path(HydraConfig.get().runtime.output_dir))  # type: ignore[arg-type]


def run(settings: Settings, dir: Path) -> float:
    """Search, evaluate and report in a folder, going on with what is there; the value of the objective."""
    with claimed(dir, settings):
        import mtlsearch as ms
        from mtlsearch import report
        from mtlsearch.namespace import rank_zero_only

        quiet()
        datamodule, tasks, searcher = make(settings)
        check_objective(settings["objective"], tasks)
        finished = (dir / "metrics.json").exists()
        try:
            result = ms.search(searcher, datamodule, trainer=trainers(settings, dir), dir=dir)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        if rank_zero_only.rank == 0:
            page = dir / "report.html"
            if not page.exists():
                if finished:
                    datamodule.prepare_data()
                    datamodule.setup("fit")
                batch = next(iter(datamodule.val_dataloader()))
                report.write(dir, network=result.network, tasks=tasks, batch=batch)
            report.tables.show(result.metrics)
            print(f"Architecture: {near(dir / 'architecture.json')}\nReport: {near(page)}", flush=True)
        return objective(result.metrics, settings["objective"])


def make(settings: Settings) -> tuple[pl.LightningDataModule, list[Task], Any]:
    """The datamodule, its tasks and the searcher."""
    from mtlsearch.namespace import pl

    seed = settings["seed"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, not {seed!r}.")
    pl.seed_everything(seed, workers=True, verbose=False)
    datamodule = make_datamodule(settings)
    tasks = weighted(datamodule.tasks, settings["weights"])
    backbone = build(settings["backbone"])
    return datamodule, tasks, build(settings["searcher"], tasks, backbone, seed=seed)


def make_datamodule(settings: Settings) -> Any:
    tasks = settings["tasks"]
    arguments = {"head": settings["head"], "seed": settings["seed"]}
    if tasks is not None:
        arguments["tasks"] = [tasks] if isinstance(tasks, str) else tasks
    return build(settings["dataset"], **arguments)


def build(node: Settings, *args: Any, **kwargs: Any) -> Any:
    """Call what a node of the settings names. Arguments go round Hydra, which would rewrite them."""
    target = instantiate(node, _partial_=True, _convert_="all")
    try:
        return target(*args, **kwargs)
    except TypeError as error:
        if "argument" not in str(error) or error.__traceback__.tb_next.tb_next is not None:  # type: ignore[union-attr]
            raise
        raise ValueError(f"{node['_target_']}: {error}.") from error


def weighted(tasks: Sequence[Task], weights: Mapping[str, float]) -> list[Task]:
    """The tasks with the weights of their losses."""
    names = [task.name for task in tasks]
    if idle := [name for name, weight in weights.items() if weight != 1 and name not in names]:
        raise ValueError(f"weights: {', '.join(idle)} is none of the tasks {', '.join(names)}.")
    return [replace(task, weight=weights.get(task.name, task.weight)) for task in tasks]


def trainers(settings: Settings, dir: Path) -> Callable[[str], pl.Trainer]:
    """What makes the Trainer of a stage."""
    from mtlsearch.namespace import pl

    def trainer(stage: str) -> pl.Trainer:
        try:
            return pl.Trainer(
                **instantiate(settings["trainer"], _convert_="all"),
                max_epochs=epochs_of(stage, settings["epochs"]),
                logger=make_logger(settings["logger"], stage, dir),
                use_distributed_sampler=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                default_root_dir=dir,
            )
        except pl.utilities.exceptions.MisconfigurationException as error:
            raise ValueError(f"trainer: {error}") from error

    return trainer


def epochs_of(stage: str, epochs: int | Mapping[str, int]) -> int:
    if stage == "evaluate":
        return 1
    if isinstance(epochs, Mapping) and stage not in epochs:
        raise ValueError(f"epochs has no {stage!r}, only {', '.join(epochs)}: add +epochs.{stage}=N.")
    count = epochs[stage] if isinstance(epochs, Mapping) else epochs
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"epochs.{stage} must be a whole number from 1 up, not {count!r}.")
    return count


def make_logger(node: Settings, stage: str, dir: Path) -> Any:
    if stage == "evaluate" or "_target_" not in node:
        return False
    warnings.filterwarnings("ignore", "There is a wandb run already in progress")  # all stages log into one
    try:
        return build(node, save_dir=dir, prefix=stage)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{node['_target_']}: {error}. pip install 'mtlsearch[tensorboard]' has it."
        ) from error


def check_objective(name: str, tasks: Sequence[Task]) -> None:
    known = ["val/loss", *(f"val/{task.name}/{metric}" for task in tasks for metric in task.metrics)]
    if name not in known:
        raise ValueError(f"There is no objective {name!r}: did you mean {nearest(name, known)}?")


def objective(metrics: Mapping[str, Any], name: str) -> float:
    """The value of `val/loss` or `val/TASK/METRIC` in the content of a `metrics.json`."""
    value: Any = metrics
    for part in name.split("/"):
        value = value[part]
    return float(value)


@contextmanager
def claimed(dir: Path, settings: Settings) -> Iterator[None]:
    """Keep a folder, and `config.yaml` in it, to this run; what the environment was told is taken back after it."""
    if not is_first():
        yield
        return
    from filelock import FileLock, Timeout

    from mtlsearch import files

    environment = dict(os.environ)
    lock = FileLock(dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Another process is at work in {near(dir)}: wait for it, or name another folder."
        ) from None
    try:
        path = dir / "config.yaml"
        if not path.exists():
            files.write(path, OmegaConf.to_yaml(settings))
        elif changed := difference(read(dir), settings):
            raise ValueError(
                f"{near(dir)} holds a run with other settings: {changed}. Name another folder, or go on with "
                f"that run by resume={near(dir)}."
            )
        os.environ[FOLDER] = str(dir.resolve())
        yield
    finally:
        lock.release()
        os.environ.clear()
        os.environ.update(environment)


def read(dir: Path) -> Settings:
    """The settings of the run in a folder."""
    path = dir / "config.yaml"
    if (dir / "multirun.yaml").exists():
        raise ValueError(f"{dir} is a sweep: repeat its command with hydra.sweep.dir={dir} to go on with it.")
    if not path.exists():
        raise ValueError(
            f"{path} is not there: {dir} is not the folder of a run, or of one that never began."
        )
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]


def difference(old: Any, new: Any, path: str = "") -> str:
    """The first setting in which two differ, in words; empty where there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            if found := difference(old.get(key), new.get(key), f"{path}.{key}".lstrip(".")):
                return found
        return ""
    return "" if old == new else f"{path} is {old} there and {new} here"


def near(path: Path) -> str:
    """A path as it is typed: relative where it lies below the working folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def quiet() -> None:
    """Keep back what Lightning says about choices that are made here."""
    import logging

    for name in "lightning", "pytorch_lightning":
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)


def compose_dataset(arguments: Sequence[str]) -> tuple[Any, Path]:
    """The datamodule that a command line describes, for tools that look at data, and the folder it names."""
    raise NotImplementedError


# Sweeps


class Sweep(Callback):
    """Says which of its jobs a sweep is at, and what went wrong."""

    dir: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.dir = Path(config.hydra.sweep.dir)


def show_sweep(dir: Path) -> None:
    pass


# Errors


def answer(work: Callable[[], Any]) -> int:
    """Do the work and return an exit code, with one line for what the user can mend and for Ctrl-C."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        work()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def explain(error: BaseException) -> str:
    """An error of the command line in one line."""
    return " ".join(str(error).split())


def nearest(name: str, known: Sequence[str]) -> str:
    """The known names that are nearest to an unknown one."""
    return ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))


if __name__ == "__main__":
    from mtlsearch.run import main as imported_main  # not as __main__, where Hydra would not find Sweep

    sys.exit(imported_main())
