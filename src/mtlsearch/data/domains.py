"""Rendered rooms in several visual domains, with a classification task in each, as DomainNet has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtlsearch.data.augment import Augment
from mtlsearch.data.module import TaskData
from mtlsearch.data.per_task import PerTask
from mtlsearch.data.scenes import FLIP, OBJECT, Scenes

LUMA = np.array([0.299, 0.587, 0.114])


def sketch(image: np.ndarray) -> np.ndarray:
    """Edges in black on white."""
    light = image @ LUMA
    across, down = np.diff(light, axis=1, append=light[:, -1:]), np.diff(light, axis=0, append=light[-1:])
    lines: np.ndarray = 255 - 6 * np.hypot(across, down)
    return lines.clip(0, 255)


def clipart(image: np.ndarray) -> np.ndarray:
    """Four levels a channel, the darkest and the brightest of the image at the ends."""
    low, high = np.percentile(image, (2, 98))
    levels: np.ndarray = np.floor(4 * (image - low) / max(high - low, 1))
    return 85 * levels.clip(0, 3)


def grey(image: np.ndarray) -> np.ndarray:
    """Faint and without colour, as if printed."""
    faint: np.ndarray = 96 + 0.5 * (image @ LUMA)
    return faint


DOMAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "photo": lambda image: image,
    "sketch": sketch,
    "clipart": clipart,
    "grey": grey,
}
"""What makes of a photograph (H, W, 3) uint8 a picture (H, W, 3) or (H, W) in [0, 255]."""


def domains(
    tasks: Sequence[str] = tuple(DOMAINS),
    *,
    size: int = 64,
    train: int = 200,
    val: int = 50,
    test: int = 50,
    together: bool = False,
    augment: Augment | None = FLIP,
    batch_size: int = 16,
    num_workers: int = 0,
    head: Any = None,
    seed: int = 0,
    render_seed: int = 0,
    cache_dir: str | Path | None = None,
) -> PerTask:
    """A data set for each domain, with a task of its name: shape and finish of the solid that shows most.

    Args:
        tasks: names of domains, of photo, sketch, clipart and grey. No two show the same scene.
        train, val, test: number of images of each domain.
        together: see `PerTask`.
        head: not used; that of tasks for every pixel, which a run hands to every data set.
        others: as for `Scenes`.
    """
    if unknown := [name for name in tasks if name not in DOMAINS]:
        raise ValueError(f"There is no domain {unknown[0]!r}: known are {', '.join(DOMAINS)}.")
    counts: dict[str, Any] = {
        name: len(DOMAINS) * n for name, n in {"train": train, "val": val, "test": test}.items()
    }
    scenes = Scenes(["object"], size=size, render_seed=render_seed, cache_dir=cache_dir, **counts)
    settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "augment": augment}
    datasets = {name: Domain(name, scenes, seed=seed, **settings) for name in tasks}
    return PerTask(datasets, together=together, seed=seed)


class Domain(TaskData):
    """Every fourth scene in the manner of one domain.

    Args:
        name: of the domain and of its task.
        scenes: with the task "object".
        others: as for `TaskData`.
    """

    def __init__(self, name: str, scenes: Scenes, **others: Any) -> None:
        super().__init__(tasks=[OBJECT(name)], **others)
        self.scenes = scenes

    def prepare_data(self) -> None:
        self.scenes.prepare_data()

    def samples(self, split: str) -> list[dict[str, Any]]:
        (task,) = self.tasks
        photographs = self.scenes.samples(split)
        chosen = range(list(DOMAINS).index(task.name), len(photographs), len(DOMAINS))
        return [self._drawn(photographs[index]) for index in chosen]

    def _drawn(self, photograph: dict[str, Any]) -> dict[str, Any]:
        (task,) = self.tasks
        picture = DOMAINS[task.name](photograph["image"])
        if picture.ndim == 2:
            picture = np.stack([picture] * 3, axis=-1)
        return {
            "name": f"{task.name}/{photograph['name']}",
            "image": np.round(picture).astype(np.uint8),
            task.name: photograph["object"],
        }
