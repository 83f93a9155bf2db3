"""Bilevel: one batch for the weights and another, disjoint one for the arch parameters, in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from mtlsearch.data.per_task import PerTask
from mtlsearch.data.sampling import Interleaved, Shuffled, epoch_of, is_indexed
from mtlsearch.namespace import pl


class Bilevel(pl.LightningDataModule):
    """Splits the training data of any datamodule whose loader has a map-style data set, or of a `PerTask`, each
    data set on its own.

    A training batch is {"weights": batch, "arch": batch}; validation and test are the datamodule's own.

    Args:
        datamodule: whose `train_dataloader` gives data set, batch size and collate function.
        redraw: draw both batches from all the data, anew every epoch, for searches that do not retrain.
            Otherwise each group keeps its own part for the whole search.
        arch_fraction: of the data for the arch parameters, without `redraw`.
        tasks: of a `PerTask` only the data sets that label one of these.
        seed: of the split and the order.
    """

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        *,
        redraw: bool = False,
        arch_fraction: float = 0.5,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if tasks is not None and isinstance(datamodule, PerTask):
            datamodule = PerTask(
                datamodule.datasets, together=datamodule.together, tasks=tasks, seed=datamodule.seed
            )
        if not 0 < arch_fraction < 1:
            raise ValueError(f"arch_fraction must lie between 0 and 1, not {arch_fraction}.")
        self.datamodule = datamodule
        self.redraw = redraw
        self.arch_fraction = arch_fraction
        self.seed = seed

    def prepare_data(self) -> None:
        self.datamodule.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        self.datamodule.trainer = self.trainer
        self.datamodule.setup(stage or "fit")

    def train_dataloader(self) -> Mapping[str, DataLoader]:
        loader = self.datamodule.train_dataloader()
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, Interleaved):
            if not is_indexed(loader):
                raise ValueError(
                    "Bilevel needs a DataLoader with a batch_size over a data set with a length, not "
                    f"{type(loader).__name__} over {type(getattr(loader, 'dataset', None)).__name__}: let "
                    "train_dataloader() give {'weights': ..., 'arch': ...} itself."
                )
            sampler = Shuffled(loader.dataset, seed=self.seed, batch_size=loader.batch_size)
        weights, arch = sampler.split(None if self.redraw else self.arch_fraction, self.seed)
        for part in (weights, arch):
            part.set_epoch(epoch_of(self))
        return {"weights": self._loader(loader, weights), "arch": self._loader(loader, arch)}

    def val_dataloader(self) -> Any:
        return self.datamodule.val_dataloader()

    def test_dataloader(self) -> Any:
        return self.datamodule.test_dataloader()

    @staticmethod
    def _loader(like: DataLoader, sampler: Shuffled | Interleaved) -> DataLoader:
        return DataLoader(
            like.dataset,
            batch_size=like.batch_size,
            sampler=sampler,
            num_workers=like.num_workers,
            collate_fn=like.collate_fn,
            pin_memory=like.pin_memory,
        )
