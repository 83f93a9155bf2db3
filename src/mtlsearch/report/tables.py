"""The tables that a run prints at its end, and how the report writes the same numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, pstdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Metrics = Mapping[str, Any]
"""The content of a `metrics.json`."""

SPLITS = {"val": "Validation", "test": "Test"}
COSTS = ("parameters", "MACs", "latency")
ARROWS = {True: "↑", False: "↓", None: ""}


@dataclass(frozen=True)
class Row:
    """One metric of one task on one split, of several networks."""

    task: str
    metric: str
    higher_is_better: bool | None
    values: tuple[float | None, ...]

    @property
    def name(self) -> str:
        """The metric in words, with an arrow towards the better."""
        return f"{words(self.metric)}\N{NO-BREAK SPACE}{ARROWS[self.higher_is_better]}".strip()

    @property
    def best(self) -> tuple[bool, ...]:
        """Which of the values are the best; none where there is nothing to choose."""
        found = [value for value in self.values if value is not None and math.isfinite(value)]
        if self.higher_is_better is None or len(set(found)) < 2:
            return (False,) * len(self.values)
        best = max(found) if self.higher_is_better else min(found)
        return tuple(value == best for value in self.values)

    @property
    def gain(self) -> float | None:
        """By how many percent the last value is better than the one before it; negative if it is worse."""
        *_, before, after = (None, *self.values)
        if before is None or after is None or not before or self.higher_is_better is None:
            return None
        return 100 * (after - before) / abs(before) * (1 if self.higher_is_better else -1)


def networks(metrics: Metrics) -> dict[str, Metrics]:
    """The evaluated networks by what they are called, each {split: {task: {metric: number}}}."""
    others = {words(name): metrics[name] for name in ("single_task", "supernet") if metrics.get(name)}
    finished = "derived" if "supernet" in others else "network"
    return {**others, finished: {split: metrics[split] for split in SPLITS if metrics.get(split)}}


def compare(metrics: Metrics, split: str) -> list[Row]:
    """A row for every metric that any of the networks has on a split, in the order of the directions."""
    return _rows([network.get(split, {}) for network in networks(metrics).values()], metrics)


def retrained(metrics: Metrics, split: str) -> list[Row]:
    """A row for every metric that any retrained sample has on a split, its values in the samples' order."""
    return _rows([sample.get(split, {}) for sample in metrics.get("retrained") or ()], metrics)


def _rows(splits: Sequence[Metrics], metrics: Metrics) -> list[Row]:
    results = [by_task(split) for split in splits]
    directions = metrics.get("directions", {})
    return [
        Row(task, name, directions.get(task, {}).get(name), tuple(r.get(task, {}).get(name) for r in results))
        for task in dict.fromkeys([*directions, *chain(*results)])
        for name in dict.fromkeys([*directions.get(task, {}), *chain(*(r.get(task, {}) for r in results))])
        if any(name in r.get(task, {}) for r in results)
    ]


def by_task(result: Metrics) -> dict[str, Mapping[str, float]]:
    """A split's {task: {metric: number}} without what is of no one task: the total loss."""
    return {task: values for task, values in result.items() if isinstance(values, Mapping)}


def costs(metrics: Metrics) -> Iterator[tuple[str, str, str, str]]:
    """Name, parameters, MACs and latency of the whole network, then of what each task alone needs."""
    cost = metrics.get("cost") or {}
    for name, row in {"all tasks": cost, **cost.get("per_task", {})}.items() if cost else ():
        latency = row.get("latency_ms")
        milliseconds = f"{number(latency)} ms" if latency else "–"
        yield name, count(row.get("params")), count(row.get("macs")), milliseconds


def backbone_cost(metrics: Metrics) -> tuple[str, str] | None:
    """Parameters of the derived backbone, and their change to the backbones of single-task networks."""
    cost = metrics.get("cost") or {}
    own, separate = cost.get("backbone_params"), cost.get("single_task_backbone_params")
    if own is None or not separate:
        return None
    return count(own), f"{100 * (own / separate - 1):+.1f} %"


def spread(values: Sequence[float | None]) -> tuple[str, str, str]:
    """Mean ± standard deviation, the lowest and the highest of those values that are there and finite."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return "–", "–", "–"
    return f"{number(fmean(found))} ± {pstdev(found):.2g}", number(min(found)), number(max(found))


def words(name: str) -> str:
    """A name as it is read: `within_22_5` as "within 22.5"."""
    return re.sub(r"(?<=\d)_(?=\d)", ".", name).replace("_", " ")


def number(value: float | None) -> str:
    """A number with four digits; a dash for none, or for the NaN of a split without labels."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")


def count(value: float | None) -> str:
    """A large number with three digits and a prefix for its thousands: "23.5 M"."""
    if value is None:
        return "–"
    value = float(f"{value:.3g}")
    power = min(int(math.log10(value) // 3), 4) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}".strip()


def duration(seconds: float) -> str:
    """A time as one says it: "61.2 s" only below a minute, else "1 min 01 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def show(metrics: Metrics, console: Console | None = None) -> None:
    """Print each task's metrics, supernet and derived network side by side, the retrained samples', the cost.

    Args:
        metrics: the content of a `metrics.json`.
        console: where to; the terminal by default.
    """
    console = console or Console()
    for split, title in SPLITS.items():
        rows = [
            (row, [Text(number(v), "bold green" if best else "") for v, best in zip(row.values, row.best)])
            for row in compare(metrics, split)
        ]
        _show_rows(console, title, list(networks(metrics)), rows)
    samples = metrics.get("retrained") or ()
    for split, title in SPLITS.items() if len(samples) > 1 else ():
        rows = [
            (row, [Text(spread(row.values)[0]), Text(number(row.values[metrics["chosen"]]))])
            for row in retrained(metrics, split)
        ]
        title = f"{title}, {len(samples)} retrained samples"
        _show_rows(console, title, ["mean ± deviation", "chosen"], rows)
    if cost := list(costs(metrics)):
        table = Table(title="Cost", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("network")
        for name in COSTS:
            table.add_column(name, justify="right")
        for line in cost:
            table.add_row(*map(Text, line))
        console.print(table)
    if shared := backbone_cost(metrics):
        console.print(Text(f"Backbone: {shared[0]} parameters, {shared[1]} against single-task networks"))


def _show_rows(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[tuple[Row, Sequence[Text]]]
) -> None:
    """Print a table of metrics, if there are any, the tasks apart."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("task")
    table.add_column("metric")
    for column in columns:
        table.add_column(column, justify="right")
    task = None
    for row, cells in rows:
        if task not in (None, row.task):
            table.add_section()
        table.add_row(Text(row.task if row.task != task else ""), Text(row.name), *cells)
        task = row.task
    console.print(table)
