"""Maps of real values, such as edges and keypoint heat maps, compared by their absolute error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mtlsearch.nn import heads
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Target, Task
from mtlsearch.tasks.metrics import MeanError


def edges(
    name: str = "edges",
    *,
    channels: int = 1,
    head: HeadChoice = "light",
    weight: float = 1.0,
) -> Task:
    """Edge strengths, `channels` kinds of them, by L1. Metric: `absolute_error`.

    Args:
        head: one for every pixel, as `mtlsearch.nn.heads` describes.
    """
    return _map("edges", name, channels, head, weight)


def keypoints(
    name: str = "keypoints",
    *,
    channels: int = 1,
    head: HeadChoice = "light",
    weight: float = 1.0,
) -> Task:
    """A heat map of keypoints, `channels` kinds of them, by L1. Metric: `absolute_error`.

    Args:
        head: one for every pixel, as `mtlsearch.nn.heads` describes.
    """
    return _map("keypoints", name, channels, head, weight)


def _map(kind: str, name: str, channels: int, head: HeadChoice, weight: float) -> Task:
    arguments = {"channels": channels, "head": head, "weight": weight}
    return Task(
        name=name,
        target=DenseMap(channels),
        head=heads.dense(head, channels),
        loss=l1,
        metrics={"absolute_error": partial(MeanError, l1)},
        weight=weight,
        spec=None if callable(head) else {"kind": kind, "arguments": arguments},
    )


class DenseMap(Target):
    """Real values: a label is (C, H, W) float32, a target (B, C, H, W), NaN where unlabelled."""

    def __init__(self, channels: int = 1) -> None:
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels must be a positive integer, not {channels!r}.")
        self.channels = channels

    def unlabelled(self, size: tuple[int, int]) -> np.ndarray:
        return np.full((self.channels, *size), np.nan, dtype=np.float32)

    def labelled(self, target: Tensor) -> Tensor:
        return ~target.isnan()

    def check(self, label: np.ndarray) -> None:
        if label.ndim != 3 or label.shape[0] != self.channels or label.dtype != np.float32:
            raise ValueError(
                f"The label is ({self.channels}, H, W) float32: found {label.dtype} of shape {label.shape}."
            )
        if np.isinf(label).any():
            raise ValueError("Values must be finite, or NaN where unlabelled: found infinite ones.")

    def picture(self, label: np.ndarray) -> np.ndarray:
        """The largest of the channels, from the map's lowest value in black to its highest in white."""
        return shade(np.fmax.reduce(label, axis=0), "gray", cut=0.0)


def shade(values: np.ndarray, colours: str, cut: float) -> np.ndarray:
    """Values (H, W) in a matplotlib colour map, (H, W, 3) uint8, NaN in black.

    The map spans all values but the lowest and highest `cut` percent.
    """
    from matplotlib import colormaps

    known = ~np.isnan(values)
    if not known.any():
        return np.zeros((*values.shape, 3), dtype=np.uint8)
    low, high = np.percentile(values[known], [cut, 100 - cut])
    level = (np.where(known, values, low) - low) / max(high - low, 1e-6)
    picture = np.asarray(colormaps[colours](level, bytes=True))[..., :3]
    return np.where(known[..., None], picture, 0).astype(np.uint8)


def l1(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the absolute errors over the labelled values, and their number; both are (B, C, H, W)."""
    return over_labelled(lambda found, wanted: (found - wanted).abs(), prediction, target)


def over_labelled(
    error: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of an error of each value over those that are not NaN in the target, and their number."""
    if prediction.shape != target.shape:
        raise ValueError(
            f"Prediction and target differ in shape: {tuple(prediction.shape)} and {tuple(target.shape)}. "
            "Make the head's channels those of the label."
        )
    labelled = ~target.isnan()
    errors = error(prediction.float(), torch.where(labelled, target, 0.0))
    return torch.where(labelled, errors, 0.0).sum(), labelled.sum()
