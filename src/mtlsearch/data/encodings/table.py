"""Labels of whole images, in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlsearch import tasks
from mtlsearch.data.encodings.encoding import Encoding, class_arguments
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task


@dataclass(frozen=True)
class Row:
    """A row of a CSV file, by column."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


@dataclass(frozen=True, kw_only=True)
class Classification(Encoding):
    """A class for the whole image, from a CSV file with a header line.

    Args:
        path: of the file; it may hold `{split}`.
        classes: their number, or a name for each.
        image: the column that names the image, with or without its extension or folders.
        column: the column of the class, by name or number; an empty cell leaves the image unlabelled.
        soft: the probabilities are in columns called as the classes are; `column` is not read.
    """

    path: str
    classes: int | Sequence[str]
    image: str = "name"
    column: str = "label"
    soft: bool = False

    def task(self, name: str, head: HeadChoice) -> Task:
        return tasks.classification(name, **class_arguments(self.classes), soft=self.soft, **self.options)

    def find(self, root: Path, split: str) -> dict[str, Row]:
        path = root / self.path.replace("{split}", split)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                rows = [Row(path, reader.line_num, cells) for cells in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if missing := {self.image, *self._columns()} - set(reader.fieldnames or ()):
            raise ValueError(f"{path} lacks the columns {sorted(missing)}: it has {reader.fieldnames}.")
        found: dict[str, Row] = {}
        for row in rows:
            other = found.setdefault(row.cells[self.image], row)
            if other is not row:
                raise ValueError(f"{row} and line {other.line} name the same image: keep one of them.")
        return found

    def read(self, source: Row) -> np.ndarray:
        cells = [(source.cells[column] or "").strip() for column in self._columns()]
        names = class_arguments(self.classes)["class_names"]
        try:
            if self.soft:
                return np.array([float(cell or "nan") for cell in cells], dtype=np.float32)
            number = names.index(cells[0]) if cells[0] in names else int(cells[0] or -100)
            return np.array(number, dtype=np.int64)
        except ValueError as error:
            raise ValueError(f"holds {cells}: expected numbers, or of the classes {names}.") from error

    def _columns(self) -> list[str]:
        return class_arguments(self.classes)["class_names"] if self.soft else [self.column]
