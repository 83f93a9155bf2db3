"""The comparison of systems: a row a system, mean and spread over seeds, best and second best marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean, stdev

from mtlsearch.budget import training_seconds
from mtlsearch.report.agreement import missing
from mtlsearch.report.delta import delta_m, without_reference
from mtlsearch.report.numbers import counted, gained, measured, timed, whole
from mtlsearch.report.remarks import chosen, unequal
from mtlsearch.report.systems import System
from mtlsearch.report.tables import ARROWS, SPLITS, Metrics, by_task, words

DELTA, COST, TRAINING = "delta_m, %", "cost", "training"
Values = tuple[float | None, ...]
Show = Callable[[float, float | None], str]


@dataclass(frozen=True)
class Column:
    """One number of every system.

    Args:
        group: what it belongs to: a task, or "delta_m, %", "cost", "training".
        name: of the number.
        higher_is_better: its direction; None: it is not judged.
        values: for each system those of its finished runs, in the order of seeds; None where there is none.
        show: writes a mean and its deviation.
    """

    group: str
    name: str
    higher_is_better: bool | None
    values: tuple[Values, ...]
    show: Show

    @property
    def title(self) -> str:
        """The name in words, with an arrow towards the better."""
        return f"{words(self.name)}\N{NO-BREAK SPACE}{ARROWS[self.higher_is_better]}".strip()

    @property
    def means(self) -> list[float | None]:
        """By system; None where no run has the number."""
        return [fmean(found) if (found := _there(values)) else None for values in self.values]

    @property
    def deviations(self) -> list[float | None]:
        """The standard deviation of a sample, by system; None where fewer than two runs have the number."""
        return [stdev(found) if len(found := _there(values)) > 1 else None for values in self.values]

    @property
    def marks(self) -> list[str]:
        """By system "best", "second" or nothing, by the mean; nothing at all where there is nothing to choose."""
        found = [mean for mean in self.means if mean is not None]
        ranks = sorted(set(found), reverse=bool(self.higher_is_better))
        if self.higher_is_better is None or len(ranks) < 2:
            return [""] * len(self.values)
        named = dict(zip(ranks, ("best", "second")))
        return ["" if mean is None else named.get(mean, "") for mean in self.means]

    @property
    def texts(self) -> list[str]:
        """Mean ± deviation of every system."""
        return [
            "–" if mean is None else self.show(mean, deviation)
            for mean, deviation in zip(self.means, self.deviations)
        ]


def _there(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class Comparison:
    """The table and all that has to be said about it.

    Args:
        systems: the rows.
        columns: in groups.
        split: on which the metrics are: "val" or "test".
        missing: runs that are not there, in words.
        notes: what a reader has to know.
    """

    systems: tuple[System, ...]
    columns: tuple[Column, ...]
    split: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [words(system.name) for system in self.systems]

    @property
    def seeds(self) -> list[str]:
        """Those of each system's finished runs."""
        return [", ".join(map(str, system.finished)) or "–" for system in self.systems]

    @property
    def groups(self) -> dict[str, list[Column]]:
        groups: dict[str, list[Column]] = {}
        for column in self.columns:
            groups.setdefault(column.group, []).append(column)
        return groups

    @property
    def overview(self) -> list[Column]:
        """The numbers to begin with: a task's first metric, delta_m of all, the size, the work, and the search."""
        own = {
            DELTA: ("all",),
            COST: ("parameters", "MACs"),
            TRAINING: ("images of the search", "time of the search"),
        }
        return [c for group, cs in self.groups.items() for c in cs if c.name in own.get(group, (cs[0].name,))]

    def row(self, folder: Path) -> int | None:
        """The row of the system that the run in a folder belongs to."""
        rows = (i for i, s in enumerate(self.systems) if folder.resolve() in (run.folder for run in s.runs))
        return next(rows, None)

    def column(self, group: str, name: str) -> Column | None:
        """One column; None where there is none."""
        return next((c for c in self.columns if (c.group, c.name) == (group, name)), None)


