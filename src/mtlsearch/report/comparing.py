"""From the folders of runs to their comparison: checked, shown and written."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mtlsearch import files
from mtlsearch.report import formats
from mtlsearch.report.agreement import TOLERANCE, check
from mtlsearch.report.comparison import Comparison, compare
from mtlsearch.report.comparison_page import page
from mtlsearch.report.systems import find, group
from mtlsearch.rundir import near


def run(
    paths: Sequence[str | Path],
    *,
    output: Path | None = None,
    allow: Collection[str] = (),
    tolerance: float = TOLERANCE,
    split: str | None = None,
    names: Sequence[str] = (),
    seeds: Sequence[int] = (),
    command: Sequence[str] = (),
    console: Console | None = None,
) -> Comparison:
    """Compare runs, show the table and write it.

    Args:
        paths: as for `systems.find`.
        output: the folder of the files; by default the one in which the runs lie.
        allow, tolerance: as for `agreement.check`.
        split, names, seeds: as for `comparison.compare`.
        command: that led here, for the page.
        console: where to show it; the terminal by default.

    Raises:
        ValueError: no runs, or runs that cannot be compared.
    """
    console = console or Console()
    runs = find(paths)
    systems = group(runs)
    notes = check(systems, allow, tolerance)
    result = compare(systems, split=split, notes=notes, names=names, seeds=seeds)
    formats.terminal(result, console)
    if output is None:
        output = Path(os.path.commonpath([run.folder.parent for run in runs]))
    for name, content in contents(result, command).items():
        files.write(output / name, content)
    console.print(
        Text(f"Comparison: {near(output / 'comparison.html')}, and .md, .tex and .csv"), soft_wrap=True
    )
    return result


def contents(comparison: Comparison, command: Sequence[str] = ()) -> dict[str, str]:
    """The files of a comparison by name."""
    return {
        "comparison.md": formats.markdown(comparison),
        "comparison.tex": formats.latex(comparison),
        "comparison.csv": formats.csv_of_systems(comparison),
        "comparison_runs.csv": formats.csv_of_runs(comparison),
        "comparison.html": page(comparison, command),
    }
