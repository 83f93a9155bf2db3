"""The order in which images are drawn: a function of seed and epoch, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data.distributed import DistributedSampler


def processes() -> tuple[int, int]:
    """This process's number and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def epoch_of(datamodule: Any) -> int:
    """The epoch that a datamodule's Trainer is about to train: samplers hear of it after workers were started."""
    trainer = datamodule.trainer
    return trainer.fit_loop.epoch_progress.current.processed if trainer is not None else 0


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

    @property
    def num_batches(self) -> int:
        """Batches an epoch."""
        return len(self.indices) // (self._step * self.part[1])

    def batches(self, round: int = 0) -> list[list[int]]:
        """This process's batches of the epoch; every further round has another order."""
        rank, world = processes()
        order = np.random.default_rng([self.seed, self.epoch, round]).permutation(self.indices)
        number, parts = self.part
        steps = order[: self.num_batches * parts * self._step].reshape(-1, parts, self._step)
        batches: list[list[int]] = steps[:, number, rank::world].tolist()
        return batches

    def __len__(self) -> int:
        _, world = processes()
        return self.num_batches * self._step // world

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.batches())

    def split(self, fraction: float | None, seed: int) -> tuple[Shuffled, Shuffled]:
        """Two samplers of disjoint batches.

        Args:
            fraction: of the images for the second, always the same ones; None: both draw from all, anew every
                epoch.
            seed: of the split and of the order.
        """
        settings: dict[str, Any] = {"seed": seed, "batch_size": self.batch_size}
        if fraction is None:
            one, two = (Shuffled(self.dataset, indices=self.indices, part=(i, 2), **settings) for i in (0, 1))
            return one, two
        order = np.random.default_rng(seed).permutation(self.indices)
        cut = round(len(order) * fraction)
        one, two = (Shuffled(self.dataset, indices=part, **settings) for part in (order[cut:], order[:cut]))
        return one, two


class Interleaved(DistributedSampler[list[int]]):
    """Whole batches of several data sets, as lists of indices; in a step all processes draw from the same one.

    Args:
        samplers: of each data set, by its name.
        seed: of the order.
        together: a step takes a batch of every data set. The largest one makes an epoch, the others start over
            in another order. Otherwise it takes one of one: all batches of all, each once an epoch, those of
            every data set spread evenly over it.
    """

    def __init__(self, samplers: Mapping[str, Shuffled], *, seed: int, together: bool) -> None:
        self.samplers = dict(samplers)
        self.seed = seed
        self.together = together
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        for sampler in self.samplers.values():
            sampler.set_epoch(epoch)

    def __len__(self) -> int:
        counts = [sampler.num_batches for sampler in self.samplers.values()]
        return max(counts) if self.together else sum(counts)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, for it has to read the epoch when the first batch is wanted: Lightning sets it after iter().
        yield from self._together() if self.together else self._in_turn()

    def _together(self) -> Iterator[list[int]]:
        steps = zip(*(_rounds(sampler) for sampler in self.samplers.values()))
        return (list(chain(*step)) for step in islice(steps, len(self)))

    def _in_turn(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        placed: list[tuple[float, int, list[int]]] = []
        for number, sampler in enumerate(self.samplers.values()):
            batches, start = sampler.batches(), rng.random()
            placed += [((i + start) / len(batches), number, batch) for i, batch in enumerate(batches)]
        return (batch for _, _, batch in sorted(placed))

    def split(self, fraction: float | None, seed: int) -> tuple[Interleaved, Interleaved]:
        """Each data set split as by `Shuffled.split`."""
        pairs = {}
        for name, sampler in self.samplers.items():
            with named(name):
                pairs[name] = sampler.split(fraction, seed)
        one, two = (
            Interleaved({name: pair[i] for name, pair in pairs.items()}, seed=seed, together=self.together)
            for i in (0, 1)
        )
        return one, two


def _rounds(sampler: Shuffled) -> Iterator[list[int]]:
    """Its batches, round after round without end."""
    return chain.from_iterable(sampler.batches(round) for round in count())


@contextmanager
def named(dataset: str) -> Iterator[None]:
    """Name the data set in an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Data set {dataset!r}: {error}") from error


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


class InTurn(DistributedSampler[list[int]]):
    """All indices of several data sets, one after another, in batches that hold images of one only.

    Args:
        sizes: of each data set the number of images, and how many make a batch of one process.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = list(sizes)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = processes()
        start = 0
        for size, batch_size in self.sizes:
            own = range(start + rank, start + size, world)
            for first in range(0, len(own), batch_size):
                yield list(own[first : first + batch_size])
            start += size


def is_indexed(loader: Any) -> bool:
    """Whether a loader makes batches of one size of a data set with a length."""
    dataset: Any = getattr(loader, "dataset", None)
    has_length = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    return has_length and loader.batch_size is not None
