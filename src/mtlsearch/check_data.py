"""What is in a data set: `python -m mtlsearch.check_data dataset=folder dataset.root=DIR`, before training.

It reads every image and label, prints how many there are and what values they have, draws some with their
labels, and lists all problems with their files; then the exit code is 1. The arguments are those of
`mtlsearch.run` that describe data: `dataset`, `tasks` and `experiment`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mtlsearch.data.module import SPLITS, TaskData
from mtlsearch.data.per_task import PerTask
from mtlsearch.report.labels import overlays
from mtlsearch.task import Task
from mtlsearch.tasks import Boxes, ClassMap, Depth, ImageLabel, Normals
from mtlsearch.tasks.boxes import area
from mtlsearch.tasks.classification import true_class

ROWS = 2
"""Images of each split on the sheet."""
VALUES = 500
"""Values of an image that the median is taken over."""


@dataclass
class Tally:
    """What the labels of one task are, over the images added so far.

    Args:
        task: whose labels they are.
        images: the number of labelled images, by split.
        entries: the number of pixels (or whole images) in them, and of those that are labelled.
        classes: the number of labelled entries (or boxes) of each class, by split, where there are classes.
        low, high, values: the lowest and the highest value and some of each image, where there are values; of
            boxes the square roots of their areas.
        facing: the number of normals whose z points towards the camera, as most do.
    """

    task: Task
    images: Counter[str] = field(default_factory=Counter)
    entries: int = 0
    labelled: int = 0
    classes: dict[str, np.ndarray] = field(default_factory=dict)
    low: float = np.inf
    high: float = -np.inf
    values: list[np.ndarray] = field(default_factory=list)
    facing: int = 0

    def add(self, split: str, label: Any) -> None:
        target = self.task.target.collate([label])
        labelled = self.task.target.labelled(target)
        if not labelled.any():
            return
        self.images[split] += 1
        self.entries += labelled.numel()
        self.labelled += int(labelled.sum())
        kind = self.task.target
        if isinstance(kind, Boxes):
            self._count(split, label["labels"])
            self._take(np.sqrt(area(label["boxes"])))
        elif isinstance(kind, ClassMap | ImageLabel):
            ids = (true_class(target) if isinstance(kind, ImageLabel) else target)[labelled]
            self._count(split, ids.numpy())
        elif isinstance(kind, Normals):
            self.facing += int((label[2] < 0).sum())
        elif np.issubdtype(label.dtype, np.floating):
            self._take(label[np.isfinite(label)])

    def _count(self, split: str, ids: np.ndarray) -> None:
        if ids.size:
            counts = np.bincount(ids, minlength=self.task.target.num_classes)  # type: ignore[attr-defined]
            self.classes[split] = self.classes.get(split, 0) + counts

    def _take(self, values: np.ndarray) -> None:
        if values.size:
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))
            self.values.append(values[:: -(-len(values) // VALUES)])

    @property
    def median(self) -> float:
        return float(np.median(np.concatenate(self.values)))

    def summary(self) -> str:
        """The values in a line, without the classes."""
        parts = [f"{self.labelled / self.entries:.1%} labelled"] if self.task.target.dense else []
        if isinstance(self.task.target, Normals):
            parts.append(f"{self.facing / self.labelled:.1%} of them towards the camera (z < 0)")
        if isinstance(self.task.target, Boxes):
            boxes = sum(int(counts.sum()) for counts in self.classes.values())
            parts.append(f"{boxes} boxes in {self.labelled} images, by the square root of their area")
        if self.values:
            kind = self.task.target
            unit = " m" if isinstance(kind, Depth) else " px" if isinstance(kind, Boxes) else ""
            mean = float(np.mean(np.concatenate(self.values)))
            parts.append(
                f"{self.low:.4g} to {self.high:.4g}{unit}, mean {mean:.3g}, median {self.median:.3g}"
            )
        return ", ".join(parts)

    def doubts(self) -> Iterator[str]:
        """What is possible and yet seldom meant."""
        name = self.task.name
        if isinstance(self.task.target, Normals) and self.facing < 0.5 * self.labelled:
            yield f"{name}: most point away from the camera, whose z axis goes forward. Are the axes right?"
        if isinstance(self.task.target, Depth) and self.values and not 0.1 < self.median < 200:
            yield f"{name}: half of it is below {self.median:.3g} m. Is the scale right?"
        train = self.classes.get("train")
        for split in ("val", "test"):
            if train is not None and split in self.classes:
                ids = np.flatnonzero((train == 0) & (self.classes[split] > 0))
                if ids.size:
                    classes = ", ".join(self.task.target.class_names[i] for i in ids)  # type: ignore[attr-defined]
                    yield f"{name}: {split} has classes that train has not: {classes}."


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        images: the number of readable images, by split.
        sizes: how many images have which (H, W), texts (T,).
        tallies: what the labels are, by task.
        problems: what makes the data set unusable, a line each.
        sheet: the picture of some images with their labels, if any could be read.
    """

    images: Counter[str]
    sizes: Counter[tuple[int, ...]]
    tallies: Mapping[str, Tally]
    problems: Sequence[str]
    sheet: Path | None


