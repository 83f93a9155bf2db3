"""What every benchmark ends in: a table on the terminal and, with --json FILE, a file."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def ratio(what: str, ours: float, plain: float, unit: str, *, at_most: float | None = None) -> Row:
    """A row that compares two measurements."""
    row: Row = {"what": f"{what}, {unit}", "ours": ours, "plain": plain, "ours / plain": ours / plain}
    return row if at_most is None else row | {"at most": at_most}


def main(title: str, benchmark: Callable[[int], list[Row]], *, repeats: int = 7) -> None:
    """The command line of a benchmark."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed runs of which the median counts")
    arguments = parser.parse_args()
    rows = benchmark(arguments.repeats)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*(show(row.get(name)) for name in names))
    Console().print(table)
    if arguments.json is not None:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        content = {"title": title, "threads": torch.get_num_threads(), **versions, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def show(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
