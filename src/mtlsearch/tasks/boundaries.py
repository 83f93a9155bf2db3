"""Boundaries, such as those between classes: whether each pixel lies on one."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import BinaryAveragePrecision

from mtlsearch.nn import heads
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task
from mtlsearch.tasks.maps import DenseMap, over_labelled

THRESHOLDS = 100


def boundaries(name: str = "boundaries", *, head: HeadChoice = "light", weight: float = 1.0) -> Task:
    """Whether a pixel lies on a boundary, by binary cross entropy of its logit.

    Metric: `average_precision` of the probabilities over all labelled pixels, at a hundred thresholds. For labels
    that are yes or no an absolute error, as `edges` has it, would be least where nothing is found at all.

    Args:
        head: one for every pixel, as `mtlsearch.nn.heads` describes.
    """
    return Task(
        name=name,
        target=Boundaries(),
        head=heads.dense(head, 1),
        loss=binary_cross_entropy,
        metrics={"average_precision": partial(AveragePrecision, thresholds=THRESHOLDS, validate_args=False)},
        weight=weight,
        spec=None
        if callable(head)
        else {"kind": "boundaries", "arguments": {"head": head, "weight": weight}},
    )


class Boundaries(DenseMap):
    """1 on a boundary and 0 elsewhere: a label is (1, H, W) float32, a target (B, 1, H, W), NaN where unlabelled.

    A prediction decodes to probabilities.
    """

    def __init__(self) -> None:
        super().__init__(channels=1)

    def check(self, label: np.ndarray) -> None:
        super().check(label)
        wrong = label[~np.isnan(label) & (label != 0) & (label != 1)]
        if wrong.size:
            raise ValueError(
                f"A boundary is 1, all else 0, and NaN is unlabelled: found {wrong[0]:.4g}. "
                "Strengths of edges are for tasks.edges."
            )

    def decode(self, prediction: Tensor) -> Tensor:
        return prediction.sigmoid()

    def picture(self, label: np.ndarray) -> np.ndarray:
        """Probabilities from 0 in black to 1 in white."""
        level = np.rint(255 * np.nan_to_num(label[0], nan=0.0)).astype(np.uint8)
        return np.repeat(level[..., None], 3, axis=2)


class AveragePrecision(BinaryAveragePrecision):
    """torchmetrics' average precision, of logits and of targets that may hold NaN; NaN where none is a boundary."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        labelled = ~target.isnan()
        super().update(preds[labelled].float().sigmoid(), target[labelled].long())

    def compute(self) -> Tensor:  # type: ignore[override]
        boundary = self.confmat[0, 1].sum()  # at any threshold: those found and those missed
        return torch.where(boundary > 0, super().compute(), torch.nan)


def binary_cross_entropy(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of logits (B, 1, H, W): its sum over the labelled pixels, and their number."""
    error = partial(F.binary_cross_entropy_with_logits, reduction="none")
    return over_labelled(error, prediction, target)
