"""What a training refuses: batches in another format, losses and weights that are no longer numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.task import Task


def checked_batch(
    batch: Any, tasks: Sequence[Task], unpack: Callable[[Any], Mapping[str, Any]] | None
) -> Mapping[str, Any]:
    """A batch in our format, with a picture and at least one task's target in it or in each of its parts."""
    if isinstance(batch, Mapping) and batch.keys() == {"parts"}:
        return {"parts": [checked_batch(part, tasks, unpack) for part in batch["parts"]]}
    batch = unpack(batch) if unpack is not None else batch
    if not isinstance(batch, Mapping) or "image" not in batch:
        found = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"A batch must be a dict with an 'image' and the tasks' targets, not {found}: pass `unpack=`."
        )
    if not any(task.name in batch for task in tasks):
        raise ValueError(
            f"No task has a target in the batch: tasks {[task.name for task in tasks]}, keys "
            f"{list(batch)}. Name the target after the task."
        )
    return batch


def check_finite(values: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError that names step and term where a value is not a finite number."""
    if torch.stack(list(values.values())).isfinite().all():
        return
    bad = {name: value.item() for name, value in values.items() if not value.isfinite()}
    described = " and ".join(f"{name!r} is {value}" for name, value in bad.items())
    raise ValueError(
        f"The loss of {described} at {where}. The step was not made and the last checkpoint is intact: look at "
        "the labels and images of that task, or take a lower learning rate, or clip gradients."
    )


def check_epoch(labels: Mapping[str, Tensor], network: nn.Module, epoch: int) -> None:
    """Raise a ValueError where a task had no label in an epoch, or the epoch has broken a weight."""
    for name, count in labels.items():
        if not count:
            raise ValueError(
                f"Task {name!r} had no label in the whole of epoch {epoch}: leave it out of `tasks`, name its "
                "targets after it, or take more batches an epoch."
            )
    broken = [name for name, parameter in network.named_parameters() if not parameter.isfinite().all()]
    if broken:  # a loss may be finite and its gradient not
        raise ValueError(
            f"{broken[0]!r} is no longer finite at the end of epoch {epoch}. The last checkpoint is intact: take "
            "a lower learning rate, or clip gradients."
        )
