"""Which runs are one system, and whether systems may stand in one table: read from the runs' files alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from mtlsearch.report.tables import Metrics
from mtlsearch.rundir import Settings, near, read, read_metrics

KINDS = ("data", "splits", "tasks", "budget")
"""In what runs have to agree."""
TOLERANCE = 0.05
"""How far budgets may lie apart, as a fraction of the largest: epochs are whole."""
INCIDENTAL = {
    "seed",
    "objective",
    "logger",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "dataset.num_workers",
    "dataset.cache",
    "dataset.cache_dir",
}
"""Settings in which the runs of one system may differ."""
TRAINING = {"batch_size", "num_workers", "augment", "cache", "cache_dir"}
"""Settings of a data set that say how it is trained on, not what it is."""
SPLITS = {"splits", "split_seed", "train", "val", "test"}


@dataclass(frozen=True)
class Run:
    """A run's folder, with what is written there.

    Args:
        folder: of the run.
        settings: the content of its `config.yaml`.
        overrides: the settings of its command line.
        metrics: the content of its `metrics.json`; None while it is not finished.
    """

    folder: Path
    settings: Settings
    overrides: Mapping[str, str]
    metrics: Metrics | None

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def searcher(self) -> str:
        """What the searcher is called on the command line, or else its class."""
        return self.overrides.get("searcher") or class_of(self.settings.get("searcher"))

    @property
    def is_single_task(self) -> bool:
        return class_of(self.settings.get("searcher")) == "SingleTask"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The settings that make its system, by their dotted names."""
        return {
            name: _what(value)
            for name, value in flat(self.settings)
            if not any(name == given or name.startswith(f"{given}.") for given in INCIDENTAL)
        }


@dataclass(frozen=True)
class System:
    """Runs that differ in nothing but the seed, in the order of their seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> dict[int, Metrics]:
        """The metrics of the finished runs by seed."""
        return {run.seed: run.metrics for run in self.runs if run.metrics is not None}

    @property
    def is_single_task(self) -> bool:
        return self.runs[0].is_single_task


def find(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in folders: each that of a run, or one that holds runs at any depth, as that of a sweep.

    Raises:
        ValueError: a folder without a run; a file in it that cannot be read.
    """
    folders: dict[Path, None] = {}
    for path in map(Path, paths):
        inside = [found.parent.parent for found in path.rglob(".hydra/overrides.yaml")]
        inside.sort(key=lambda folder: (len(folder.name), folder))  # a sweep's tenth job after its second
        own = (
            [path] if (path / "config.yaml").exists() else [f for f in inside if (f / "config.yaml").exists()]
        )
        if not own:
            raise ValueError(f"{path} is not the folder of a run, and there is none in it.")
        folders |= dict.fromkeys(folder.resolve() for folder in own)
    return [_read(folder) for folder in folders]


def _read(folder: Path) -> Run:
    overrides = folder / ".hydra" / "overrides.yaml"
    try:
        given = yaml.safe_load(overrides.read_text(encoding="utf-8")) if overrides.exists() else []
        settings = read(folder)
        metrics = read_metrics(folder) if (folder / "metrics.json").exists() else None
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{near(folder)} holds a file that cannot be read: {error}") from error
    if not isinstance(settings, dict) or not isinstance(metrics, dict | None):
        raise ValueError(f"{near(folder)}: config.yaml and metrics.json must each hold a mapping.")
    return Run(folder, settings, overrides_of(given or []), metrics)


def overrides_of(lines: Sequence[Any]) -> dict[str, str]:
    """The settings of a command line, by name."""
    pairs = [str(line).partition("=") for line in lines]
    return {name.lstrip("+~"): value for name, _, value in pairs}


def group(runs: Sequence[Run]) -> list[System]:
    """The systems of some runs, in the order of their first ones, single-task networks before all.

    Raises:
        ValueError: two finished runs of one system have the same seed.
    """
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        own = found.setdefault(json.dumps(run.identity, sort_keys=True, default=str), {})
        other = own.get(run.seed)
        if other is not None and run.metrics is not None and other.metrics is not None:
            raise ValueError(
                f"{near(other.folder)} and {near(run.folder)} are one system with the same seed: leave one out."
            )
        if other is None or run.metrics is not None:
            own[run.seed] = run
    systems = [tuple(own[seed] for seed in sorted(own)) for own in found.values()]
    systems.sort(key=lambda own: not own[0].is_single_task)
    return [System(name, own) for name, own in zip(_names([own[0] for own in systems]), systems)]


def _names(runs: Sequence[Run]) -> list[str]:
    """The searchers' names, and where they are not enough the settings that differ."""
    names = []
    for run in runs:
        like = [other.identity for other in runs if other.searcher == run.searcher]
        keys = dict.fromkeys(chain(*like))
        differing = [key for key in keys if len({json.dumps(i.get(key), default=str) for i in like}) > 1]
        settings = [f"{key.rpartition('.')[2]} {_said(run.identity.get(key))}" for key in differing]
        names.append(f"{run.searcher} ({', '.join(settings)})" if settings else run.searcher)
    return names


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
        yield "tasks", f"the tasks {pair} are {_listed(tasks[0])} and {_listed(tasks[1])}"
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
        names, seeds: of searchers that have to be there, and the seeds; by default those of the systems.
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
    there = {run.searcher for system in systems for run in system.runs}
    return lines + [f"{name}: not begun" for name in names if name not in there]


def flat(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings, each with its dotted name."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from flat(value, f"{name}.{key}".lstrip("."))
    else:
        yield name, settings


def _said(value: Any) -> str:
    return (
        {None: "none", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, list)
        else str(value)
    )


def _what(value: Any) -> Any:
    """A setting, but for the folder of a run, which each seed has its own, what that run is."""
    if isinstance(value, str) and "/" in value and (Path(value) / "config.yaml").exists():
        return f"a run of {_read(Path(value)).searcher}"
    return value


def class_of(node: Any) -> str:
    """The name of the class that a node of the settings names."""
    target = node.get("_target_", "") if isinstance(node, Mapping) else node
    return str(target or "?").rpartition(".")[2]
