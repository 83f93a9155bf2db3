"""Which runs are one system: read from the runs' files alone, of which nothing is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from mtlsearch.report.tables import Metrics
from mtlsearch.rundir import Settings, near, read, read_metrics

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
        """What the system is called, or else the searcher on the command line, or else its class."""
        named = self.settings.get("system") or self.overrides.get("searcher")
        return str(named or class_of(self.settings.get("searcher")))

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
        inside.sort(key=_natural)
        own = (
            [path] if (path / "config.yaml").exists() else [f for f in inside if (f / "config.yaml").exists()]
        )
        if not own:
            raise ValueError(f"{path} is not the folder of a run, and there is none in it.")
        folders |= dict.fromkeys(folder.resolve() for folder in own)
    return [_read(folder) for folder in folders]


def _natural(folder: Path) -> list[str | int]:
    """To sort by: a sweep's tenth job comes after its second."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(folder))]


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


def flat(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings, each with its dotted name."""
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from flat(value, f"{name}.{key}".lstrip("."))
    else:
        yield name, settings


def _said(value: Any) -> str:
    """A setting as YAML has it, but for none."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _what(value: Any) -> Any:
    """A setting, but for the folder of a run, which each seed has its own, what that run is."""
    if isinstance(value, str) and "/" in value and (Path(value) / "config.yaml").exists():
        return f"a run of {_read(Path(value)).searcher}"
    return value


def class_of(node: Any) -> str:
    """The name of the class that a node of the settings names."""
    target = node.get("_target_", "") if isinstance(node, Mapping) else node
    return str(target or "?").rpartition(".")[2]
