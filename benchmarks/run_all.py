"""Run every benchmark and write what they gave into benchmarks/README.md.

python benchmarks/run_all.py [NAME ...] [--collect]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import show

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BENCHMARKS = ["fusion", "paths", "cells", "entropy", "trade_off", "comparisons"]


def section(name: str) -> str:
    """A benchmark's part of the page: what it is, how it was run and its table."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    document = (HERE / f"{name}.py").read_text().split('"""')[1].strip()
    text, command = document.rsplit("\n\n", 1)
    title = text.splitlines()[0]
    lines = [
        f"## {name}",
        "",
        " ".join(text.split()).replace(title, f"{title}", 1),
        "",
        "```sh",
        command.strip(),
        "```",
        "",
    ]
    setting = {key: value for key, value in content.items() if key not in ("title", "rows")}
    lines += ["; ".join(f"{key}: {value}" for key, value in setting.items()) + ".", ""]
    return "\n".join([*lines, *table(content["rows"]), *notes(name)])


def table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([show(row.get(name)) for name in names] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def notes(name: str) -> list[str]:
    """What a person found in the results, or further tables, kept beside them."""
    return [path.read_text() for path in sorted(RESULTS.glob(f"{name}*.md"))]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=BENCHMARKS, help=f"of {BENCHMARKS}")
    parser.add_argument("--collect", action="store_true", help="only write the page again from the results")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.names if not arguments.collect else ():
        print(f"{name} ...", flush=True)
        subprocess.run([sys.executable, HERE / f"{name}.py", "--json", RESULTS / f"{name}.json"], check=True)
    machine = f"{os.cpu_count()} cores, {platform.system()}, {platform.machine()}"
    page = ["# Benchmarks", "", f"`make bench` runs them all and writes this page. Machine: {machine}.", ""]
    page += [section(name) for name in BENCHMARKS if (RESULTS / f"{name}.json").exists()]
    (HERE / "README.md").write_text("\n".join(page))