def compare(
    systems: Sequence[System],
    *,
    split: str | None = None,
    notes: Sequence[str] = (),
    names: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> Comparison:
    """Make the table of systems that may be compared, see `agreement.check`.

    Args:
        systems: at least one with a finished run.
        split: "val" or "test"; by default the test data where all runs have them.
        notes: to put before its own.
        names, seeds: of searchers and the seeds that a full table has.

    Raises:
        ValueError: no run is finished, or none has the split; several systems are single-task networks.
    """
    finished = [metrics for system in systems for metrics in system.finished.values()]
    if not finished:
        raise ValueError("None of these runs is finished: there is nothing to compare yet.")
    split = split or ("test" if all(metrics.get("test") for metrics in finished) else "val")
    if not all(metrics.get(split) for metrics in finished):
        raise ValueError(f"Not all of these runs have metrics on {split!r}.")
    reference = _reference(systems)
    columns = _metrics(systems, split)
    said = list(notes)
    if reference is None:
        said.append("No delta_m: there is no run of single_task among these.")
    else:
        gains, remarks = _gains(systems, reference, split)
        columns += gains
        said += remarks
    columns += _costs(systems, reference)
    said += [*unequal(systems), *chosen(systems)]
    return Comparison(
        tuple(systems), tuple(columns), split, tuple(missing(systems, names, seeds)), tuple(said)
    )


def _reference(systems: Sequence[System]) -> System | None:
    """The single-task networks."""
    found = [system for system in systems if system.is_single_task and system.finished]
    if len(found) > 1:
        raise ValueError(
            f"delta_m is against one system of single-task networks, and here are {len(found)}: "
            f"{', '.join(system.name for system in found)}. Leave the others out."
        )
    return found[0] if found else None


def _column(
    systems: Sequence[System],
    group: str,
    name: str,
    higher: bool | None,
    read: Callable[[Metrics, int], float | None],
    show: Show,
) -> Column:
    values = tuple(tuple(read(metrics, seed) for seed, metrics in s.finished.items()) for s in systems)
    return Column(group, name, higher, values, show)


def _metrics(systems: Sequence[System], split: str) -> list[Column]:
    """Every metric that any of the runs has, in the order of the directions."""
    runs = [metrics for system in systems for metrics in system.finished.values()]
    names: dict[tuple[str, str], bool | None] = {}
    for metrics in runs:
        directions, found = metrics.get("directions", {}), by_task(metrics[split])
        for task in chain(directions, found):
            for name in chain(directions.get(task, ()), found.get(task, ())):
                if any(name in by_task(other[split]).get(task, ()) for other in runs):
                    names.setdefault((task, name), directions.get(task, {}).get(name))
    return [
        _column(systems, task, name, higher, _metric(split, task, name), measured)
        for (task, name), higher in names.items()
    ]


def _metric(split: str, task: str, name: str) -> Callable[[Metrics, int], float | None]:
    return lambda metrics, seed: by_task(metrics[split]).get(task, {}).get(name)


def _gains(systems: Sequence[System], reference: System, split: str) -> tuple[list[Column], list[str]]:
    """delta_m of each task and of all, and what was left out of it."""
    notes: dict[str, None] = {}
    gains: dict[int, dict[str, float]] = {}
    for system in systems:
        for seed, metrics in system.finished.items():
            base = reference.finished.get(seed)
            if base is None:
                notes[f"No delta_m of seed {seed}: there is no finished run of single_task with it."] = None
                continue
            directions = _counted(base)
            own, separate = by_task(metrics[split]), by_task(base[split])
            try:
                gains[id(metrics)] = delta_m(own, separate, directions)
            except ValueError as error:
                notes[f"{words(system.name)}, seed {seed}: {error}"] = None
            for task, name in without_reference(separate, directions):
                notes[
                    f"delta_m leaves out {words(name)} of {task} for seed {seed}: single-task networks have 0 "
                    "there, of which there is no percentage."
                ] = None
    tasks = dict.fromkeys(chain(*gains.values()))
    order = [task for task in tasks if task != "all"] + ["all"] if tasks else []

    def read(task: str) -> Callable[[Metrics, int], float | None]:
        return lambda metrics, seed: gains.get(id(metrics), {}).get(task)

    return [_column(systems, DELTA, task, True, read(task), gained) for task in order], list(notes)


def _counted(metrics: Metrics) -> dict[str, dict[str, bool]]:
    """The directions of the metrics that delta_m counts: not those that break down another."""
    breakdowns = metrics.get("breakdowns", {})
    return {
        task: {name: higher for name, higher in directions.items() if name not in breakdowns.get(task, ())}
        for task, directions in metrics["directions"].items()
    }


def _costs(systems: Sequence[System], reference: System | None) -> list[Column]:
    """What the networks cost to run, and what they have cost to make."""

    def cost(name: str) -> Callable[[Metrics, int], float | None]:
        return lambda metrics, seed: (metrics.get("cost") or {}).get(name)

    def share(metrics: Metrics, seed: int) -> float | None:
        own = (metrics.get("cost") or {}).get("backbone_params")
        base = reference.finished.get(seed) if reference is not None else None
        separate = (base or {}).get("cost", {}).get("backbone_params")
        separate = separate or (metrics.get("cost") or {}).get("single_task_backbone_params")
        return 100 * own / separate if own is not None and separate else None

    def images(name: str) -> Callable[[Metrics, int], float | None]:
        return lambda metrics, seed: (metrics.get("budget") or {}).get(name)

    columns = [
        _column(systems, COST, "parameters", None, cost("params"), counted),
        _column(systems, COST, "backbone, % of single-task", None, share, measured),
        _column(systems, COST, "MACs", None, cost("macs"), counted),
        _column(systems, COST, "latency, ms", None, cost("latency_ms"), measured),
        _column(systems, TRAINING, "images", None, images("images"), whole),
        _column(systems, TRAINING, "images of the search", None, images("search_images"), whole),
        _column(systems, TRAINING, "time", None, lambda m, seed: training_seconds(m)[0], timed),
        _column(systems, TRAINING, "time of the search", None, lambda m, seed: training_seconds(m)[1], timed),
    ]
    return [column for column in columns if any(mean is not None for mean in column.means)]


def caption(comparison: Comparison) -> str:
    """What the table shows, in a sentence or two."""
    several = any(len(system.finished) > 1 for system in comparison.systems)
    spread = "Mean ± standard deviation over seeds. " if several else ""
    breakdowns = [
        names
        for system in comparison.systems
        for metrics in system.finished.values()
        for names in metrics.get("breakdowns", {}).values()
    ]
    parts = ", ".join(map(words, dict.fromkeys(chain(*breakdowns))))
    but = f" but {parts}, which break down another," if parts else ","
    delta = (
        " delta_m: the mean relative change to the single-task networks of the same seed over the metrics of a "
        f"task{but} and over the tasks, in percent; more is better."
        if any(column.group == DELTA for column in comparison.columns)
        else ""
    )
    return (
        f"{spread}{SPLITS[comparison.split]} data. Arrows point to the better; the best is bold, the second best "
        f"underlined.{delta} Images: labelled ones that the weights of the evaluated network have seen, "
        "pre-training included; of the search: all others."
    )
