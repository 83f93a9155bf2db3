"""Searcher: trains a supernet's weights and arch parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.architecture import Architecture
from mtlsearch.multitask import Batch, MultiTask
from mtlsearch.optimizers import MakeOptimizer, scaled_optimizer
from mtlsearch.supernet import Supernet

ARCH_ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.999))
"""For searches of a few hundred steps. No weight decay: it would pull probabilities to one half."""


class Searcher(MultiTask):
    """A MultiTask whose network is a supernet, with a second parameter group, "arch".

    An algorithm overrides at most `groups`, `active_tasks`, `regularization`, `anneal`, `arch_step`,
    `first_stage` and `next_stage`. A *phase* is a function of the epoch; a *stage* is a new module with a
    Trainer.fit of its own.

    Args:
        arch_optimizer: makes the optimiser of the arch parameters from parameter groups.
        others: as for `MultiTask`.
    """

    net: Supernet

    def __init__(
        self, supernet: Supernet, *args: Any, arch_optimizer: MakeOptimizer = ARCH_ADAM, **others: Any
    ) -> None:
        super().__init__(supernet, *args, **others)
        self.arch_optimizer = arch_optimizer

    # What an algorithm overrides.

    def groups(self, epoch: int) -> tuple[str, ...]:
        """Weights, then arch parameters, in every step."""
        return ("weights", "arch") if self.net.arch_parameters() else ("weights",)

    def regularization(self, progress: float) -> dict[str, Tensor]:
        """Terms added to the loss of the arch parameters at this progress, by name, weights included."""
        return {}

    def anneal(self, progress: float) -> None:
        """Set what follows the progress in [0, 1] of the search, as temperatures do."""

    def arch_step(self, batch: Batch, batch_index: int) -> None:
        """One update of the arch parameters: first order by default."""
        self.update("arch", batch, batch_index)

    def first_stage(self) -> MultiTask:
        """The stage that a run begins with."""
        return self

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        """The stage after one that is finished; None when there is no more."""
        return None if finished is self else self

    def carried(self, stages: Sequence[str], chosen: int) -> list[str]:
        """Of the stages of a run those whose weights the finalist of this number has: by default of all."""
        return list(stages)

    # What a search ends in.

    def derive(self) -> Architecture:
        """The architecture that the arch parameters stand for."""
        return self.net.derive()

    def network(self) -> nn.Module:
        """The derived network with the trained weights: `network(image) -> {task: prediction}`."""
        return self.net.extract(self.derive())

    def supernet(self) -> Supernet | None:
        """The search space as it was trained, which a run evaluates beside its result; None where none was."""
        return self.net

    def finalists(self) -> list[tuple[Architecture, nn.Module]]:
        """What a run evaluates, each with its trained network: the best on validation data is its result."""
        return [(self.derive(), self.network())]

    def search_space(self) -> Supernet:
        """A supernet of all architectures in which the search can end."""
        return self.net

    # How it trains.

    def parameters_of(self, group: str) -> list[nn.Parameter]:
        return self.net.weights() if group == "weights" else self.net.arch_parameters()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = super().configure_optimizers()
        arch = self.net.arch_parameters()
        return [*optimizers, scaled_optimizer(self.arch_optimizer, self.net, arch)] if arch else optimizers

    def training_step(self, batch: Any, batch_index: int) -> None:
        self.anneal(self.progress(batch_index))
        groups = self.groups(self.current_epoch)
        for group, part in self._split(batch, groups).items():
            with only(self.parameters_of(group), self.net):
                if group == "arch":
                    with frozen_statistics(self.net):
                        self.arch_step(part, batch_index)
                else:
                    self.update(group, part, batch_index)

    def terms(self, group: str, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        terms = super().terms(group, batch, batch_index)
        if group == "arch":
            extra = self.regularization(self.progress(batch_index))
            if extra:
                self.check_finite(extra, group, batch_index)
            terms |= extra
        return terms

    def schedule_of(self, group: str, progress: float) -> float:
        return self.schedule(progress) if group == "weights" else 1.0

    def _split(self, batch: Any, groups: tuple[str, ...]) -> dict[str, Batch]:
        """The batch of each group: as they come, or disjoint parts of one batch."""
        if isinstance(batch, Mapping) and batch.keys() and batch.keys() <= {"weights", "arch"}:
            missing = [group for group in groups if group not in batch]
            if missing:
                raise ValueError(
                    f"Epoch {self.current_epoch} updates {groups}, but the batch is for {list(batch)}."
                )
            return {group: self._checked(batch[group]) for group in groups}
        batch = self._checked(batch)
        if len(groups) == 1:
            return {groups[0]: batch}
        return dict(zip(("weights", "arch"), halved(batch)))


def halved(batch: Batch) -> tuple[Batch, Batch]:
    """Disjoint halves of a batch, or of each of its parts; the odd image goes to the first."""
    if batch.keys() == {"parts"}:
        pairs = [halved(part) for part in batch["parts"]]
        return {"parts": [first for first, _ in pairs]}, {"parts": [second for _, second in pairs]}
    size = len(batch["image"])
    if size < 2:
        raise ValueError(
            "A batch of one image cannot be halved between weights and arch parameters: take a larger batch, "
            "drop the last one, or wrap the data in mtlsearch.data.Bilevel."
        )
    half = size - size // 2
    return (
        {key: value[:half] for key, value in batch.items()},
        {key: value[half:] for key, value in batch.items()},
    )


@contextmanager
def only(parameters: list[nn.Parameter], module: nn.Module) -> Iterator[None]:
    """Only these parameters of a module want gradients: neither group pays for the other's."""
    chosen = {id(parameter) for parameter in parameters}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in chosen]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm uses the batch's statistics and leaves its running ones alone, which are the weights' own."""
    norms: list[Any] = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
