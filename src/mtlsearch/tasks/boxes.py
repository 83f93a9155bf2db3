"""Boxes: objects of an image, each a rectangle with a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlsearch.task import Target
from mtlsearch.tasks.segmentation import name_classes

LABEL = ("boxes", "labels")
KEPT = 0.3
"""The part of a moved box that has to be inside the image for the box to be kept."""


class Boxes(Target):
    """Boxes round objects, with class ids.

    A label is {"boxes": (n, 4) float32, "labels": (n,) int64}, or None where nobody labelled the image; n = 0
    says that there is nothing in it. Boxes are x1, y1, x2, y2 in pixels from the image's left upper corner, so
    that one pixel's box is [column, row, column + 1, row + 1]. A target is the list of B labels, as tensors.

    Args:
        num_classes: at least 1.
        class_names: one for each class; their numbers by default.
    """

    dense = False

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an integer of at least 1, not {num_classes!r}.")
        self.num_classes = num_classes
        self.class_names = name_classes(num_classes, class_names)

    def unlabelled(self, size: tuple[int, int]) -> None:
        return None

    def labelled(self, target: Sequence[Mapping[str, Tensor] | None]) -> Tensor:
        return torch.tensor([label is not None for label in target], dtype=torch.bool)

    def collate(self, labels: Sequence[Any]) -> list[dict[str, Tensor] | None]:
        return [
            None if label is None else {key: torch.as_tensor(label[key]).clone() for key in LABEL}
            for label in labels
        ]

    def check(self, label: Any, size: tuple[int, int] | None = None) -> None:
        """Raise a ValueError that says what is wrong with a label.

        Args:
            size: (H, W) of its image. A box that has more than half of its area outside is wrong.
        """
        if not isinstance(label, Mapping) or label.keys() != {"boxes", "labels"}:
            found = sorted(label) if isinstance(label, Mapping) else type(label).__name__
            raise ValueError(f"A label of boxes is a dict of boxes and labels: found {found}.")
        boxes, ids = np.asarray(label["boxes"]), np.asarray(label["labels"])
        if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != np.float32:
            raise ValueError(
                f"Boxes are float32 of shape (n, 4): found {boxes.dtype} of shape {boxes.shape}."
            )
        if ids.shape != boxes.shape[:1] or ids.dtype != np.int64:
            raise ValueError(
                f"The labels of {len(boxes)} boxes are int64 of shape ({len(boxes)},): found {ids.dtype} of "
                f"shape {ids.shape}."
            )
        _refuse(boxes, ~np.isfinite(boxes).all(axis=1), "has numbers that are not finite")
        empty = np.less_equal(boxes[:, 2:], boxes[:, :2]).any(axis=1)
        _refuse(boxes, empty, "has no area: it is x1, y1, x2, y2 with x1 < x2 and y1 < y2")
        wrong = np.unique(ids[(ids < 0) | (ids >= self.num_classes)])
        if wrong.size:
            raise ValueError(
                f"Class ids of boxes go from 0 to {self.num_classes - 1}: found {wrong[:5].tolist()}. Raise "
                "num_classes, or map these ids to others."
            )
        if size is not None:
            outside = area(clip(boxes, size)) < 0.5 * area(boxes)
            _refuse(boxes, outside, f"has most of its area outside the image of {size[0]}x{size[1]}")

    def fit(self, label: Any, size: tuple[int, int]) -> dict[str, np.ndarray]:
        self.check(label, size)
        return {**label, "boxes": clip(label["boxes"], size)}

    def move(self, label: Any, matrix: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The boxes round the moved corners, cut at the image's borders.

        Those that keep less than `KEPT` of their area, or less than a pixel of a side, are dropped.
        """
        corners = label["boxes"].astype(np.float64)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # (n, 4, xy)
        corners = corners @ matrix[:, :2].T + matrix[:, 2]
        moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        boxes = clip(moved, size)
        kept = (area(boxes) >= KEPT * area(moved)) & (boxes[:, 2:] - boxes[:, :2] >= 1 - 1e-6).all(axis=1)
        return {"boxes": boxes[kept].astype(np.float32), "labels": label["labels"][kept]}


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The parts of boxes (n, 4) that lie in an image of `size` (H, W)."""
    height, width = size
    return boxes.clip(0, np.array([width, height, width, height], dtype=boxes.dtype))


def area(boxes: np.ndarray) -> np.ndarray:
    """The areas (n,) of boxes (n, 4)."""
    sides: np.ndarray = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(sides.prod(axis=1))


def _refuse(boxes: np.ndarray, wrong: np.ndarray, fault: str) -> None:
    """Raise a ValueError with the first box that is wrong."""
    if wrong.any():
        number = int(wrong.argmax())
        raise ValueError(f"Box {number}, {boxes[number].tolist()}, {fault}.")
