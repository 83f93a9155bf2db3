"""Class ids for every pixel, and the edges between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlsearch import tasks
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
class EdgesOf(Encoding):
    """Edges made from class ids: 1 at a pixel whose left, right, upper or lower neighbour has another class.

    They are made at the size that the network sees, where they are two pixels wide. Unlabelled pixels have no
    value and make no edge.

    Args:
        labels: the class ids.
    """

    labels: Segmentation

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.edges(name, **{"head": head, **self.options})

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
