"""Rendered rooms: the data set that needs no download. Rendered once, cached, labelled for ten tasks."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.progress import track

from mtlsearch import files, tasks
from mtlsearch.data import raycast, render, rooms
from mtlsearch.data.augment import Augment
from mtlsearch.data.module import SPLITS, TaskData
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task

DENSE: dict[str, Callable[..., Task]] = {
    "semantic": partial(tasks.segmentation, num_classes=len(rooms.CLASSES), class_names=rooms.CLASSES),
    "normals": tasks.normals,
    "depth": tasks.depth,
    "edges": partial(tasks.edges, channels=2),
    "keypoints": tasks.keypoints,
}
OBJECT = partial(tasks.classification, num_classes=len(rooms.OBJECTS), class_names=rooms.OBJECTS)
SCENE = partial(tasks.classification, num_classes=len(rooms.SCENES), class_names=rooms.SCENES)
OTHERS: dict[str, Callable[..., Task]] = {
    "object": OBJECT,
    "object_soft": partial(OBJECT, soft=True),
    "scene": SCENE,
    "scene_soft": partial(SCENE, soft=True),
    "detection": partial(tasks.detection, num_classes=len(rooms.SHAPES), class_names=rooms.SHAPES),
}
BOXES = ("boxes", "box_labels", "box_counts")
"""How the cache holds the labels of `detection`."""
FLIP = Augment(flip=0.5)


class Scenes(TaskData):
    """Rooms with spheres, boxes, cylinders and cones, ray-cast with exact labels.

    The same `render_seed` gives the same scenes; the first ones of a larger set are those of a smaller. They
    are rendered at first use, in about 10 ms each at 64x64, and kept in `cache_dir`, else in the folder that
    the environment variable MTLSEARCH_CACHE names, else in `~/.cache/mtlsearch`.

    Args:
        tasks: names of what to predict. For every pixel: semantic (floor, wall, ceiling and the four shapes),
            normals, depth, edges (of textures and of occlusion) and keypoints (visible corners and tips). For
            the image: object (shape and finish of the solid that shows most) and scene (the patterns of walls
            and floor); object_soft and scene_soft are distributions over the same classes, by visible area
            and by how much of walls and floor shows. Further detection: the boxes round what is visible of the
            solids, by shape, from 1/400 of the image on.
        size: height and width in pixels.
        train, val, test: number of images. The splits share no scene.
        labelled: by task, the fraction of the training images that are labelled for it; all by default.
        augment: what is done to training images; None for nothing.
        head: of the tasks that label every pixel.
        seed: of the order and the augmentation.
    """

    def __init__(
        self,
        tasks: Iterable[str] = ("semantic", "normals"),
        *,
        size: int = 64,
        train: int = 600,
        val: int = 150,
        test: int = 150,
        labelled: Mapping[str, float] | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        augment: Augment | None = FLIP,
        head: HeadChoice = "light",
        seed: int = 0,
        render_seed: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        tasks = list(tasks)
        for name in [*tasks, *(labelled or {})]:
            check_name(name)
        for name, number in {"size": size, "train": train, "val": val, "test": test}.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}.")
        for name, fraction in (labelled or {}).items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"labelled: the fraction of {name} must be in [0, 1], not {fraction}.")
        super().__init__(
            tasks=[DENSE[n](n, head=head) if n in DENSE else OTHERS[n](n) for n in tasks],
            batch_size=batch_size,
            num_workers=num_workers,
            augment=augment,
            seed=seed,
        )
        self.size = size
        self.counts = {"train": train, "val": val, "test": test}
        self.labelled = dict(labelled or {})
        self.render_seed = render_seed
        self.cache_dir = Path(cache_dir or os.environ.get("MTLSEARCH_CACHE") or "~/.cache/mtlsearch")

    def prepare_data(self) -> None:
        for split in SPLITS:
            self.samples(split)

    def samples(self, split: str) -> Samples:
        keys = [task.name for task in self.tasks]
        folder = self.cache_dir.expanduser() / "scenes" / f"{self.size}px-seed{self.render_seed}-{version()}"
        stored = [part for key in keys for part in (BOXES if key == "detection" else (key,))]
        arrays = load(folder, split, self.counts[split], self.size, self.render_seed, ["image", *stored])
        labels: dict[str, Any] = {key: arrays[key] for key in ["image", *keys] if key != "detection"}
        if "detection" in keys:
            labels["detection"] = divide(*(arrays[key] for key in BOXES))
        known = {}
        for number, name in enumerate([*DENSE, *OTHERS]):
            if split == "train" and name in self.labelled:
                chance = np.random.default_rng([self.render_seed, number]).random(self.counts[split])
                known[name] = chance < self.labelled[name]
        return Samples(split, labels, known)


class Samples:
    """Images and labels, less the labels that are not `known`.

    Args:
        labels: by task, and the images by "image", each as `load` returns it or as `divide` does.
        known: by task, which images are labelled; all where it has no entry.
    """

    def __init__(
        self, split: str, labels: Mapping[str, Sequence[Any]], known: Mapping[str, np.ndarray]
    ) -> None:
        self.split, self.labels, self.known = split, labels, known

    def __len__(self) -> int:
        return len(self.labels["image"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"name": f"{self.split}-{index:05d}"}
        for key, labels in self.labels.items():
            if key not in self.known or self.known[key][index]:
                sample[key] = expand(key, labels[index])
        return sample


def check_name(name: str) -> None:
    known = [*DENSE, *OTHERS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise ValueError(f"Scenes has no task {name!r}: did you mean {near!r}? Known are {', '.join(known)}.")


# The cache


@cache
def version() -> str:
    """A fingerprint of the renderer, so that no scene of another version is taken for one of this."""
    source = "".join(inspect.getsource(module) for module in (rooms, raycast, render))
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def load(
    folder: Path, split: str, count: int, size: int, seed: int, keys: Iterable[str]
) -> dict[str, np.ndarray]:
    """The images and labels `keys` of a split, from the cache or rendered into it, by one process at a time.

    Raises:
        OSError: where the cache cannot be written, with the file's name.
    """
    path = folder / f"{split}-{count}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    return {key: stored[key] for key in keys}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                print(f"{path} is damaged ({error}): rendering it anew.")
        arrays = render_split(split, count, size, seed)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        files.write(path, buffer.getvalue())
    return {key: arrays[key] for key in keys}


def render_split(split: str, count: int, size: int, seed: int) -> dict[str, np.ndarray]:
    """`count` scenes: images and labels by name, stacked, but the boxes of all images one after another."""
    samples = []
    for index in track(range(count), f"Rendering {count} {split} scenes"):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        sample = render.render(rooms.draw(rng), rng, size)
        samples.append({key: compress(key, label) for key, label in sample.items()})
    boxes = {"box_counts": np.array([len(sample["boxes"]) for sample in samples])}
    for key in "boxes", "box_labels":
        boxes[key] = np.concatenate([sample.pop(key) for sample in samples])
    return boxes | {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def divide(boxes: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The boxes of each image, of which all stand one after another."""
    ends = counts.cumsum()[:-1]
    parts = zip(np.split(boxes, ends), np.split(labels, ends))
    return [{"boxes": own, "labels": ids} for own, ids in parts]


def compress(key: str, label: np.ndarray) -> np.ndarray:
    """The label in as few bytes as it needs; see `expand`."""
    if key in ("edges", "keypoints"):
        return (label * 255 + 0.5).astype(np.uint8)
    return label.astype(np.float16) if key == "normals" else label


def expand(key: str, label: Any) -> Any:
    """The label as a task takes it."""
    if key in ("edges", "keypoints"):
        return label.astype(np.float32) / 255
    if key == "normals":
        vectors: np.ndarray = label.astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=0)
        return vectors
    return label.astype(np.int64) if key == "semantic" else label
