"""Task: what is predicted, from which labels, by which head, under which loss, judged by which metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

Loss = Callable[[Any, Any], tuple[Tensor, Tensor]]
Head = Callable[[Sequence[int], Sequence[int]], nn.Module]


class Target:
    """A kind of label: its geometry, its validity and its picture.

    A label of one image is an array as the dataset reads it (boxes: a dict of arrays), a target the batch of
    them as tensors. Each built-in task file holds its own kind; a task of yours may take one of those or
    override what differs.
    """

    dense = True
    """Whether a label has a value for every pixel, so that it is cropped, resized and flipped with the image."""

    def warp(self, label: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """The label's *values* after its pixels were moved by an affine map of the image plane.

        Args:
            label: the label with its pixels already moved (nearest neighbour).
            linear: (2, 2), the map's linear part in pixels: x' = linear @ x. A horizontal flip is
                [[-1, 0], [0, 1]], a zoom by s is s times the identity.
        """
        return label

    def move(self, label: Any, matrix: np.ndarray, size: tuple[int, int]) -> Any:
        """A label that is not dense after the image's pixels were moved by an affine map.

        Args:
            label: of the image as it was.
            matrix: (2, 3), the map in pixels from the image's left upper corner: x' = matrix @ (x, y, 1).
            size: (H, W) of the image as it is now.
        """
        return label

    def fit(self, label: Any, size: tuple[int, int]) -> Any:
        """A label as one of an image of `size` (H, W); a ValueError where its places lie outside."""
        return label

    def unlabelled(self, size: tuple[int, int]) -> Any:
        """The label of an image of `size` (H, W) that nobody labelled; also what padding gets."""
        raise NotImplementedError

    def collate(self, labels: Sequence[Any]) -> Any:
        """The target of a batch, of its images' labels."""
        return torch.from_numpy(np.stack(labels))

    def labelled(self, target: Any) -> Tensor:
        """Which entries of a target are labelled: a boolean tensor that has the batch as its first axis."""
        raise NotImplementedError

    def check(self, label: Any) -> None:
        """Raise a ValueError that says what is wrong with a label: its shape, its type, a value out of range."""

    def decode(self, prediction: Tensor) -> Any:
        """A prediction (B, ...) in the form of a target: class ids from logits, unit vectors, and so on."""
        return prediction

    def resize(self, prediction: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """A prediction (B, ...) for images of size `old` (H, W) as one for the same images in size `new`."""
        if not self.dense:
            return prediction
        return F.interpolate(prediction, new, mode="bilinear", align_corners=False)

    def picture(self, label: np.ndarray) -> np.ndarray:
        """A dense label (one image's, without the batch axis) as an RGB image (H, W, 3) uint8."""
        raise NotImplementedError


@dataclass(frozen=True)
class Task:
    """One thing to predict. `mtlsearch.tasks` has functions that make the usual ones.

    Args:
        name: the key of its targets in a batch and of its predictions; unique among the tasks of a network.
        target: the kind of label.
        head: `head(channels, strides)` builds a module for a feature pyramid with these channels and strides,
            called as `module(features, size)`: features a list of (B, C, H, W), finest first, and size the
            image's (H, W).
        loss: `loss(prediction, target)` gives the *sum* of the loss over the labelled entries and their
            *number*, two scalars. The mean is taken over the entries of all processes. With no labelled entry
            the sum must be a zero that still hangs on the prediction.
        metrics: by name, functions without arguments that make a torchmetrics metric, updated with
            (prediction, target), whose `higher_is_better` is set. The first is the one that a table shows
            where there is room for one. One whose `breaks_down` is True, such as the precision of one class,
            tells more of another that is there: it is shown, and delta_m leaves it out.
        weight: the factor λ of its loss in the total.
        spec: how a built-in task is written into `architecture.json`; leave it out for tasks of your own.
    """

    name: str
    target: Target
    head: Head
    loss: Loss
    metrics: Mapping[str, Callable[[], Metric]]
    weight: float = 1.0
    spec: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == "image" or hasattr(nn.ModuleDict, self.name):
            raise ValueError(
                f"{self.name!r} cannot name a task: take a Python identifier other than 'image' and the names "
                "of a dict's methods."
            )
        if not self.weight >= 0:
            raise ValueError(f"Task {self.name!r}: weight must be at least 0, not {self.weight}.")


def check_tasks(tasks: Sequence[Task]) -> list[Task]:
    """The tasks as a list; a ValueError where there is none or two share a name."""
    tasks = list(tasks)
    names = [task.name for task in tasks]
    if not tasks:
        raise ValueError("No task is given: pass at least one.")
    if len(set(names)) < len(names):
        raise ValueError(f"Task names must differ from each other: {names}. Rename one.")
    return tasks


def metric_directions(tasks: Sequence[Task]) -> dict[str, dict[str, bool]]:
    """{task: {metric: whether higher is better}}."""
    directions: dict[str, dict[str, bool]] = {}
    for task in tasks:
        directions[task.name] = {}
        for name, make in task.metrics.items():
            higher = make().higher_is_better
            if higher is None:
                raise ValueError(
                    f"Metric {name!r} of task {task.name!r} does not say its direction: "
                    "set `higher_is_better` to True or False on it."
                )
            directions[task.name][name] = bool(higher)
    return directions


def metric_breakdowns(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """{task: those of its metrics that only tell more of another, such as the precision of one class}."""
    return {
        task.name: [name for name, make in task.metrics.items() if getattr(make(), "breaks_down", False)]
        for task in tasks
    }


def has_labels(task: Task, target: Any) -> bool:
    """Whether a target holds any labelled entry."""
    return bool(torch.as_tensor(task.target.labelled(target)).any())
