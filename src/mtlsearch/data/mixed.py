"""Mixed: several data sets as one, with a task that draws on all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from mtlsearch.data.collate import Collate
from mtlsearch.data.module import SPLITS, TaskData
from mtlsearch.task import Target, Task
from mtlsearch.tasks import Boxes, ClassMap, ImageLabel, from_spec
from mtlsearch.tasks.classification import UNLABELLED as NO_CLASS
from mtlsearch.tasks.segmentation import UNLABELLED

Maps = Mapping[str, Mapping[str, Mapping[str, str | None]]]
Tables = dict[str, np.ndarray]


class Mixed(TaskData):
    """The images of several data sets, shuffled together: a batch may hold images of each.

    Tasks of one name are one task, with the classes of all data sets brought to common ones. For a task that its
    data set does not label an image is unlabelled. What is of a class that leads to no common one is unlabelled,
    if it is a pixel or an image, and left out, if it is a box; so a data set that does not mark all objects of
    the common classes teaches that those it leaves out are background.

    Every data set keeps its own augmentation, and its images have to come out at the size of the others'.
    Batch size and worker processes are those given here.

    Args:
        datasets: `TaskData`, by any name.
        classes: {task: names of the common classes}; by default those of the first data set with the task.
        maps: {task: {data set: {its class: common class, or None for none}}}. A class that is not there leads to
            the common one of its name, if there is one.
        tasks: names of those to take, by default all. A data set without any is left out.
        batch_size, num_workers, seed: as `TaskData` has them.
    """

    def __init__(
        self,
        datasets: Mapping[str, TaskData],
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        maps: Maps | None = None,
        tasks: Sequence[str] | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        owners: dict[str, dict[str, Task]] = {}
        for dataset, datamodule in datasets.items():
            if not isinstance(datamodule, TaskData):
                raise ValueError(
                    f"Data set {dataset!r}: Mixed needs a TaskData, not {type(datamodule).__name__}."
                )
            for task in datamodule.tasks:
                owners.setdefault(task.name, {})[dataset] = task
        chosen = list(owners) if tasks is None else list(dict.fromkeys(tasks))
        for name in [*chosen, *(classes or {}), *(maps or {})]:
            if name not in owners:
                raise ValueError(f"No data set labels a task {name!r}: there are {', '.join(owners)}.")
        super().__init__(
            tasks=[_common(name, owners[name], (classes or {}).get(name)) for name in chosen],
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        used = {dataset for name in chosen for dataset in owners[name]}
        self.datasets = {name: datamodule for name, datamodule in datasets.items() if name in used}
        self.tables: dict[str, Tables] = {dataset: {} for dataset in self.datasets}
        for task in self.tasks:
            for dataset, table in _tables(task, owners[task.name], (maps or {}).get(task.name, {})):
                self.tables[dataset][task.name] = table

    def prepare_data(self) -> None:
        for datamodule in self.datasets.values():
            datamodule.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_dataset"):
            return
        for datamodule in self.datasets.values():
            datamodule.setup(stage)
        self.collate = Collate({task.name: task.target for task in self.tasks})
        self.train_dataset, self.val_dataset, self.test_dataset = (
            self._mix({name: getattr(d, f"{split}_dataset") for name, d in self.datasets.items()})
            for split in SPLITS
        )

    def samples(self, split: str) -> Mixture:
        return self._mix({name: datamodule.samples(split) for name, datamodule in self.datasets.items()})

    def _mix(self, parts: Mapping[str, Any]) -> Mixture:
        targets = {task.name: task.target for task in self.tasks}
        return Mixture([Mapped(name, part, targets, self.tables[name]) for name, part in parts.items()])


class Mixture(ConcatDataset):
    """Data sets end to end, which all hear of the epoch."""

    def set_epoch(self, epoch: int) -> None:
        for part in self.datasets:
            part.set_epoch(epoch)  # type: ignore[attr-defined]


class Mapped(Dataset):
    """A data set's samples with the common classes.

    Args:
        name: of the data set.
        samples: its samples, augmented or not.
        targets: the kind of label by task.
        tables: by task the common class id of each of its own, -1 for none.
    """

    def __init__(self, name: str, samples: Any, targets: Mapping[str, Target], tables: Tables) -> None:
        self.name, self.samples, self.targets, self.tables = name, samples, targets, tables

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.samples, "set_epoch"):
            self.samples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {key: value for key, value in self.samples[index].items() if value is not None}
        sample["name"] = f"{self.name}/{sample.get('name', index)}"
        for task in self.tables.keys() & sample.keys():
            sample[task] = relabel(self.targets[task], sample[task], self.tables[task])
        return sample


def relabel(target: Target, label: Any, table: np.ndarray) -> Any:
    """A label with other class ids.

    Args:
        target: its kind, of class ids.
        table: the new id of each old one, -1 where it is to be unlabelled or, a box, left out.
    """
    if isinstance(target, Boxes):
        ids = table[label["labels"]]
        return {"boxes": label["boxes"][ids >= 0], "labels": ids[ids >= 0]}
    none = UNLABELLED if isinstance(target, ClassMap) else NO_CLASS
    ids = table[np.where(label == none, 0, label)]
    return np.where((label == none) | (ids < 0), none, ids)


def _common(name: str, owners: Mapping[str, Task], classes: Sequence[str] | None) -> Task:
    """The task for all data sets that label it."""
    (first, task), *others = owners.items()
    own = getattr(task.target, "class_names", None)
    for other, another in others:
        fits = type(another.target) is type(task.target)
        if not fits or (own is None and vars(another.target) != vars(task.target)):
            raise ValueError(f"The data sets {first!r} and {other!r} label {name!r} in two ways: rename one.")
    if classes is None or list(classes) == own:
        return task
    if own is None or task.spec is None:
        raise ValueError(
            f"The classes of the task {name!r} cannot be set: it is not a built-in one with classes."
        )
    arguments = {**task.spec["arguments"], "num_classes": len(classes), "class_names": list(classes)}
    return from_spec(name, {**task.spec, "arguments": arguments})


def _tables(
    task: Task, owners: Mapping[str, Task], maps: Mapping[str, Mapping[str, str | None]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each data set whose class ids are not the common ones, and its table."""
    common: list[str] = getattr(task.target, "class_names", [])
    if unknown := set(maps) - set(owners):
        raise ValueError(
            f"maps: no data set {min(unknown)!r} labels {task.name!r}, only {', '.join(owners)} do."
        )
    reached: set[str | None] = set()
    for dataset, owner in owners.items():
        own: list[str] = getattr(owner.target, "class_names", [])
        leads = {name: name if name in common else None for name in own} | dict(maps.get(dataset, {}))
        for name, to in leads.items():
            if name not in own or not (to is None or to in common):
                wrong, known = (name, own) if name not in own else (to, common)
                raise ValueError(
                    f"maps: {task.name!r} of {dataset!r} leads from {name!r} to {to!r}, but there is no "
                    f"{wrong!r} among {known}."
                )
        reached |= set(leads.values())
        table = np.array([-1 if leads[name] is None else common.index(str(leads[name])) for name in own], int)
        if own != common or (table != np.arange(len(own))).any():
            if isinstance(owner.target, ImageLabel) and owner.target.soft:
                raise ValueError(
                    f"Data set {dataset!r}: the probabilities of {task.name!r} are of other classes than the "
                    "common ones, and cannot be mapped. Take hard labels."
                )
            yield dataset, table
    if missing := [name for name in common if name not in reached]:
        raise ValueError(
            f"No class of any data set leads to {missing[0]!r} of {task.name!r}: mend maps or classes."
        )
