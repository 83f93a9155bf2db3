"""Depth: the distance along the camera's axis, for every pixel."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mtlsearch.nn import heads
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task
from mtlsearch.tasks.maps import DenseMap, l1, shade
from mtlsearch.tasks.metrics import MeanError, MeanScore


def depth(name: str = "depth", *, head: HeadChoice = "light", weight: float = 1.0) -> Task:
    """Depth in metres, by L1.

    Metrics over all labelled pixels: `absolute_error` in metres, `relative_error` as a fraction of the true
    depth, and the fractions `delta_1`, `delta_2`, `delta_3` of pixels whose ratio to the true depth is below
    1.25, 1.25² and 1.25³ either way.

    Args:
        head: one for every pixel, as `mtlsearch.nn.heads` describes.
    """
    return Task(
        name=name,
        target=Depth(),
        head=heads.dense(head, 1),
        loss=l1,
        metrics={
            "absolute_error": partial(MeanError, l1),
            "relative_error": partial(MeanError, relative_error),
            "delta_1": partial(MeanScore, partial(within_ratio, ratio=1.25)),
            "delta_2": partial(MeanScore, partial(within_ratio, ratio=1.25**2)),
            "delta_3": partial(MeanScore, partial(within_ratio, ratio=1.25**3)),
        },
        weight=weight,
        spec=None if callable(head) else {"kind": "depth", "arguments": {"head": head, "weight": weight}},
    )


class Depth(DenseMap):
    """Metres: a label is (1, H, W) float32, a target (B, 1, H, W), NaN where unlabelled."""

    def __init__(self) -> None:
        super().__init__(channels=1)

    def warp(self, label: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """Divide by the zoom: what looks twice as large to the same camera is half as far away."""
        return (label / math.sqrt(abs(np.linalg.det(linear)))).astype(np.float32)

    def check(self, label: np.ndarray) -> None:
        super().check(label)
        if (label <= 0).any():
            raise ValueError(
                f"Depth is positive, or NaN where unlabelled: found {np.nanmin(label):.4g}. "
                "Where 0 marks a hole, replace it by NaN."
            )

    def picture(self, label: np.ndarray) -> np.ndarray:
        """Near in yellow, far in dark blue, from the 2nd to the 98th percentile; unlabelled pixels black."""
        return shade(label[0], "viridis_r", cut=2.0)


def relative_error(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of |prediction - target| / target over the labelled pixels, and their number."""
    labelled = ~target.isnan()
    true = torch.where(labelled, target, 1.0)
    return torch.where(labelled, (prediction.float() - true).abs() / true, 0.0).sum(), labelled.sum()


def within_ratio(prediction: Tensor, target: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """How many labelled pixels are less than `ratio` times too deep or too shallow, and their number."""
    found = prediction.float()
    # NaN compares false, and so does a prediction that is not positive.
    return ((found < ratio * target) & (target < ratio * found)).sum(), (~target.isnan()).sum()
