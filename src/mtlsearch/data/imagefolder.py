"""Images for classification as they often lie: a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from mtlsearch.data.augment import Augment, Sample, check_size
from mtlsearch.data.folder import FolderSamples
from mtlsearch.data.module import SPLITS, TaskData, one_name
from mtlsearch.data.reading import SUFFIXES, read_image
from mtlsearch.tasks import classification

PICTURES = SUFFIXES - {".npy", ".npz"}


class Picture(NamedTuple):
    """An image and its class."""

    path: Path
    number: int


class ImageFolder(TaskData):
    """A classification task whose classes are the folders `root/CLASS`, or `root/train/CLASS` and so on.

    Beside `train` there may be `val` and `test` with the same classes. Where one of these is missing, its
    images are drawn from the training images, so that none is used twice.

    Args:
        root: the folder.
        tasks: the name of the one task.
        size: (H, W) to which all images are brought, cut on two sides where their shape is another.
        val, test: what is drawn of each class, as a fraction, where there is no folder of that name.
        split_seed: of that draw. It is not `seed`, so that runs of several seeds have the same test images.
        cache: keep in memory what was read and resized. Each worker process would keep its own.
        head: not used; that of tasks for every pixel, which a run hands to every data set.
        batch_size, num_workers, augment, seed: as `TaskData` has them.

    Raises:
        ValueError: there are fewer than two classes, one has no image to train on, or a split has one that
            train has not; when it is read, an image that cannot be.
    """

    def __init__(
        self,
        root: str | Path,
        tasks: Sequence[str] = ("label",),
        *,
        size: Sequence[int] = (64, 64),
        val: float = 0.15,
        test: float = 0.15,
        split_seed: int = 0,
        cache: bool = False,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: Augment | None = None,
        head: Any = None,
        seed: int = 0,
    ) -> None:
        self.root = Path(root).expanduser()
        self.fractions = {"val": val, "test": test}
        if min(val, test) <= 0 or val + test >= 1:
            raise ValueError(
                f"val and test must be positive fractions whose sum is below 1, not {val}, {test}."
            )
        self.folders = {split: self.root / split for split in SPLITS if (self.root / split).is_dir()}
        if "train" not in self.folders:
            self.folders = {"train": self.root}
        self.classes = _folders(self.folders["train"])
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.folders['train']} has a folder for {len(self.classes)} classes: expected one for each "
                "of at least two, with its images in it."
            )
        super().__init__(
            tasks=[classification(one_name(tasks), num_classes=len(self.classes), class_names=self.classes)],
            batch_size=batch_size,
            num_workers=num_workers,
            augment=augment,
            seed=seed,
        )
        self.size = check_size("size", size)
        self.split_seed = split_seed
        self.cache = cache

    def samples(self, split: str) -> FolderSamples:
        return FolderSamples(self, self.items[split])

    @cached_property
    def items(self) -> dict[str, list[Picture]]:
        """The images and their classes, by split."""
        found = {split: self._pictures(folder) for split, folder in self.folders.items()}
        drawn = [split for split in self.fractions if split not in found]
        items: dict[str, list[Picture]] = {split: [] for split in SPLITS}
        for split, pictures in found.items():
            for number, name in enumerate(self.classes):
                own = [Picture(path, number) for path in pictures.get(name, [])]
                parts = self._draw(own, name, drawn) if split == "train" else {split: own}
                for part in parts:
                    items[part] += parts[part]
        if empty := [split for split in SPLITS if not items[split]]:
            raise ValueError(f"{self.folders[empty[0]]} has no image in any of its folders.")
        return items

    def read(self, item: Picture) -> Sample:
        height, width = self.size
        image = Image.fromarray(read_image(item.path))
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        (task,) = self.tasks
        return {
            "name": item.path.relative_to(self.root).as_posix(),
            "image": np.array(fitted),
            task.name: np.array(item.number, dtype=np.int64),
        }

    def _pictures(self, folder: Path) -> dict[str, list[Path]]:
        """The images below the folder of each class."""
        if unknown := set(_folders(folder)) - set(self.classes):
            raise ValueError(f"{folder / min(unknown)} is of a class that train has not: {self.classes}.")
        return {
            name: [path for path in sorted((folder / name).rglob("*")) if _is_picture(path)]
            for name in _folders(folder)
        }

    def _draw(self, pictures: Sequence[Picture], name: str, drawn: Sequence[str]) -> dict[str, list[Picture]]:
        """A class's images for training, and those for each split without a folder."""
        if len(pictures) <= len(drawn):
            raise ValueError(
                f"{self.folders['train'] / name} has {len(pictures)} images: expected at least "
                f"{len(drawn) + 1}, one for each of {', '.join(['train', *drawn])}."
            )
        rng = np.random.default_rng([self.split_seed, pictures[0].number])
        left, parts = [pictures[i] for i in rng.permutation(len(pictures))], {}
        for number, split in enumerate(drawn, start=1):
            most = len(left) - 1 - len(drawn) + number
            count = min(max(1, round(self.fractions[split] * len(pictures))), most)
            parts[split], left = sorted(left[:count]), left[count:]
        return {"train": sorted(left), **parts}


def _folders(root: Path) -> list[str]:
    """The names of the folders in a folder."""
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: root names the one with a folder for each class.")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()
