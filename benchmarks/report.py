"""What every benchmark ends in: a table on the terminal and, with --json FILE, a file."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
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
    print_table(title, rows)
    if arguments.json is not None:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        content = {"title": title, "threads": torch.get_num_threads(), **versions, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def seeds_parser(description: str | None, *, seeds: Sequence[int], dir: str) -> argparse.ArgumentParser:
    """The command line of a benchmark that is run once a seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--dir", type=Path, default=Path(dir), help="holds the runs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    return parser


def finish(
    title: str, rows: Sequence[Row], arguments: argparse.Namespace, *, width: int | None = None
) -> None:
    """The end of a benchmark that is run once a seed."""
    print_table(title, rows, width=width)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"seeds": arguments.seeds, "rows": rows}, indent=1) + "\n")


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; of one value, that."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def print_table(title: str, rows: Sequence[Row], *, width: int | None = None) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*(show(row.get(name)) for name in names))
    Console(width=width).print(table)


def show(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
