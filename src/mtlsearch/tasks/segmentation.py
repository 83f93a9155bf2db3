"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from mtlsearch.nn import heads
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Target, Task
from mtlsearch.tasks.metrics import MeanScore

UNLABELLED = 255


def segmentation(
    name: str = "semantic",
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    head: HeadChoice = "light",
    weight: float = 1.0,
) -> Task:
    """A class for every pixel, by cross entropy.

    Metrics, as fractions: `miou`, the mean intersection over union from the data set's one confusion matrix,
    without the classes that neither labels nor predictions hold; `pixel_accuracy`.

    Args:
        num_classes: 2 to 255.
        class_names: one for each class; their numbers by default.
        head: one for every pixel, as `mtlsearch.nn.heads` describes.
    """
    target = ClassMap(num_classes, class_names)
    arguments = {
        "num_classes": num_classes,
        "class_names": target.class_names,
        "head": head,
        "weight": weight,
    }
    return Task(
        name=name,
        target=target,
        head=heads.dense(head, num_classes),
        loss=cross_entropy,
        metrics={
            "miou": partial(
                MulticlassJaccardIndex, num_classes, ignore_index=UNLABELLED, validate_args=False
            ),
            "pixel_accuracy": partial(MeanScore, correct),
        },
        weight=weight,
        spec=None if callable(head) else {"kind": "segmentation", "arguments": arguments},
    )


class ClassMap(Target):
    """Class ids: a label is (H, W) int64, a target (B, H, W), 255 where unlabelled."""

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(num_classes, int) or not 2 <= num_classes <= UNLABELLED:
            raise ValueError(
                f"num_classes must be an integer from 2 to 255 (id 255 is unlabelled), not {num_classes!r}."
            )
        self.num_classes = num_classes
        self.class_names = name_classes(num_classes, class_names)

    def unlabelled(self, size: tuple[int, int]) -> np.ndarray:
        return np.full(size, UNLABELLED, dtype=np.int64)

    def labelled(self, target: Tensor) -> Tensor:
        return target != UNLABELLED

    def check(self, label: np.ndarray) -> None:
        if label.ndim != 2 or label.dtype != np.int64:
            raise ValueError(f"A class map is (H, W) int64: found {label.dtype} of shape {label.shape}.")
        wrong = np.unique(label[((label < 0) | (label >= self.num_classes)) & (label != UNLABELLED)])
        if wrong.size:
            raise ValueError(
                f"Class ids go from 0 to {self.num_classes - 1}, and 255 is unlabelled: found "
                f"{wrong[:5].tolist()}. Raise num_classes, or map these ids to others or to 255."
            )

    def decode(self, prediction: Tensor) -> Tensor:
        return prediction.argmax(dim=1)

    def picture(self, label: np.ndarray) -> np.ndarray:
        return np.asarray(PALETTE[label])


def name_classes(num_classes: int, class_names: Sequence[str] | None) -> list[str]:
    """The names of all classes, their numbers where none are given."""
    if class_names is None:
        return [str(i) for i in range(num_classes)]
    if isinstance(class_names, str) or len(class_names) != num_classes:
        raise ValueError(f"{num_classes} classes need as many class_names: found {class_names!r}.")
    return list(class_names)


def cross_entropy(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits (B, classes, H, W): its sum and the number of labelled pixels."""
    losses = F.cross_entropy(prediction.float(), target, ignore_index=UNLABELLED, reduction="none")
    return losses.sum(), (target != UNLABELLED).sum()


def correct(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many labelled pixels are classified rightly, and their number."""
    return (prediction.argmax(dim=1) == target).sum(), (target != UNLABELLED).sum()


def _palette() -> np.ndarray:
    """Colours (256, 3) uint8: first Okabe and Ito's, which all eyes tell apart, then each the farthest from those
    before it, from white and from black, which is the unlabelled 255."""
    first = ["56B4E9", "E69F00", "009E73", "D55E00", "0072B2", "CC79A7", "F0E442"]
    colours = [np.array(list(bytes.fromhex(colour))) for colour in first]
    steps = np.arange(0, 253, 42)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)

    def away(colour: np.ndarray) -> np.ndarray:
        # The eye tells greens better than blues, and blues better than reds ("redmean" weights).
        return np.asarray(((grid - colour) ** 2) @ [2, 4, 3])

    black, white = np.array([0, 0, 0]), np.array([255, 255, 255])
    distance = np.min([away(colour) for colour in (black, white, *colours)], axis=0)
    while len(colours) < UNLABELLED:
        colours.append(grid[distance.argmax()])
        distance = np.minimum(distance, away(colours[-1]))
    return np.array([*colours, black], dtype=np.uint8)


PALETTE = _palette()
