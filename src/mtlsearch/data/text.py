"""Labelled texts in CSV files, each a classification task, as the ids of their characters."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtlsearch.data.module import SPLITS, TaskData
from mtlsearch.data.per_task import PerTask
from mtlsearch.tasks import classification

PADDING, UNKNOWN = 0, 1
CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/|_#$%^&*~`+=<>()[]{}"
"""Those with an id, from 2 on: with padding and unknown the 69 tokens of Conneau et al. (2017)."""
IDS = np.full(129, UNKNOWN, dtype=np.uint8)  # by code point, the last one for all that are not ASCII
IDS[[ord(character) for character in CHARACTERS]] = np.arange(2, 2 + len(CHARACTERS))


def encode(text: str, length: int) -> np.ndarray:
    """The ids (length,) uint8 of a text's characters in lower case, cut or padded at the end."""
    codes = np.frombuffer(text.lower()[:length].encode("utf-32-le"), dtype=np.uint32)
    ids = np.full(length, PADDING, dtype=np.uint8)
    ids[: len(codes)] = IDS[np.minimum(codes, 128)]
    return ids


def decode(ids: np.ndarray) -> str:
    """The text that `encode` leaves, with "?" in the place of what has no id."""
    return "".join((" ?" + CHARACTERS)[i] for i in ids).rstrip()


def texts(
    root: str | Path = ".",
    tables: Mapping[str, str | Path | Mapping[str, Any]] | None = None,
    *,
    tasks: Sequence[str] | None = None,
    length: int = 1024,
    together: bool = False,
    batch_size: int = 128,
    num_workers: int = 0,
    head: Any = None,
    split_seed: int = 0,
    seed: int = 0,
) -> PerTask:
    """A data set for each table, with a task of its name.

    Args:
        root: the folder that paths are relative to.
        tables: by task a CSV file, or arguments of `Text`: {"train": FILE, "test": FILE, "label": 1}. By default
            all files NAME.csv in `root`, and all folders NAME in it with train.csv, val.csv and test.csv, of
            which the last two may be missing.
        tasks: names of those to take, by default all.
        together: see `PerTask`.
        head: not used; that of tasks for every pixel, which a run hands to every data set.
        others: as for `Text`.
    """
    root = Path(root).expanduser()
    tables = _usual(root) if tables is None else tables
    if unknown := [name for name in tasks or () if name not in tables]:
        raise ValueError(f"There is no table for the task {unknown[0]!r}: there are {', '.join(tables)}.")
    settings: dict[str, Any] = {"length": length, "batch_size": batch_size, "num_workers": num_workers}
    settings |= {"split_seed": split_seed, "seed": seed}
    datasets = {}
    for name in tables if tasks is None else tasks:
        table = tables[name]
        arguments = dict(table) if isinstance(table, Mapping) else {"train": table}
        datasets[name] = Text(name, root=root, **{**settings, **arguments})
    return PerTask(datasets, together=together, seed=seed)


def _usual(root: Path) -> dict[str, Any]:
    """The tables that lie in a folder, by name."""
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: root names the one that holds the tables.")
    found: dict[str, Any] = {path.stem: path.name for path in root.glob("*.csv")}
    for path in root.glob("*/train.csv"):
        files = {split: path.with_name(f"{split}.csv") for split in SPLITS}
        found[path.parent.name] = {
            split: file.relative_to(root) for split, file in files.items() if file.exists()
        }
    if not found:
        raise ValueError(
            f"{root} holds no table: neither NAME.csv nor NAME/train.csv. Name them by `tables`."
        )
    return dict(sorted(found.items()))


class Row(NamedTuple):
    """A labelled text, and the line of its file."""

    line: int
    label: str
    text: str


