"""What AdaShare's two weights do: more sparsity runs fewer blocks, more sharing makes tasks agree.

Searches alone, ResNet-18 on rendered scenes of 32x32, three tasks; blocks count as run where their probability is
above one half. Finished searches are not repeated.

    python benchmarks/trade_off.py [--seeds 0 1] [--dir runs/trade_off] [--json FILE] [--figure docs/trade_off.png]
"""

from __future__ import annotations

import json
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytorch_lightning as pl
import torch
from report import finish, seeds_parser

import mtlsearch as ms
from mtlsearch import files
from mtlsearch.data.scenes import Scenes
from mtlsearch.report.policies import trade_off

EPOCHS = 16
SPARSITY = (0.0, 0.01, 0.05, 0.2)
SHARING = (0.0, 0.005, 0.05, 0.2)
POINTS = [
    *((weight, 0.005) for weight in SPARSITY),
    *((0.01, weight) for weight in SHARING if weight != 0.005),
]
SGD = partial(torch.optim.SGD, lr=0.15, momentum=0.9, weight_decay=1e-4, nesterov=True)
ADAM = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.999))


def point(sparsity_weight: float, sharing_weight: float, seed: int) -> dict[str, Any]:
    """One search, and what its policy comes to."""
    data = Scenes(
        size=32, train=300, val=50, test=50, batch_size=16, tasks=["semantic", "normals", "depth"], seed=seed
    )
    searcher = ms.AdaShare(
        data.tasks,
        "resnet18",
        optimizer=SGD,
        arch_optimizer=ADAM,
        sparsity_weight=sparsity_weight,
        sharing_weight=sharing_weight,
        seed=seed,
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accelerator="cpu",
    )
    trainer.fit(searcher, datamodule=searcher.train_data(data))
    select = list(searcher.derive().select.values())
    pairs = [fmean(a == b for a, b in zip(one, two)) for one, two in combinations(select, 2)]
    return {
        "sparsity_weight": sparsity_weight,
        "sharing_weight": sharing_weight,
        "seed": seed,
        "kept": fmean(on for chosen in select for on in chosen),
        "agreement": fmean(pairs),
    }


if __name__ == "__main__":
    parser = seeds_parser(__doc__, seeds=(0, 1), dir="runs/trade_off")
    parser.add_argument("--figure", type=Path, help="draw them into this file")
    arguments = parser.parse_args()
    points = []
    for seed in arguments.seeds:
        for sparsity_weight, sharing_weight in POINTS:
            path = arguments.dir / f"sparsity{sparsity_weight}_sharing{sharing_weight}_seed{seed}.json"
            if not path.exists():
                files.write(path, json.dumps(point(sparsity_weight, sharing_weight, seed)) + "\n")
            points.append(json.loads(path.read_text()))
    finish("Shares of blocks that are run, and on which two tasks agree", points, arguments)
    if arguments.figure is not None:
        trade_off(points).savefig(arguments.figure, bbox_inches="tight", pad_inches=0.08)
