"""The order in which images are drawn: a function of seed and epoch, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data.distributed import DistributedSampler


def processes() -> tuple[int, int]:
    """This process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Shuffled(DistributedSampler[int]):
    """Indices in a new order every epoch, of which each process takes every n-th.

    It is a DistributedSampler for Lightning's sake, which puts one in the place of any other sampler.
    The images of one step are the same whether one process draws them or several do. What does not fill a
    batch in every process is left for another epoch.

    Args:
        dataset: gets the epoch too, by `set_epoch`, if it takes it.
        seed: of the order.
        batch_size: of one process.
        indices: those to draw from; by default all.
        part: (i, n): only the i-th of n batches in a row, so that n samplers of one seed draw disjoint
            batches.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: int,
        batch_size: int,
        indices: Sequence[int] | np.ndarray | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self.indices = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        self.part = part
        self.epoch = 0
        _, world = processes()
        # A set smaller than a batch is one batch; its sampler must give all that it has.
        self._step = min(batch_size * world, len(self.indices) // part[1] // world * world)
        if self._step == 0:
            raise ValueError(
                f"{len(self.indices)} training images are too few for {part[1]} disjoint batches in {world} "
                "process(es): use more images."
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        _, world = processes()
        return len(self.indices) // (self._step * self.part[1]) * self._step // world

    def __iter__(self) -> Iterator[int]:
        rank, world = processes()
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.indices)
        number, parts = self.part
        batches = order[: len(order) // (self._step * parts) * self._step * parts].reshape(
            -1, parts, self._step
        )
        return iter(batches[:, number].ravel()[rank::world].tolist())


class InOrder(DistributedSampler[int]):
    """All indices in order, of which each process takes every n-th: none twice, none left out."""

    def __init__(self, dataset: Any) -> None:
        self.size = len(dataset)

    def __len__(self) -> int:
        rank, world = processes()
        return len(range(rank, self.size, world))

    def __iter__(self) -> Iterator[int]:
        rank, world = processes()
        return iter(range(rank, self.size, world))