def check(datamodule: TaskData | PerTask, dir: Path) -> Report:
    """Read everything, and draw some of it into `labels.png` in a folder, which is made."""
    targets = {task.name: task.target for task in datamodule.tasks}
    tallies = {task.name: Tally(task) for task in datamodule.tasks}
    images: Counter[str] = Counter()
    sizes: Counter[tuple[int, ...]] = Counter()
    problems: dict[str, None] = {}
    shown: list[tuple[str, dict[str, Any]]] = []
    try:
        datamodule.prepare_data()
        datamodule.setup()
    except ValueError as error:
        lines = getattr(error, "problems", None) or [str(error)]
        return Report(images, sizes, tallies, lines, None)
    for split in SPLITS:
        samples = datamodule.samples(split)
        richest: dict[int, int] = {}
        for index in track(range(len(samples)), f"Reading {split}", console=Console(stderr=True)):
            try:
                sample = samples[index]
                labels = {name: sample[name] for name in targets if sample.get(name) is not None}
                for name, label in labels.items():
                    targets[name].check(label)
            except ValueError as error:
                problems |= dict.fromkeys(str(error).splitlines())
                continue
            images[split] += 1
            sizes[sample["image"].shape[:2]] += 1
            for name, label in labels.items():
                tallies[name].add(split, label)
            richest[index] = len(labels)
        most = max(richest.values(), default=0)
        best = [index for index, count in richest.items() if count == most]
        chosen = np.linspace(0, len(best) - 1, num=min(ROWS, len(best))).round().astype(int)
        shown += [(split, samples[best[i]]) for i in chosen]
    path = None
    if shown:
        path = dir / "labels.png"
        dir.mkdir(parents=True, exist_ok=True)
        overlays(datamodule.tasks, shown).savefig(path)
    return Report(images, sizes, tallies, list(problems), path)


def show(report: Report, console: Console) -> None:
    """Print it."""
    if report.images:
        images = Table(box=box.SIMPLE_HEAD, title="Images", title_justify="left")
        for heading in ("", "images", *(f"with {name}" for name in report.tallies)):
            images.add_column(heading, justify="right" if heading else "left")
        for split in SPLITS:
            counts = (report.images, *(tally.images for tally in report.tallies.values()))
            images.add_row(split, *(str(count[split]) for count in counts))
        console.print(images)
        sizes = (f"{'x'.join(map(str, size))} ({count})" for size, count in report.sizes.most_common(5))
        more = ", ..." if len(report.sizes) > 5 else ""
        console.print(f"Sizes that a network sees, height x width: {', '.join(sizes)}{more}")
    for name, tally in report.tallies.items():
        if tally.entries:
            console.print(f"\n[bold]{name}[/] {tally.summary()}")
            if tally.classes:
                console.print(_histogram(tally))
    for doubt in (doubt for tally in report.tallies.values() for doubt in tally.doubts()):
        console.print(f"[yellow]Doubtful:[/] {escape(doubt)}")
    if report.problems:
        console.print(f"\n[bold red]Problems: {len(report.problems)}[/]")
    for problem in report.problems:
        console.print(escape(problem), soft_wrap=True)
    if report.sheet is not None:
        console.print(f"\nSome of it: {report.sheet}", soft_wrap=True)


def _histogram(tally: Tally) -> Table:
    """The share of each class in the labelled entries of each split, in percent."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("", *tally.classes, ""):
        table.add_column(heading, justify="right" if heading else "left")
    shares = {split: 100 * counts / counts.sum() for split, counts in tally.classes.items()}
    first = next(iter(shares.values()))
    for number, name in enumerate(tally.task.target.class_names):  # type: ignore[attr-defined]
        bar = "█" * round(20 * first[number] / first.max())
        table.add_row(
            escape(name),
            *(f"{share[number]:.2f} %" if share[number] else "none" for share in shares.values()),
            f"[dim]{bar}[/]",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the data set of a command line and return the exit code: 1 where there are problems."""
    from mtlsearch.answers import answer
    from mtlsearch.run import compose_dataset

    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    reports: list[Report] = []
    code = answer(lambda: reports.append(check(*compose_dataset(arguments))))
    for report in reports:
        show(report, Console())
    return code or int(any(report.problems for report in reports))


if __name__ == "__main__":
    sys.exit(main())
