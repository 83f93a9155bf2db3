"""Whether systems may stand in one table, and what is missing there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from mtlsearch.report.systems import Run, System, flat
from mtlsearch.rundir import Settings, near

KINDS = ("data", "splits", "tasks", "budget")
"""In what runs have to agree."""
TOLERANCE = 0.05
"""How far budgets may lie apart, as a fraction of the largest: epochs are whole."""
TRAINING = {"batch_size", "num_workers", "augment", "cache", "cache_dir"}
"""Settings of a data set that say how it is trained on, not what it is."""
SPLITS = {"splits", "split_seed", "train", "val", "test"}


def check(systems: Sequence[System], allow: Collection[str] = (), tolerance: float = TOLERANCE) -> list[str]:
    """Hold the finished runs against each other; the differences that are allowed, in words.

    Args:
        systems: of finished and other runs.
        allow: in which `KINDS` they may differ.
        tolerance: of budgets.

    Raises:
        ValueError: they differ in something else.
    """
    runs = [run for system in systems for run in system.runs if run.metrics is not None]
    found: dict[str, str] = {}
    for run in runs[1:]:
        for kind, words in _differences(runs[0], run):
            found.setdefault(kind, words)
    if (words := _budgets(systems, tolerance)) and runs:
        found.setdefault("budget", words)
    for kind, words in found.items():
        if kind not in allow:
            raise ValueError(
                f"These runs cannot be compared: {words}. With --allow {kind} they are nevertheless."
            )
    return [f"Not the same in all runs: {words}." for words in found.values()]


def _differences(first: Run, run: Run) -> Iterator[tuple[str, str]]:
    """The kinds in which two runs differ, each with its first difference in words."""
    pair = f"of {near(first.folder)} and {near(run.folder)}"
    sides = [dict(_data(r.settings)) for r in (first, run)]
    for name in dict.fromkeys(chain(*sides)):
        old, new = (side.get(name) for side in sides)
        if old != new:
            kind = "splits" if SPLITS & set(name.split(".")) else "data"
            yield kind, f"{name} {pair} is {old} and {new}"
    tasks = [_tasks(r) for r in (first, run)]
    if tasks[0] != tasks[1]:
        old, new = (list(t) if tasks[0].keys() != tasks[1].keys() else _listed(t) for t in tasks)
        yield "tasks", f"the tasks {pair} are {old} and {new}"
    pretrained = [_pretrained(r.settings) for r in (first, run)]
    if None not in pretrained and pretrained[0] != pretrained[1]:
        yield "budget", f"backbone.pretrained {pair} is {pretrained[0]} and {pretrained[1]}"


def _data(settings: Settings) -> Iterator[tuple[str, Any]]:
    """What a run is evaluated on, and what it may learn from."""
    for name, value in flat({"dataset": settings.get("dataset")}):
        if not TRAINING & set(name.split(".")):
            yield name, value
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        yield f"trainer.{name}", (settings.get("trainer") or {}).get(name)


def _tasks(run: Run) -> dict[str, list[str]]:
    directions = (run.metrics or {}).get("directions", {})
    return {task: sorted(directions[task]) for task in sorted(directions)}


def _listed(tasks: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{task} ({', '.join(metrics)})" for task, metrics in tasks.items()) or "none"


def _pretrained(settings: Settings) -> bool | None:
    """Whether a backbone starts from pretrained weights; None where there is no such backbone."""
    backbone = settings.get("backbone")
    return bool(backbone.get("pretrained")) if isinstance(backbone, dict) and backbone else None


def _budgets(systems: Sequence[System], tolerance: float) -> str:
    """That the budgets are too far apart, in words; empty where they are not."""
    images: dict[str, list[int]] = {}
    for system in systems:
        for metrics in system.finished.values():
            found = (metrics.get("budget") or {}).get("images")
            if found is None:
                return f"a run of {system.name} does not say how many labelled images its weights have seen"
            images.setdefault(system.name, []).append(found)
    if not images:
        return ""
    least, most = min(images, key=lambda n: min(images[n])), max(images, key=lambda n: max(images[n]))
    low, high = min(images[least]), max(images[most])
    if high - low <= tolerance * high:
        return ""
    return (
        f"the weights of {least} have seen {low:,} labelled images and those of {most} {high:,}, more than "
        f"{100 * tolerance:g} % apart"
    )


def missing(systems: Sequence[System], names: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[str]:
    """The runs that a full table would have and that are not finished, in words.

    Args:
        systems: that are there.
        names, seeds: of searchers or systems that have to be there, and the seeds; by default those of the systems.
    """
    wanted = sorted({run.seed for system in systems for run in system.runs} | set(seeds))
    lines = []
    for system in systems:
        begun = {run.seed: run for run in system.runs}
        for seed in wanted:
            if seed not in begun:
                lines.append(f"{system.name}, seed {seed}: not begun")
            elif begun[seed].metrics is None:
                lines.append(f"{system.name}, seed {seed}: not finished, {near(begun[seed].folder)}")
    runs = [run for system in systems for run in system.runs]
    there = {name for run in runs for name in (run.searcher, run.overrides.get("system"))}
    return lines + [f"{name}: not begun" for name in names if name not in there]
