"""What a network has cost to train: the labelled images that its weights have seen, and the time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtlsearch.task import Target, Task

GROUPS = ("weights", "arch")
"""The parameter groups, each with an optimiser of its own, in this order."""
INIT = "init"
"""What the training of weights that a run was given is called among its stages."""
Images = dict[str, int]


class ImageCount:
    """Labelled images that the updates of a training have seen, by parameter group and task.

    An image counts once for every task that has a label of it, however many pixels or boxes that is. Counts are
    those of all processes, up to the last finished epoch.

    Args:
        tasks: whose images count.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.targets = {task.name: task.target for task in tasks}
        self.by_group: dict[str, Images] = {group: {} for group in GROUPS}
        self._epoch = torch.zeros(len(GROUPS), len(tasks), dtype=torch.long)

    def start(self, device: torch.device) -> None:
        """Begin an epoch."""
        self._epoch = torch.zeros(len(GROUPS), len(self.targets), dtype=torch.long, device=device)

    def see(self, group: str, parts: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> None:
        """Count the images of an update's batches that are labelled for the tasks whose losses it takes."""
        row = self._epoch[GROUPS.index(group)]
        for part in parts:
            for i, (name, target) in enumerate(self.targets.items()):
                if name in tasks and name in part:
                    row[i] += labelled_images(target, part[name])

    def finish(self) -> None:
        """End an epoch: add up what the processes have seen."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._epoch)
        for group, counts in zip(GROUPS, self._epoch.tolist()):
            seen = self.by_group[group]
            self.by_group[group] = {
                name: seen.get(name, 0) + count for name, count in zip(self.targets, counts)
            }


def labelled_images(target: Target, values: Any) -> Tensor | int:
    """How many images of a batch have any label; all, where a kind of label does not tell."""
    if type(target).labelled is Target.labelled:
        return len(values)
    return torch.as_tensor(target.labelled(values)).reshape(len(values), -1).any(dim=1).sum()


def budget(
    images: Mapping[str, Images],
    arch_images: Mapping[str, Images],
    carried: Sequence[str],
    tasks: Sequence[str],
) -> dict[str, int]:
    """The labelled images that the weights of the finished network have seen, and beside it all others.

    A stage on other tasks, as an auxiliary classification, counts for every task of the network.

    Args:
        images: {stage: {task: labelled images seen by updates of weights}}.
        arch_images: likewise by updates of arch parameters.
        carried: the stages whose weights the network has.
        tasks: of the network.

    Returns:
        {"images", "search_images"}. "images" is the largest over tasks of the sum
        over the carried stages; "search_images" the same of all other stages and of the arch parameters'.
    """
    others = [counts for stage, counts in images.items() if stage not in carried]
    return {
        "images": _largest([images[stage] for stage in carried if stage in images], tasks),
        "search_images": _largest([*others, *arch_images.values()], tasks),
    }


def _largest(stages: Sequence[Images], tasks: Sequence[str]) -> int:
    """The largest over tasks of the sum over stages."""
    own = max((sum(stage.get(task, 0) for stage in stages) for task in tasks), default=0)
    return own + sum(max(stage.values(), default=0) for stage in stages if not set(stage) & set(tasks))


def of_run(dir: Path) -> tuple[Images, float]:
    """Images by task and seconds that the weights of a finished run have cost; nothing where it does not say."""
    path = dir / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    images: Images = {}
    for stage in metrics.get("carried", ()):
        for task, count in metrics["images"].get(stage, {}).items():
            images[task] = images.get(task, 0) + count
    return images, training_seconds(metrics)[0]


def training_seconds(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of the stages of a run whose weights its network has, and of the others; see `budget`.

    Args:
        metrics: the content of a `metrics.json`.
    """
    seconds = metrics.get("seconds") or {}
    carried = sum(value for stage, value in seconds.items() if stage in metrics.get("carried", seconds))
    return carried, sum(seconds.values()) - carried
