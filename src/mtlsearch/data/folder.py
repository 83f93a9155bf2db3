"""A data set of your own: images in one folder, each task's labels in another, matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from mtlsearch.data.augment import Augment, Sample, check_size, resize, resize_label
from mtlsearch.data.encodings import Depth, Edges, Encoding, Keypoints, Normals, Segmentation
from mtlsearch.data.matching import Item, match
from mtlsearch.data.module import TaskData
from mtlsearch.data.reading import read_image
from mtlsearch.nn.heads import HeadChoice
from mtlsearch.task import Task


class Folder(TaskData):
    """Images and labels as they lie in a folder.

    An image may lack the labels of any task. `setup` raises a ValueError with all labels that have no image,
    all tasks that have no label, and so on; what is wrong inside a file is a ValueError when it is read. Each
    line names its file.

    Args:
        root: the folder; all paths are relative to it.
        image: the template of the images' paths, whose `{name}` matches them with their labels. With
            `{split}` in it, each split has a folder of its own.
        labels: how the labels of each task are stored (`mtlsearch.data.encodings`). By default what lies in
            folders called semantic (its class names a line each in `classes.txt`), normals, depth, edges and
            keypoints.
        tasks: the names of those to take; by default all of `labels`.
        splits: for `train`, `val` and `test` what `{split}` stands for, by default the same word; or without
            `{split}` a file with the name of an image on each line, or the fraction of the images that is
            drawn, by default 0.7, 0.15 and 0.15, and at least one image.
        split_seed: of that draw. It is not `seed`, so that runs of several seeds have the same test images.
        resize: (H, W) to which images are brought for training and evaluation, their field of view kept.
        cache: keep in memory what was read and resized. Each worker process would keep its own.
        head: of the tasks that label every pixel.
        batch_size, num_workers, augment, seed: as `TaskData` has them.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image: str = "images/{name}.*",
        labels: Mapping[str, Encoding] | None = None,
        tasks: Sequence[str] | None = None,
        splits: Mapping[str, str | float] | None = None,
        split_seed: int = 0,
        resize: Sequence[int] | None = None,
        cache: bool = False,
        head: HeadChoice = "light",
        batch_size: int = 16,
        num_workers: int = 0,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise ValueError(f"{root} is no folder: root names the one that holds images and labels.")
        labels = labels or _usual(root)
        if unknown := set(tasks or ()) - set(labels):
            raise ValueError(f"There are labels for the tasks {list(labels)}, not for {sorted(unknown)}.")
        chosen = {name: labels[name] for name in tasks or labels}
        super().__init__(
            tasks=[encoding.task(name, head) for name, encoding in chosen.items()],
            batch_size=batch_size,
            num_workers=num_workers,
            augment=augment,
            seed=seed,
        )
        self.root = root
        self.image = image
        self.labels = chosen
        self.splits = dict(splits or {})
        self.split_seed = split_seed
        self.resize = None if resize is None else check_size("resize", resize)
        self.cache = cache

    def samples(self, split: str) -> FolderSamples:
        return FolderSamples(self, self.items[split])

    @cached_property
    def items(self) -> dict[str, list[Item]]:
        """What belongs together, by split."""
        return match(self.root, self.image, self.labels, self.splits, self.split_seed)

    @cached_property
    def first(self) -> tuple[Path, tuple[int, ...]]:
        """The first image that can be read, and its (H, W), which all have where they are not resized."""
        for item in chain(*self.items.values()):
            with suppress(ValueError):
                return item.image, read_image(item.image).shape[:2]
        raise ValueError(f"{self.root}: none of its images can be read.")

    def read(self, item: Item) -> Sample:
        """The sample of an item. A ValueError has a line for each file that something is wrong with."""
        image = read_image(item.image)
        size = image.shape[:2]
        if self.resize is None and size != self.first[1]:
            raise ValueError(
                f"{item.image}: its size is {_by(size)}, that of {self.first[0]} is {_by(self.first[1])}. "
                "Bring all images to one size by resize=[height, width]."
            )
        sample: Sample = {"name": item.name, "image": image}
        problems = []
        for task in self.tasks:
            if (source := item.labels.get(task.name)) is None:
                continue
            try:
                sample[task.name] = self._label(task, source, size)
            except ValueError as error:
                problems.append(f"{source}: {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return sample if self.resize is None else resize(sample, {}, self.resize)

    def _label(self, task: Task, source: Any, size: tuple[int, int]) -> Any:
        """The label of an image of this size, as the task wants it."""
        encoding = self.labels[task.name]
        label = encoding.read(source)
        if task.target.dense and label.shape[-2:] != size:
            raise ValueError(f"its size is {_by(label.shape[-2:])}, that of the image is {_by(size)}.")
        label = task.target.fit(label, size)
        if self.resize is not None:
            label = resize_label(task.target, label, size, self.resize)
        label = encoding.finish(label)
        task.target.check(label)
        return label


class FolderSamples:
    """The samples of one split, read when they are asked for.

    Args:
        folder: has `read(item)`, and `cache`: whether to keep what was read.
        items: what it reads.
    """

    def __init__(self, folder: Any, items: Sequence[Any]) -> None:
        self.folder = folder
        self.items = items
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        if index in self.kept:
            return dict(self.kept[index])
        sample: Sample = self.folder.read(self.items[index])
        if self.folder.cache:
            self.kept[index] = dict(sample)
        return sample


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _usual(root: Path) -> dict[str, Encoding]:
    """The encodings of the folders that are called as the usual tasks."""
    usual: dict[str, Encoding] = {
        "normals": Normals("normals/{name}.*"),
        "depth": Depth("depth/{name}.*"),
        "edges": Edges("edges/{name}.*"),
        "keypoints": Keypoints("keypoints/{name}.*"),
    }
    if (root / "semantic").is_dir():
        try:
            classes = (root / "classes.txt").read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise ValueError(
                f"{root / 'semantic'} holds class ids, but of which classes? Write their names, a line each, "
                f"into {root / 'classes.txt'}, or describe the labels by `labels`."
            ) from error
        names = [name.strip() for name in classes if name.strip()]
        usual = {"semantic": Segmentation("semantic/{name}.*", classes=names), **usual}
    present = {name: encoding for name, encoding in usual.items() if (root / name).is_dir()}
    if not present:
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise ValueError(
            f"Nothing says where the labels are: {root} has the folders {folders}; without `labels` those "
            "called semantic, normals, depth, edges and keypoints are taken. Describe yours by `labels`, as "
            "conf/experiment/camvid.yaml does."
        )
    return present
