"""AdaShare against what it has to beat: single-task networks, hard sharing, and random policies of its size.

ResNet-18 on rendered scenes of 32x32, three tasks; every network that is evaluated has seen as many images. The
best of two sampled policies is chosen on validation data, for AdaShare and for the random ones. Finished runs are
not repeated.

    python benchmarks/policies.py [--seeds 0 1 2] [--dir runs/policies] [--collect] [--json FILE]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import finish, seeds_parser, spread

from mtlsearch.report.delta import delta_m

SYSTEMS = {
    "single-task": ["searcher=single_task"],
    "hard sharing": ["searcher=hard_sharing"],
    "AdaShare": ["searcher=adashare"],
    "random #1": ["searcher=random_policy", "searcher.like={adashare}", "searcher.per_task=false"],
    "random #2": ["searcher=random_policy", "searcher.like={adashare}"],
}
COLUMNS = {
    "mIoU": ("semantic", "miou", 3),
    "mean angle, degrees": ("normals", "mean_angle", 2),
    "depth error, m": ("depth", "absolute_error", 3),
}


def run(seed: int, dir: Path) -> None:
    """All systems of one seed, each by a command of its own."""
    folder = {name: dir / f"seed{seed}" / name.replace(" ", "_").replace("#", "") for name in SYSTEMS}
    for name, overrides in SYSTEMS.items():
        given = [override.format(adashare=folder["AdaShare"]) for override in overrides]
        command = ["experiment=adashare/small", f"seed={seed}", f"hydra.run.dir={folder[name]}", *given]
        print(f"{name}, seed {seed}: python -m mtlsearch.run {' '.join(command)}", flush=True)
        subprocess.run([sys.executable, "-m", "mtlsearch.run", *command], check=True)


def read(dir: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((dir / "metrics.json").read_text())
    metrics["architecture"] = json.loads((dir / "architecture.json").read_text())
    return metrics


def rows(seeds: list[int], dir: Path) -> list[dict[str, Any]]:
    """Per system, mean and standard deviation over the seeds whose runs are finished, on test data."""
    table = []
    gains: dict[str, dict[int, float]] = {}
    for name in SYSTEMS:
        folders = {seed: dir / f"seed{seed}" / name.replace(" ", "_").replace("#", "") for seed in seeds}
        done = [seed for seed, folder in folders.items() if (folder / "metrics.json").exists()]
        if not done:
            continue
        found = [read(folders[seed]) for seed in done]
        references = [read(dir / f"seed{seed}" / "single-task") for seed in done]
        row: dict[str, Any] = {"system": name, "seeds": ", ".join(map(str, done))}
        for column, (task, metric, digits) in COLUMNS.items():
            row[column] = spread([m["test"][task][metric] for m in found], digits)
        deltas = [delta_m(m["test"], r["test"], r["directions"]) for m, r in zip(found, references)]
        for task in deltas[0]:
            row[f"delta_m {task}, %"] = spread([delta[task] for delta in deltas], 1)
        gains[name] = {seed: delta["all"] for seed, delta in zip(done, deltas)}
        own = [m["cost"]["backbone_params"] for m in found]
        single = [r["cost"]["backbone_params"] for r in references]
        row["backbone parameters, %"] = spread([100 * (a / b - 1) for a, b in zip(own, single)], 1)
        row["MACs, M"] = spread([m["cost"]["macs"] / 1e6 for m in found], 0)
        selects = [m["architecture"].get("select") for m in found]
        if all(selects):
            row["blocks run"] = "; ".join("/".join(str(sum(on)) for on in s.values()) for s in selects if s)
        row["seconds"] = spread([sum(m["seconds"].values()) for m in found], 0)
        table.append(row)
    both = [seed for seed in gains.get("AdaShare", {}) if seed in gains.get("hard sharing", {})]
    paired = [gains["AdaShare"][seed] - gains["hard sharing"][seed] for seed in both]
    if len(paired) > 1:
        error = statistics.stdev(paired) / len(paired) ** 0.5
        print(
            f"AdaShare minus hard sharing, delta_m: {statistics.mean(paired):+.2f}, standard error {error:.2f}"
        )
    return table


if __name__ == "__main__":
    parser = seeds_parser(__doc__, seeds=(0, 1, 2), dir="runs/policies")
    parser.add_argument("--collect", action="store_true", help="only the table of the runs that are finished")
    arguments = parser.parse_args()
    for seed in () if arguments.collect else arguments.seeds:
        run(seed, arguments.dir)
    title = "AdaShare on scenes, ResNet-18, test data, mean ± deviation over seeds"
    finish(title, rows(arguments.seeds, arguments.dir), arguments, width=220)
