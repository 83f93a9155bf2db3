"""What the minimum-entropy term does: γ = 0 and 10, w_TI = 0.5 and 1, at the same data, steps and rates.

ResNet-18 on rendered scenes of 32x32, semantic and normals, fusion layers that start as in the paper. Each seed
trains its single-task networks once; from them start the four searches. Finished runs are not repeated.

    python benchmarks/entropy.py [--seeds 0 1 2] [--dir runs/entropy] [--json FILE]
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from report import finish, seeds_parser, spread

import mtlsearch as ms
from mtlsearch.data.scenes import Scenes

SINGLE, SEARCH = 5, 9  # epochs: 185 steps of 16 images, then 162 steps of 16 + 16
HEAD = {"name": "light", "finest": 2}
OPTIMIZER = partial(torch.optim.AdamW, lr=2e-3, fused=True)
SYSTEMS: dict[str, dict[str, Any]] = {
    **{
        f"γ = {gamma:g}, w_TI {w_ti}": {"entropy_weight": gamma, "init_w_ti": w_ti}
        for gamma in (10.0, 0.0)
        for w_ti in (1.0, 0.5)
    },
}
COLUMNS = {"mIoU": ("semantic", "miou", 3), "angle": ("normals", "mean_angle", 2)}


def trainer(stage: str) -> pl.Trainer:
    return pl.Trainer(
        max_epochs={"single_task": SINGLE, "search": SEARCH}.get(stage, 1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=SEARCH,
        accelerator="cpu",
    )


def run(seed: int, dir: Path) -> None:
    """All systems of one seed."""
    data = Scenes(size=32, head=HEAD, seed=seed)
    single = dir / f"seed{seed}" / "single_task"
    settings: dict[str, Any] = {"backbone": "resnet18", "optimizer": OPTIMIZER, "seed": seed}
    ms.search(ms.SingleTask(data.tasks, **settings), data, trainer=trainer, dir=single)
    for name, system in SYSTEMS.items():
        searcher = ms.MTLNAS(data.tasks, init=single, fusion_bn_init="standard", **settings, **system)
        ms.search(searcher, data, trainer=trainer, dir=dir / f"seed{seed}" / name)


def rows(seeds: list[int], dir: Path) -> list[dict[str, Any]]:
    """Per system, mean and standard deviation over seeds, on validation data."""
    table = []
    for name in ("single_task", *SYSTEMS):
        runs = [dir / f"seed{seed}" / name for seed in seeds]
        runs = [run for run in runs if (run / "metrics.json").exists()]
        row: dict[str, Any] = {"system": name, "seeds": str(len(runs))}
        metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
        for kind in ("supernet", "derived"):
            for column, (task, metric, digits) in COLUMNS.items():
                values = [
                    m["supernet"]["val"][task][metric] if kind == "supernet" else m["val"][task][metric]
                    for m in metrics
                    if kind == "derived" or "supernet" in m
                ]
                if values:
                    row[f"{kind} {column}"] = spread(values, digits)
        architectures = [json.loads((run / "architecture.json").read_text()) for run in runs]
        searched = [[c["probability"] for c in a["candidates"] if "probability" in c] for a in architectures]
        if all(searched):
            near = [sum(min(p, 1 - p) <= 0.05 for p in ps) / len(ps) for ps in searched]
            row["within 0.05 of 0 or 1"] = f"{min(near):.0%} to {max(near):.0%}"
            row["edges"] = ", ".join(f"{len(a['edges'])}/{len(a['candidates'])}" for a in architectures)
            deviations = [
                statistics.pstdev(s["semantic"]["miou"] for s in m["samples"])
                for m in metrics
                if m["samples"]
            ]
            if deviations:
                row["deviation of ten samples, mIoU"] = f"{statistics.mean(deviations):.3f}"
        table.append(row)
    return table


if __name__ == "__main__":
    arguments = seeds_parser(__doc__, seeds=(0, 1, 2), dir="runs/entropy").parse_args()
    for seed in arguments.seeds:
        run(seed, arguments.dir)
    title = "MTL-NAS on scenes, ResNet-18, validation, mean ± deviation over seeds"
    finish(title, rows(arguments.seeds, arguments.dir), arguments, width=180)
