"""Class ids for every pixel, the edges between them, and boxes round what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtlsearch import tasks
from mtlsearch.data.encodings.boxes import make_label
from mtlsearch.data.encodings.encoding import Encoding, Files, class_arguments, listed
from mtlsearch.data.reading import read_array
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task
from mtlsearch.tasks.segmentation import UNLABELLED


@dataclass(frozen=True, kw_only=True)
class Segmentation(Files):
    """Class ids.

    Args:
        classes: their number, or a name for each.
        ignore: the ids, one or several, of unlabelled pixels in the files.
        id_map: {id in the files: class}, for all but the ignored ones.
    """

    classes: int | Sequence[str]
    ignore: int | Sequence[int] | None = 255
    id_map: Mapping[int, int] | None = None

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.segmentation(name, **class_arguments(self.classes), **{"head": head, **self.options})

    def read(self, source: Path) -> np.ndarray:
        ids = read_array(source, self.key)
        if ids.ndim != 2 or ids.dtype.kind not in "bui":
            raise ValueError(
                f"holds {ids.dtype} of shape {ids.shape}: expected integers (H, W), a class for every pixel."
            )
        count, classes = class_arguments(self.classes)["num_classes"], ids.astype(np.int64)
        if self.id_map is not None:
            classes = np.full(ids.shape, -1)
            for found, meant in self.id_map.items():
                classes[ids == found] = meant
        ignored = np.isin(ids, listed(self.ignore))
        wrong = np.unique(ids[~ignored & ((classes < 0) | (classes >= count))])
        if wrong.size:
            known = f"0 to {count - 1}" if self.id_map is None else f"those of id_map (to 0 to {count - 1})"
            raise ValueError(
                f"holds the class ids {wrong[:8].tolist()}: expected {known}, or {self.ignore} where "
                "unlabelled. Mend classes, ignore or id_map."
            )
        return np.where(ignored, UNLABELLED, classes)


@dataclass(frozen=True)
class BoundariesOf(Encoding):
    """Boundaries made from class ids: 1 at a pixel whose left, right, upper or lower neighbour has another class.

    They are made at the size that the network sees, where they are two pixels wide. Unlabelled pixels have no
    value and make no edge.

    Args:
        labels: the class ids.
    """

    labels: Segmentation

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.boundaries(name, **{"head": head, **self.options})

    def find(self, root: Path, split: str) -> dict[str, Path]:
        return self.labels.find(root, split)

    def read(self, source: Path) -> np.ndarray:
        return self.labels.read(source)

    def finish(self, label: np.ndarray) -> np.ndarray:
        known, edges = label != UNLABELLED, np.zeros(label.shape, dtype=bool)
        for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            border = (label[one] != label[other]) & known[one] & known[other]
            edges[one] |= border
            edges[other] |= border
        return np.where(known, edges, np.nan).astype(np.float32)[None]


@dataclass(frozen=True)
class BoxesOf(Encoding):
    """Boxes made from class ids: one round each connected region of a class, corners counting as connected.

    Objects of a class that touch are one region, an object that is hidden in its middle is two.

    Args:
        labels: the class ids, with names for the classes.
        classes: the names of those that are objects; their order is that of the boxes' classes.
        smallest: pixels of the label image that a region has at least; smaller ones are left out.
    """

    labels: Segmentation
    classes: Sequence[str] = field(kw_only=True)
    smallest: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        known = class_arguments(self.labels.classes)["class_names"]
        if wrong := [name for name in self.classes if name not in known]:
            raise ValueError(f"No region can be of a class {wrong[0]!r}: the label image has {known}.")

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.detection(name, **class_arguments(self.classes), **self.options)

    def find(self, root: Path, split: str) -> dict[str, Path]:
        return self.labels.find(root, split)

    def read(self, source: Path) -> dict[str, np.ndarray]:
        import cv2

        class_map, boxes, ids = self.labels.read(source), [], []
        known = class_arguments(self.labels.classes)["class_names"]
        for number, name in enumerate(self.classes):
            mask = (class_map == known.index(name)).astype(np.uint8)
            _, _, regions, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            for left, top, width, height, count in regions[1:]:  # the first is all the rest
                if count >= self.smallest:
                    boxes.append((left, top, left + width, top + height))
                    ids.append(number)
        return make_label(boxes, ids)
