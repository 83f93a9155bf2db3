"""PerTask: a data set for each task, or for some of them, in place of one that labels all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Sampler

from mtlsearch.data.module import Samples
from mtlsearch.data.sampling import Interleaved, InTurn, Shuffled, epoch_of, is_indexed, named
from mtlsearch.namespace import pl
from mtlsearch.task import Task


class PerTask(pl.LightningDataModule):
    """Several datamodules, each of which labels some of the tasks, as one.

    A batch holds images of one data set, and no targets but of its tasks: a training step takes the losses of
    these. All batches of all data sets make an epoch, those of each spread evenly over it. With `together` a
    training batch is {"parts": [a batch of each data set]}, and a step takes all losses; the largest data set
    makes the epoch, the others start over. Validation and test take every image once, one data set after
    another.

    Args:
        datasets: datamodules with `tasks`, by any name. Their loaders give data set, batch size and collate
            function; the order is drawn here.
        together: take a batch of every data set in a step.
        tasks: names of those to take, by default all. A data set without any is left out.
        seed: of the order.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        *,
        together: bool = False,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        known = _owners(datasets)
        if unknown := [name for name in tasks or () if name not in known]:
            raise ValueError(f"No data set labels a task {unknown[0]!r}: there are {', '.join(known)}.")
        chosen = [known[name] for name in (known if tasks is None else dict.fromkeys(tasks))]
        if not chosen:
            raise ValueError("PerTask needs at least one data set with a task.")
        self.tasks = [task for _, task in chosen]
        used = {name for name, _ in chosen}
        self.datasets = {name: datamodule for name, datamodule in datasets.items() if name in used}
        self.together = together
        self.seed = seed

    def prepare_data(self) -> None:
        for datamodule in self.datasets.values():
            datamodule.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        for datamodule in self.datasets.values():
            datamodule.trainer = self.trainer
            datamodule.setup(stage or "fit")

    def samples(self, split: str) -> Samples:
        """The samples of "train", "val" or "test", one data set after another."""
        return ConcatDataset([datamodule.samples(split) for datamodule in self.datasets.values()])

    def train_dataloader(self) -> DataLoader:
        loaders = self._loaders("train_dataloader")
        joined = Joined(loaders.values(), self.together)
        samplers = {}
        for (name, loader), indices in zip(loaders.items(), joined.indices):
            with named(name):
                samplers[name] = Shuffled(
                    joined, seed=self.seed, batch_size=loader.batch_size, indices=indices
                )
        sampler = Interleaved(samplers, seed=self.seed, together=self.together)
        sampler.set_epoch(epoch_of(self))
        return _loader(loaders, joined, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._in_turn("val_dataloader")

    def test_dataloader(self) -> DataLoader:
        return self._in_turn("test_dataloader")

    def _in_turn(self, hook: str) -> DataLoader:
        loaders = self._loaders(hook)
        sizes = [(len(loader.dataset), loader.batch_size) for loader in loaders.values()]
        return _loader(loaders, Joined(loaders.values()), InTurn(sizes))

    def _loaders(self, hook: str) -> dict[str, Any]:
        """The data sets' own."""
        loaders = {name: getattr(datamodule, hook)() for name, datamodule in self.datasets.items()}
        for name, loader in loaders.items():
            if not is_indexed(loader):
                raise ValueError(
                    f"Data set {name!r}: PerTask needs a DataLoader with a batch_size over a data set with a "
                    f"length, which {hook}() does not give."
                )
        return loaders


class Joined(ConcatDataset):
    """The data sets of several loaders end to end. A list of indices gives a whole batch.

    Args:
        together: indices of several data sets give {"parts": [a batch of each]}.
    """

    def __init__(self, loaders: Iterable[DataLoader], together: bool = False) -> None:
        loaders = list(loaders)
        super().__init__([loader.dataset for loader in loaders])
        self.collates = [loader.collate_fn for loader in loaders]
        self.together = together

    @property
    def indices(self) -> list[range]:
        """Those of each data set."""
        ends = self.cumulative_sizes
        return [range(start, end) for start, end in zip([0, *ends], ends)]

    def set_epoch(self, epoch: int) -> None:
        for dataset in self.datasets:
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)

    def __getitem__(self, indices: Sequence[int]) -> Any:
        sample = super().__getitem__
        batches = [
            self.collates[number](list(map(sample, own)))
            for number, own in groupby(indices, partial(bisect_right, self.cumulative_sizes))
        ]
        return {"parts": batches} if self.together else batches[0]


def _owners(datasets: Mapping[str, Any]) -> dict[str, tuple[str, Task]]:
    """The tasks and which data set labels them, by the tasks' names."""
    known: dict[str, tuple[str, Task]] = {}
    for name, datamodule in datasets.items():
        for task in datamodule.tasks:
            if task.name in known:
                raise ValueError(
                    f"The data sets {known[task.name][0]!r} and {name!r} both label a task {task.name!r}: "
                    "rename one, for the same labels on other images are another task."
                )
            known[task.name] = (name, task)
    return known


def _loader(loaders: Mapping[str, Any], joined: Joined, sampler: Sampler) -> DataLoader:
    """A loader of all, which reads as the data sets' own do."""
    return DataLoader(
        joined,
        batch_size=None,  # an index of the sampler's is a batch
        sampler=sampler,
        num_workers=max(loader.num_workers for loader in loaders.values()),
        collate_fn=_as_it_is,
        pin_memory=any(loader.pin_memory for loader in loaders.values()),
    )


def _as_it_is(batch: Any) -> Any:
    return batch
