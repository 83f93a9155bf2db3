"""Folders of runs that nobody ran."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from mtlsearch.report import side_by_side

DIRECTIONS = {"semantic": {"miou": True}, "depth": {"error": False}}
CLASSES = {"single_task": "SingleTask", "hard_sharing": "HardSharing", "adashare": "AdaShare", "mtan": "MTAN"}


def make_run(
    folder: Path,
    searcher: str = "single_task",
    seed: int = 0,
    values: tuple[float, float] | None = (0.5, 2.0),
    *,
    images: int = 1000,
    directions=None,
    breakdowns=None,
    split: str = "test",
    macs: float = 1e9,
    params: int = 1_000_000,
    extra: dict | None = None,
    dataset: dict | None = None,
    tiles: bool = False,
    **settings,
) -> Path:
    """A run with these values of its metrics, in the order of `directions`; None: it is not finished."""
    directions = directions or DIRECTIONS
    config = {
        "searcher": {"_target_": f"mtlsearch.{CLASSES.get(searcher, searcher)}", **(extra or {})},
        "backbone": {"_target_": "mtlsearch.backbones.load", "name": "resnet18", "pretrained": False},
        "dataset": {
            "_target_": "mtlsearch.data.scenes.Scenes",
            "train": 40,
            "batch_size": 4,
            **(dataset or {}),
        },
        "tasks": list(directions),
        "head": "light",
        "seed": seed,
        "objective": "val/loss",
        **settings,
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    overrides = [f"searcher={searcher}", f"seed={seed}"]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if values is None:
        return folder
    found = iter(values)
    measured = {task: {metric: next(found) for metric in metrics} for task, metrics in directions.items()}
    metrics = {
        "val": measured,
        split: measured,
        "directions": directions,
        "breakdowns": breakdowns or {},
        "cost": {"params": params, "backbone_params": params // 2, "macs": macs, "latency_ms": 2.5},
        "seconds": {"search": 30.0, "train": 60.0},
        "carried": ["train"],
        "budget": {"images": images, "search_images": 50},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if tiles:
        shown = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        guess = np.full((2, 8, 8, 3), 40 * seed, np.uint8)
        pictures = {"image": shown, "semantic/truth": shown[::-1], "semantic/prediction": guess}
        (folder / "figures").mkdir()
        (folder / side_by_side.FILE).write_bytes(side_by_side.encode(pictures))
    return folder
