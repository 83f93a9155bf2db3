"""Every system at one budget, on scenes and on CamVid: the experiments in conf/experiment/compare.

Each is one command, `python -m mtlsearch.run experiment=compare/NAME -m`, and ends in the table that stands below.
Finished runs are not repeated. CamVid is looked for in the folder that MTLSEARCH_SAMPLES names, and left out where
it is not there. Of each run its settings, numbers and architecture are kept in results/compare, from which
`python -m mtlsearch.compare benchmarks/results/compare/NAME` makes the table and a page.

    python benchmarks/comparisons.py [NAME ...] [--seeds 0 1 2] [--dir compare] [--collect] [--json FILE]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from report import Row, finish, seeds_parser

from mtlsearch.report import comparing

NAMES = ("scenes_3task", "scenes_detection", "camvid_edges", "camvid_detection")
RESULTS = Path(__file__).resolve().parent / "results"
KEPT = ("config.yaml", ".hydra/overrides.yaml", "metrics.json", "architecture.json")


def sweep(name: str, seeds: list[int], dir: Path) -> None:
    """Make the runs of a comparison that are missing."""
    given = [
        f"experiment=compare/{name}",
        "-m",
        f"hydra.sweep.dir={dir}",
        f"seed={','.join(map(str, seeds))}",
    ]
    if name.startswith("camvid"):
        data = Path(os.environ.get("MTLSEARCH_SAMPLES", "../shared/data")) / "camvid"
        if not data.is_dir():
            print(
                f"{name}: left out, {data} is not there; MTLSEARCH_SAMPLES names another folder", flush=True
            )
            return
        given.append(f"dataset.root={data}")
    subprocess.run([sys.executable, "-m", "mtlsearch.run", *given], check=True)


def keep(run: Path, kept: Path) -> None:
    """Copy what tells of a run, without its weights and pictures."""
    for file in KEPT:
        (kept / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / file, kept / file)


def row(name: str, dir: Path) -> Row:
    """How many runs a comparison has, and how long they took; what they are and its table go into the results."""
    result = comparing.run([dir], output=dir)
    page = (dir / "comparison.md").read_text(encoding="utf-8")
    (RESULTS / f"comparisons_{name}.md").write_text(f"### {name}\n\n{page}".replace("\n### ", "\n#### "))
    for system in result.systems:
        for run in system.runs:
            if run.metrics is not None:
                keep(run.folder, RESULTS / "compare" / name / run.folder.relative_to(dir.resolve()))
    runs = [metrics for system in result.systems for metrics in system.finished.values()]
    seconds = [sum(metrics["seconds"].values()) for metrics in runs]
    return {
        "comparison": name,
        "systems": sum(bool(system.finished) for system in result.systems),
        "runs": len(runs),
        "training, hours": sum(seconds) / 3600,
        "longest run, minutes": max(seconds) / 60,
    }


if __name__ == "__main__":
    parser = seeds_parser(__doc__, seeds=(0, 1, 2), dir="compare")
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--collect", action="store_true", help="only tell what the finished runs gave")
    arguments = parser.parse_args()
    for name in arguments.names if not arguments.collect else ():
        sweep(name, arguments.seeds, arguments.dir / name)
    found = [name for name in arguments.names if any((arguments.dir / name).rglob("metrics.json"))]
    finish("comparisons", [row(name, arguments.dir / name) for name in found], arguments)
