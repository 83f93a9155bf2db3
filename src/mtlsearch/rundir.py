"""The folder of a run: who may work in it, and with which settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

Settings = dict[str, Any]

FOLDER = "MTLSEARCH_RUN"
"""The environment variable that tells a process which the first one starts in which folder to work."""


def is_first() -> bool:
    """Whether this process is the first of a run, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables, and in the end restore all as they were."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def claim(dir: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and tell processes that are started meanwhile to work in it.

    Raises:
        ValueError: another run is at work there.
    """
    if not is_first():
        yield
        return
    from filelock import FileLock, Timeout

    try:
        with FileLock(dir / ".lock", timeout=0), environment(**{FOLDER: str(dir.resolve())}):
            yield
    except Timeout:
        raise ValueError(f"Another process is at work in {near(dir)}.") from None


@contextmanager
def released(dir: Path) -> Iterator[None]:
    """Leave a folder free for other settings where these are refused before anything is made of them."""
    try:
        yield
    except ValueError:
        if is_first() and {entry.name for entry in dir.iterdir()} <= {"config.yaml", ".hydra", ".lock"}:
            (dir / "config.yaml").unlink(missing_ok=True)
            (dir / ".hydra" / "overrides.yaml").unlink(missing_ok=True)
        raise


def read(dir: Path) -> Settings:
    """The settings of the run in a folder; a ValueError that says what the folder is instead."""
    path = dir / "config.yaml"
    if (dir / "multirun.yaml").exists():
        raise ValueError(f"{dir} is a sweep: give its command again, with hydra.sweep.dir={dir}, to go on.")
    if not path.exists():
        raise ValueError(f"{path} is not there: {dir} is not the folder of a run that has begun.")
    settings: Settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


def is_finished(dir: Path) -> bool:
    """Whether a run has nothing left to do: the report is written last."""
    return (dir / "metrics.json").exists() and (dir / "report.html").exists()


def read_metrics(dir: Path) -> dict[str, Any]:
    """The content of the `metrics.json` of a finished run."""
    metrics: dict[str, Any] = json.loads((dir / "metrics.json").read_text())
    return metrics


def value(metrics: Mapping[str, Any], name: str) -> float | None:
    """The value of `val/loss` or `val/TASK/METRIC`; None where it was not measured."""
    found: Any = metrics
    for part in name.split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return None if found is None else float(found)


def difference(old: Any, new: Any, path: str = "") -> str:
    """The first setting in which two runs differ, in words; empty if there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = (difference(old.get(key), new.get(key), f"{path}.{key}".lstrip(".")) for key in old | new)
        return next(filter(None, found), "")
    return "" if old == new else f"{path} is {old} there and {new} here"


def near(path: Path) -> str:
    """A path as one types it: relative where it lies below the working folder."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
