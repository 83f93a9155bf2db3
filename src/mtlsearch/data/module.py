"""TaskData: what the data sets have in common as Lightning datamodules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mtlsearch.data.augment import Augment
from mtlsearch.data.collate import Collate
from mtlsearch.data.sampling import InOrder, Shuffled, epoch_of
from mtlsearch.namespace import pl
from mtlsearch.task import Target, Task, check_tasks

SPLITS = ("train", "val", "test")


class Samples(Protocol):
    """Samples as a data set holds them: {"image": (H, W, 3) uint8 RGB, task: label, ...}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


class TaskData(pl.LightningDataModule):
    """A datamodule over samples. A data set writes `samples`, and `prepare_data` if it makes files first.

    Order and augmentation depend on seed, epoch and image only. Training drops what does not fill a batch;
    validation and test take every image once, on any number of processes.

    Args:
        tasks: what it labels.
        batch_size: images a batch and process.
        num_workers: processes that read ahead.
        augment: what happens to training images; None: nothing.
        seed: of order and augmentation.
    """

    train_dataset: Dataset
    val_dataset: Dataset
    test_dataset: Dataset

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        batch_size: int = 16,
        num_workers: int = 0,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        self.tasks = check_tasks(tasks)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed

    def samples(self, split: str) -> Samples:
        """The samples of "train", "val" or "test"."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_dataset"):
            return
        targets = {task.name: task.target for task in self.tasks}
        self.collate = Collate(targets)
        self.train_dataset = Augmented(self.samples("train"), targets, self.augment, self.seed)
        self.val_dataset, self.test_dataset = (Augmented(self.samples(s), targets) for s in SPLITS[1:])

    def train_dataloader(self) -> DataLoader:
        sampler = Shuffled(self.train_dataset, seed=self.seed, batch_size=self.batch_size)
        sampler.set_epoch(epoch_of(self))
        return self._loader(self.train_dataset, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val_dataset, InOrder(self.val_dataset))

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_dataset, InOrder(self.test_dataset))

    def _loader(self, dataset: Dataset, sampler: Shuffled | InOrder) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )


class Augmented(Dataset):
    """Samples, augmented by (seed, epoch, index) or as they are."""

    def __init__(
        self, samples: Samples, targets: dict[str, Target], augment: Augment | None = None, seed: int = 0
    ) -> None:
        self.samples = samples
        self.targets = targets
        self.augment = augment
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        if self.augment is None:
            return sample
        seed = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)[0]
        return self.augment(sample, self.targets, int(seed))


def one_name(tasks: Sequence[str]) -> str:
    """The name in `tasks` of a data set that has one task."""
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if len(names) != 1:
        raise ValueError(f"There is one task here, whose name is wanted: found the names {names}.")
    return names[0]
