"""What a finished run shows: figures, one self-contained page, and the tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mtlsearch.report import figures, page, tables
from mtlsearch.task import Task

__all__ = ["figures", "page", "tables", "write"]


def write(
    run_dir: str | Path,
    *,
    network: nn.Module | None = None,
    tasks: Sequence[Task] = (),
    batch: Mapping[str, Any] | None = None,
) -> Path:
    """Draw the figures of a run and write its `report.html`, whose path is returned; see `figures.write`."""
    figures.write(run_dir, network=network, tasks=tasks, batch=batch)
    return page.write(run_dir)
