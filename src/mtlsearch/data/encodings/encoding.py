"""What every encoding can do, and what several share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlsearch.data.reading import find
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How the labels of one task are stored.

    Args:
        options: further arguments of the task's function in `mtlsearch.tasks`, such as `raw_codes`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)

    def task(self, name: str, head: HeadChoice) -> Task:
        """The task that these labels are for, with this head if it labels every pixel."""
        raise NotImplementedError

    def find(self, root: Path, split: str) -> Mapping[str, Any]:
        """What `read` takes, by the name of the image. As a string each says where it lies."""
        raise NotImplementedError

    def read(self, source: Any) -> Any:
        """One label. A ValueError says what is wrong with it; the caller says with which."""
        raise NotImplementedError

    def finish(self, label: Any) -> Any:
        """The task's label, made of what was read and brought to its size."""
        return label


@dataclass(frozen=True)
class Files(Encoding):
    """Labels with a file for each image.

    Args:
        path: the template of their paths, such as `depth/{name}.npy`.
        key: the name of the array in `.npz` files that hold several.
    """

    path: str
    key: str | None = field(default=None, kw_only=True)

    def find(self, root: Path, split: str) -> dict[str, Path]:
        return find(root, self.path, split)


def class_arguments(classes: int | Sequence[str]) -> dict[str, Any]:
    """The arguments of a task with these classes, their number or a name for each."""
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    return {"num_classes": len(names), "class_names": names}


def listed(values: float | Sequence[float] | None) -> Sequence[float]:
    """One value, several or none, as a list."""
    if values is None:
        return []
    return [values] if isinstance(values, int | float) else values