class Text(TaskData):
    """Texts with a class each, from CSV files in UTF-8.

    A row with other columns than the first, or with a label that is no class, is a ValueError with file and
    line as soon as it is read.

    Args:
        name: of the task.
        train: the file with the training texts.
        val, test: theirs, or the fraction of the training file's rows that is drawn for them.
        root: the folder that paths are relative to.
        label: the column of the label, counted from 0.
        text: the columns of the text, which are joined by a space; by default all but the label's.
        header: whether the first row of a file names the columns.
        classes: the labels in the order of the classes; a number n stands for the labels 1 to n; None for those
            that the training file holds, numbers by their value.
        length: characters of a text that are kept; a shorter one is padded.
        split_seed: of the draw by fractions. It is not `seed`, so that runs of several seeds have the same test
            texts.
        batch_size, num_workers, seed: as `TaskData` has them.
    """

    def __init__(
        self,
        name: str,
        train: str | Path,
        *,
        val: str | Path | float = 0.1,
        test: str | Path | float = 0.1,
        root: str | Path = ".",
        label: int = 0,
        text: Sequence[int] | None = None,
        header: bool = False,
        classes: Sequence[str] | int | None = None,
        length: int = 1024,
        split_seed: int = 0,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}.")
        root = Path(root).expanduser()
        self.files: dict[str, Path] = {}
        self.fractions: dict[str, float] = {}
        for split, source in zip(SPLITS, (train, val, test)):
            if isinstance(source, str | Path):
                self.files[split] = root / source
            elif 0 < source < 1:
                self.fractions[split] = source
            else:
                raise ValueError(f"{split} must be a file or a fraction between 0 and 1, not {source}.")
        self.label, self.text, self.header = label, text, header
        self.length = length
        self.split_seed = split_seed
        if classes is None:
            classes = sorted({row.label for row in self.rows["train"]}, key=_by_value)
        elif isinstance(classes, int):
            classes = [str(number) for number in range(1, classes + 1)]
        self.classes = [str(label) for label in classes]
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.files['train']}: the task {name!r} needs at least two classes, not {self.classes}. Is the "
                f"label in column {label}, counted from 0?"
            )
        task = classification(name, num_classes=len(self.classes), class_names=self.classes)
        super().__init__(tasks=[task], batch_size=batch_size, num_workers=num_workers, seed=seed)

    def samples(self, split: str) -> Encoded:
        return Encoded(self, *self.splits[split])

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """Of each file, by the split that names it."""
        return {split: read(path, self.label, self.text, self.header) for split, path in self.files.items()}

    @cached_property
    def splits(self) -> dict[str, tuple[Path, list[Row]]]:
        """The rows of train, val and test, and the file of each."""
        for split, rows in self.rows.items():
            for row in rows:
                if row.label not in self.classes:
                    raise ValueError(
                        f"{self.files[split]}, line {row.line}: the label {row.label!r} is no class; there are "
                        f"{', '.join(self.classes[:10])}{', ...' if len(self.classes) > 10 else ''}."
                    )
        drawn = dict(self.rows)
        order = np.random.default_rng(self.split_seed).permutation(len(self.rows["train"]))
        for split, fraction in self.fractions.items():
            count = max(1, round(fraction * len(self.rows["train"])))
            drawn[split] = [self.rows["train"][i] for i in sorted(order[:count])]
            order = order[count:]
        if not len(order):
            raise ValueError(f"{self.files['train']}: too few rows for {', '.join(SPLITS)}: add some.")
        drawn["train"] = [self.rows["train"][i] for i in sorted(order)]
        return {split: (self.files.get(split, self.files["train"]), drawn[split]) for split in SPLITS}


class Encoded:
    """The samples of one split: {"image": ids (length,) uint8, task: class ()}."""

    def __init__(self, texts: Text, path: Path, rows: Sequence[Row]) -> None:
        self.path, self.rows, self.length = path, rows, texts.length
        (self.task,) = (task.name for task in texts.tasks)
        self.classes = {label: np.int64(number) for number, label in enumerate(texts.classes)}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        line, label, text = self.rows[index]
        image = encode(text, self.length)
        return {"name": f"{self.path.name}:{line}", "image": image, self.task: self.classes[label]}


def read(path: Path, label: int, text: Sequence[int] | None, header: bool) -> list[Row]:
    """The rows of a file; the arguments are those of `Text`.

    Raises:
        ValueError: the file cannot be read, or a row lacks a column. It names the file and the line.
    """
    rows: list[Row] = []
    width = 0
    for number, (line, fields) in enumerate(_records(path)):
        width = width or len(fields)
        if len(fields) != width:
            raise ValueError(
                f"{path}, line {line}: the row has {len(fields)} column(s), the first one {width}. A text with a "
                "comma stands in quotes."
            )
        columns = [i for i in range(width) if i != label] if text is None else text
        if not columns or not all(0 <= i < width for i in (label, *columns)):
            raise ValueError(
                f"{path}, line {line}: the row has {width} column(s); the label is expected in column {label} and "
                f"the text in {list(columns) or 'another'}, counted from 0."
            )
        if not (header and number == 0):
            rows.append(Row(line, fields[label].strip(), " ".join(fields[i] for i in columns)))
    if not rows:
        raise ValueError(f"{path}: holds no row.")
    return rows


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row, and the line where it starts; empty lines are passed over."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from error
    try:
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: is not UTF-8: {error.reason}. Convert the file.") from error
    reader = csv.reader(lines, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: the row cannot be read: {error}.") from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _by_value(label: str) -> tuple[float, str]:
    """Numbers by their value, then words."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label
