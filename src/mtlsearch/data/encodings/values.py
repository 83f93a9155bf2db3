"""Depth, normals and other values for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlsearch import tasks
from mtlsearch.data.encodings.encoding import Files, listed
from mtlsearch.data.reading import read_array
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task


@dataclass(frozen=True, kw_only=True)
class Depth(Files):
    """Depth along the camera's axis.

    Args:
        scale: metres to a unit of the files; 0.001 for millimetres.
        hole: the values, one or several, of unlabelled pixels in the files, beside NaN and infinity.
    """

    scale: float = 1.0
    hole: float | Sequence[float] | None = 0.0

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.depth(name, **{"head": head, **self.options})

    def read(self, source: Path) -> np.ndarray:
        units = read_array(source, self.key)
        if units.ndim != 2:
            raise ValueError(f"has the shape {units.shape}: expected a depth for every pixel, (H, W).")
        known = np.isfinite(units) & ~np.isin(units, listed(self.hole))
        return np.where(known, units * self.scale, np.nan).astype(np.float32)[None]


@dataclass(frozen=True, kw_only=True)
class Normals(Files):
    """Surface normals: vectors of floats, or 8-bit codes c of the components 2c / 255 - 1.

    Args:
        axes: the channels that hold the camera's x (right), y (down) and z (forward), with a minus where one
            points the other way: "0 -2 1" says x = channel 0, y = minus channel 2, z = channel 1.
        unknown: the code of unlabelled pixels: one number, which any channel may have, or all three.
            Vectors that are zero (shorter than 0.1), NaN or infinite are unlabelled in any case.
    """

    axes: str = "0 1 2"
    unknown: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if sorted(axis.strip("+-") for axis in self.axes.split()) != ["0", "1", "2"]:
            raise ValueError(f'axes holds each of 0, 1 and 2 once, as in "0 -2 1": found {self.axes!r}.')

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.normals(name, **{"head": head, **self.options})

    def read(self, source: Path) -> np.ndarray:
        codes = read_array(source, self.key)
        whole = codes.dtype == np.uint8
        if codes.ndim != 3 or codes.shape[2] != 3 or not (whole or codes.dtype.kind == "f"):
            raise ValueError(
                f"holds {codes.dtype} of shape {codes.shape}: expected uint8 codes or floats (H, W, 3)."
            )
        vectors = 2 * codes.astype(np.float32) / 255 - 1 if whole else codes.astype(np.float32)
        length = np.linalg.norm(vectors, axis=2)
        known = np.isfinite(length) & (length > 0.1) & ~self._marked(codes)
        wrong = known & (length > 1.5)
        if wrong.any():
            raise ValueError(
                f"holds {codes[wrong][0].tolist()}, a vector of length {length[wrong][0]:.2g}: expected 1. "
                "Where this marks unlabelled pixels, say so by `unknown`."
            )
        axes = self.axes.split()
        signs = np.array([-1 if axis.startswith("-") else 1 for axis in axes], dtype=np.float32)
        unit = vectors / np.where(known, length, np.nan)[..., None]
        channels = [int(axis.strip("+-")) for axis in axes]
        return np.ascontiguousarray((signs * unit[..., channels]).transpose(2, 0, 1))

    def _marked(self, codes: np.ndarray) -> np.ndarray:
        if self.unknown is None:
            return np.zeros(codes.shape[:2], dtype=bool)
        found = np.any if isinstance(self.unknown, int) else np.all
        return np.asarray(found(codes == np.asarray(self.unknown), axis=2))


@dataclass(frozen=True, kw_only=True)
class Edges(Files):
    """Strengths of edges.

    Args:
        channels: kinds of edges, each a channel of the files.
        scale: the value of a unit of the files; by default integers are brought to 0..1.
    """

    channels: int = 1
    scale: float | None = None

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.edges(name, channels=self.channels, **{"head": head, **self.options})

    def read(self, source: Path) -> np.ndarray:
        values = np.atleast_3d(read_array(source, self.key))
        if values.shape[2] != self.channels:
            raise ValueError(f"has {values.shape[2]} channels: expected {self.channels}. Mend channels.")
        full = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
        return (values.transpose(2, 0, 1) * (self.scale or 1 / full)).astype(np.float32)


class Keypoints(Edges):
    """Heat maps of keypoints; the arguments are those of `Edges`."""

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.keypoints(name, channels=self.channels, **{"head": head, **self.options})
