"""Compare finished runs: `python -m mtlsearch.compare RUN ...`, each a run's folder or one that holds runs.

Runs that differ in nothing but the seed are one system. The table is shown, and written as Markdown, LaTeX, CSV and
a page. Nothing in the folders is executed, so they may be a stranger's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlsearch.report import comparing
from mtlsearch.report.agreement import KINDS, TOLERANCE


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 is returned, after one line on stderr, where runs cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m mtlsearch.compare", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="a run's folder, or one that holds runs")
    parser.add_argument("--output", type=Path, help="folder of the files; by default where the runs lie")
    parser.add_argument(
        "--allow", nargs="+", choices=KINDS, default=[], help="in what the runs may differ nevertheless"
    )
    parser.add_argument(
        "--tolerance", type=float, default=100 * TOLERANCE, help="percent by which budgets may differ: 5"
    )
    parser.add_argument("--split", choices=("val", "test"), help="by default test, where all runs have it")
    given = parser.parse_intermixed_args(arguments)
    command = ["python", "-m", "mtlsearch.compare", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        comparing.run(
            given.runs,
            output=given.output,
            allow=given.allow,
            tolerance=given.tolerance / 100,
            split=given.split,
            command=command,
        )
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
