"""Classification: a class for the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlsearch.nn import heads
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Target, Task
from mtlsearch.tasks.metrics import MeanScore
from mtlsearch.tasks.segmentation import name_classes

UNLABELLED = -100


def classification(
    name: str,
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    soft: bool = False,
    head: HeadChoice = "pool",
    weight: float = 1.0,
) -> Task:
    """A class for the whole image: by cross entropy on labels, or by l2 to soft targets.

    Metrics, as fractions: `top1`, and with more than five classes `top5`, which says nothing with fewer. The
    true class of a soft target is its most probable one.

    Args:
        num_classes: at least 2.
        class_names: one for each class; their numbers by default.
        soft: labels are class probabilities (classes,), as in MTL-NAS section 5.3. Of the l2 distance
            named there the square is taken: |softmax(prediction) - target|², summed over the classes.
        head: one for the whole image, as `mtlsearch.nn.heads` describes.
    """
    top = {f"top{k}": partial(MeanScore, partial(top_k, k=k)) for k in (1, 5) if k == 1 or k < num_classes}
    target = ImageLabel(num_classes, class_names, soft)
    arguments = {
        "num_classes": num_classes,
        "class_names": target.class_names,
        "soft": soft,
        "head": head,
        "weight": weight,
    }
    return Task(
        name=name,
        target=target,
        head=heads.image(head, num_classes),
        loss=squared_l2 if soft else cross_entropy,
        metrics=top,
        weight=weight,
        spec=None if callable(head) else {"kind": "classification", "arguments": arguments},
    )


class ImageLabel(Target):
    """A class id: a label is an int64 array of shape (), a target (B,), -100 where unlabelled.

    If `soft`, probabilities: a label is (classes,) float32, a target (B, classes), NaN where unlabelled.
    """

    dense = False

    def __init__(
        self, num_classes: int, class_names: Sequence[str] | None = None, soft: bool = False
    ) -> None:
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"num_classes must be an integer of at least 2, not {num_classes!r}.")
        self.num_classes = num_classes
        self.class_names = name_classes(num_classes, class_names)
        self.soft = soft

    def unlabelled(self, size: tuple[int, int]) -> np.ndarray:
        if self.soft:
            return np.full(self.num_classes, np.nan, dtype=np.float32)
        return np.array(UNLABELLED, dtype=np.int64)

    def labelled(self, target: Tensor) -> Tensor:
        return true_class(target) != UNLABELLED

    def check(self, label: np.ndarray) -> None:
        shape, dtype = ((self.num_classes,), np.float32) if self.soft else ((), np.int64)
        if label.shape != shape or label.dtype != dtype:
            raise ValueError(
                f"The label is {dtype.__name__} of shape {shape}: found {label.dtype} of shape {label.shape}."
            )
        if not self.soft and not 0 <= label < self.num_classes and label != UNLABELLED:
            raise ValueError(
                f"Class ids go from 0 to {self.num_classes - 1}, -100 is unlabelled: found {int(label)}."
            )
        if (
            self.soft
            and not np.isnan(label).all()
            and not ((label >= 0).all() and abs(label.sum() - 1) < 0.01)
        ):
            raise ValueError(
                "Class probabilities are at least 0 and sum to 1, or all are NaN where unlabelled: "
                f"found a sum of {label.sum():.4g} and a minimum of {label.min():.4g}."
            )

    def decode(self, prediction: Tensor) -> Tensor:
        return prediction.softmax(dim=1) if self.soft else prediction.argmax(dim=1)


def true_class(target: Tensor) -> Tensor:
    """Class ids (B,), -100 where unlabelled, of ids or of class probabilities (B, classes)."""
    if not target.is_floating_point():
        return target
    return torch.where(target.isnan().any(dim=1), UNLABELLED, target.argmax(dim=1))


def cross_entropy(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of logits (B, classes) and ids (B,): its sum and the number of labelled images."""
    losses = F.cross_entropy(prediction.float(), target, ignore_index=UNLABELLED, reduction="none")
    return losses.sum(), (target != UNLABELLED).sum()


def squared_l2(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """|softmax(logits) - probabilities|² of (B, classes) each: its sum and the number of labelled images."""
    labelled = ~target.isnan().any(dim=1)
    true = torch.where(labelled[:, None], target, 0.0)
    distances = (prediction.float().softmax(dim=1) - true).square().sum(dim=1)
    return torch.where(labelled, distances, 0.0).sum(), labelled.sum()


def top_k(prediction: Tensor, target: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many labelled images have their true class among the k best, and their number."""
    true = true_class(target)
    hits = (prediction.topk(k, dim=1).indices == true[:, None]).any(dim=1)
    return hits.sum(), (true != UNLABELLED).sum()
