"""Surface normals: the direction that a visible surface faces, for every pixel."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsearch.nn import heads
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Target, Task
from mtlsearch.tasks.metrics import MeanError, MeanScore


def normals(
    name: str = "normals",
    *,
    head: HeadChoice = "light",
    weight: float = 1.0,
    raw_codes: bool = False,
) -> Task:
    """Unit vectors in the camera's frame (x right, y down, z forward), by 1 - cosine.

    Metrics over all labelled pixels: `mean_angle` and `median_angle` in degrees, the median to 0.005°, and
    `within_11_25`, `within_22_5`, `within_30`, the fractions of pixels with at most that error in degrees.

    Args:
        head: one for every pixel, as `mtlsearch.nn.heads` describes.
        raw_codes: take loss and metrics between the vectors as 8-bit codes, 127.5 * (1 + n) in NYUv2's order
            x, z, -y, without decoding them. The published code behind MTL-NAS's tables does so, and angles
            shrink to about half by it: use it only to compare with those tables. Predictions are unit vectors
            all the same, and encoded like the labels.
    """
    angle = partial(total_angle, raw_codes=raw_codes)
    near = partial(within, raw_codes=raw_codes)
    arguments = {"head": head, "weight": weight, "raw_codes": raw_codes}
    return Task(
        name=name,
        target=Normals(),
        head=heads.dense(head, 3),
        loss=partial(cosine, raw_codes=raw_codes),
        metrics={
            "mean_angle": partial(MeanError, angle),
            "median_angle": partial(MedianAngle, raw_codes=raw_codes),
            "within_11_25": partial(MeanScore, partial(near, degrees=11.25)),
            "within_22_5": partial(MeanScore, partial(near, degrees=22.5)),
            "within_30": partial(MeanScore, partial(near, degrees=30.0)),
        },
        weight=weight,
        spec=None if callable(head) else {"kind": "normals", "arguments": arguments},
    )


class Normals(Target):
    """Unit vectors: a label is (3, H, W) float32, a target (B, 3, H, W), NaN where unlabelled."""

    def warp(self, label: np.ndarray, linear: np.ndarray) -> np.ndarray:
        """Turn x and y by the orthogonal part of `linear`: zooming or stretching turns no surface."""
        left, _, right = np.linalg.svd(linear)
        x, y = np.einsum("ij,jhw->ihw", left @ right, label[:2])
        turned = np.stack([x, y, label[2]])
        turned /= np.maximum(np.linalg.norm(turned, axis=0), 1e-12)
        return turned.astype(np.float32)

    def unlabelled(self, size: tuple[int, int]) -> np.ndarray:
        return np.full((3, *size), np.nan, dtype=np.float32)

    def labelled(self, target: Tensor) -> Tensor:
        return ~target.isnan().any(dim=1)

    def check(self, label: np.ndarray) -> None:
        if label.ndim != 3 or label.shape[0] != 3 or label.dtype != np.float32:
            raise ValueError(f"Normals are (3, H, W) float32: found {label.dtype} of shape {label.shape}.")
        unknown = np.isnan(label)
        if (unknown.any(axis=0) != unknown.all(axis=0)).any():
            raise ValueError(
                "An unlabelled pixel of a map of normals is NaN in x, y and z: found some NaN in part."
            )
        length = np.linalg.norm(label, axis=0)[~unknown[0]]
        if (np.abs(length - 1) > 0.01).any():
            raise ValueError(
                f"Normals have length 1: found {length.min():.3g} to {length.max():.3g}. "
                "Decode 8-bit codes as 2 * code / 255 - 1, then divide by the length; unknown pixels are NaN."
            )

    def decode(self, prediction: Tensor) -> Tensor:
        return direction(prediction)

    def picture(self, label: np.ndarray) -> np.ndarray:
        """x, y and z from -1..1 to red, green and blue from 0 to 255; unlabelled pixels black."""
        colours = np.nan_to_num(127.5 * (1 + label), nan=0.0).clip(0, 255)
        return colours.round().astype(np.uint8).transpose(1, 2, 0)


def direction(prediction: Tensor) -> Tensor:
    """Vectors (B, 3, H, W) of any length as unit vectors, fp32.

    Those shorter than 0.001 are only divided by that, so that a zero keeps a gradient of bounded size.
    """
    return _unit(prediction.float(), shortest=1e-3)


def cosine(prediction: Tensor, target: Tensor, raw_codes: bool = False) -> tuple[Tensor, Tensor]:
    """1 - cosine of vectors (B, 3, H, W): its sum and the number of labelled pixels."""
    found, true, labelled = _compared(prediction, target, raw_codes)
    return torch.where(labelled, 1 - (found * true).sum(dim=1), 0.0).sum(), labelled.sum()


def angles(prediction: Tensor, target: Tensor, raw_codes: bool = False) -> tuple[Tensor, Tensor]:
    """The errors in degrees (B, H, W), and where they are labelled. A zero vector is 90° from everything."""
    found, true, labelled = _compared(prediction, target, raw_codes)
    # Unlike the arc cosine this keeps its digits near 0° and 180°.
    radians = 2 * torch.atan2(_square(found - true).sqrt(), _square(found + true).sqrt())
    return radians * (180 / math.pi), labelled


def total_angle(prediction: Tensor, target: Tensor, raw_codes: bool = False) -> tuple[Tensor, Tensor]:
    """The sum of the errors in degrees, and the number of labelled pixels."""
    errors, labelled = angles(prediction, target, raw_codes)
    return torch.where(labelled, errors, 0.0).sum(), labelled.sum()


def within(
    prediction: Tensor, target: Tensor, degrees: float, raw_codes: bool = False
) -> tuple[Tensor, Tensor]:
    """How many labelled pixels have an error of at most so many degrees, and their number."""
    errors, labelled = angles(prediction, target, raw_codes)
    return ((errors <= degrees) & labelled).sum(), labelled.sum()


class MedianAngle(Metric):
    """The median error in degrees over all labelled pixels of a data set; NaN where there are none.

    Errors are counted in bins of 0.01° and the middle of the median's bin is given, so the state has a fixed
    size and the states of several processes add up. Of an even number of errors the lower median is taken.
    """

    higher_is_better = False
    full_state_update = False
    bins_per_degree = 100
    counts: Tensor

    def __init__(self, raw_codes: bool = False) -> None:
        super().__init__()
        self.raw_codes = raw_codes
        counts = torch.zeros(180 * self.bins_per_degree, dtype=torch.long)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        errors, labelled = angles(prediction, target, self.raw_codes)
        bins = len(self.counts)
        index = (errors.nan_to_num(180.0) * self.bins_per_degree).long().clamp(max=bins - 1)
        index = torch.where(labelled, index, bins)
        self.counts += torch.bincount(index.flatten(), minlength=bins + 1)[:bins]

    def compute(self) -> Tensor:
        up_to = self.counts.cumsum(0)
        median = torch.searchsorted(up_to, (up_to[-1:] + 1) // 2)[0]
        return torch.where(up_to[-1] > 0, (median + 0.5) / self.bins_per_degree, torch.nan)


def _compared(prediction: Tensor, target: Tensor, raw_codes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Both as the unit vectors to compare, with zeros for unlabelled ones, and where they are labelled."""
    labelled = ~target.isnan().any(dim=1)
    found, true = direction(prediction), torch.where(labelled[:, None], target.float(), 0.0)
    if raw_codes:
        found, true = _unit(_code(found)), _unit(_code(true))
    return found, true, labelled


def _unit(vectors: Tensor, shortest: float = 1e-6) -> Tensor:
    return vectors / _square(vectors)[:, None].clamp(min=shortest**2).sqrt()


def _square(vectors: Tensor) -> Tensor:
    # torch's norm over the channels takes a hundred times longer.
    return vectors.square().sum(dim=1)


def _code(vectors: Tensor) -> Tensor:
    x, y, z = vectors.unbind(dim=1)
    return 1 + torch.stack([x, z, -y], dim=1)
