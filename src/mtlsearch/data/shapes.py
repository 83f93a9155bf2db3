"""Rendered shapes: a classification set that needs no files, small enough to render at every start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mtlsearch import tasks as kinds
from mtlsearch.data.augment import Augment
from mtlsearch.data.module import SPLITS, TaskData, one_name
from mtlsearch.data.scenes import FLIP

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]

SHAPES: dict[str, Field] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.8,
    "triangle": lambda x, y: (y < 0.55) & (abs(x) < 0.577 * (y + 1.1)),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.7) < 0.28,
}
"""Of places in a shape's own coordinates whether they are in it."""
FINISHES: dict[str, Field] = {
    "striped": lambda x, y: x % 1 < 0.5,
    "checked": lambda x, y: (x % 1 < 0.5) ^ (y % 1 < 0.5),
}
"""Of places in periods whether they have the second colour."""
BACKGROUNDS: dict[str, Field] = {
    "plain": lambda x, y: np.zeros(x.shape, bool),
    "dotted": lambda x, y: np.hypot(x % 1 - 0.5, y % 1 - 0.5) < 0.3,
    **FINISHES,
}
CLASSES = tuple(f"{finish} {shape}" for shape in SHAPES for finish in FINISHES)


class Shapes(TaskData):
    """A shape in each image, in any place, size and colours, a little turned, on a faint pattern: ten classes.

    A class is a shape with its finish, so that both the outline and the texture have to be seen. The same
    `render_seed` gives the same images, which take less than a millisecond each and are kept in memory.

    Args:
        tasks: the name of the one task.
        size: height and width in pixels.
        train, val, test: number of images.
        augment: what is done to training images; None for nothing.
        head: not used; that of tasks for every pixel, which a run hands to every data set.
        seed: of the order and the augmentation.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("label",),
        *,
        size: int = 32,
        train: int = 2000,
        val: int = 400,
        test: int = 400,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: Augment | None = FLIP,
        head: Any = None,
        seed: int = 0,
        render_seed: int = 0,
    ) -> None:
        name = one_name(tasks)
        for key, number in {"size": size, "train": train, "val": val, "test": test}.items():
            if number < 1:
                raise ValueError(f"{key} must be at least 1, not {number}.")
        super().__init__(
            tasks=[kinds.classification(name, num_classes=len(CLASSES), class_names=CLASSES)],
            batch_size=batch_size,
            num_workers=num_workers,
            augment=augment,
            seed=seed,
        )
        self.size = size
        self.counts = {"train": train, "val": val, "test": test}
        self.render_seed = render_seed

    def samples(self, split: str) -> list[dict[str, Any]]:
        (task,) = self.tasks
        samples = []
        for index in range(self.counts[split]):
            rng = np.random.default_rng([self.render_seed, SPLITS.index(split), index])
            number = int(rng.integers(len(CLASSES)))
            label = np.array(number, dtype=np.int64)
            samples.append(
                {"name": f"{split}-{index:05d}", "image": draw(rng, number, self.size), task.name: label}
            )
        return samples


def draw(rng: np.random.Generator, number: int, size: int) -> np.ndarray:
    """An image (H, W, 3) uint8 of an object of class `number`."""
    shape, finish = divmod(number, len(FINISHES))
    centres = (np.arange(2 * size) + 0.5) / size - 1  # two each way in a pixel
    x, y = np.meshgrid(centres, centres)
    ground = list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))]
    half = rng.uniform(0.55, 0.85)
    inside = list(SHAPES.values())[shape](*_turned(rng, x, y, half, reach=1 - half, turn=np.pi / 8))
    object_ = _paint(rng, list(FINISHES.values())[finish], x, y, contrast=1)
    image = np.where(inside[..., None], object_, _paint(rng, ground, x, y, contrast=0.25))
    image = image.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    image += rng.normal(0, rng.uniform(3, 12), image.shape)
    return np.asarray(image.round().clip(0, 255).astype(np.uint8))


def _paint(
    rng: np.random.Generator, pattern: Field, x: np.ndarray, y: np.ndarray, contrast: float
) -> np.ndarray:
    """RGB (H, W, 3) in [0, 255] of a pattern of any turn and period, in a dark and a bright colour."""
    dark, bright = rng.uniform(0, 110, 3), rng.uniform(145, 255, 3)
    colours = rng.permutation([dark, bright])
    colours[1] = colours[0] + contrast * (colours[1] - colours[0])
    second = pattern(*_turned(rng, x, y, rng.uniform(0.3, 0.5), reach=1, turn=np.pi))
    return np.asarray(colours[second.astype(int)])


def _turned(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, unit: float, reach: float, turn: float
) -> tuple[np.ndarray, np.ndarray]:
    """Places in coordinates that are turned by up to `turn`, with the origin up to `reach` from the centre."""
    angle, (left, top) = rng.uniform(-turn, turn), rng.uniform(-reach, reach, 2)
    cos, sin = np.cos(angle) / unit, np.sin(angle) / unit
    return cos * (x - left) + sin * (y - top), cos * (y - top) - sin * (x - left)
