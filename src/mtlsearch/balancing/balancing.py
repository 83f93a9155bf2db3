"""Balancing: how the losses of several tasks become the gradients of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from mtlsearch.task import Task


@dataclass(frozen=True)
class Step:
    """What an update of the weights hands to its balancing: one batch.

    Args:
        terms: what this process descends on, by name: the loss of each task that has a target in its batch, times
            `Task.weight`, and terms of other names, which are not balanced. The mean over all processes is meant.
        values: the loss of each task that has a label in any process, times `Task.weight`: the same on all
            processes, without gradient.
        parameters: what the update changes.
        backward: adds the gradient of a scalar to the parameters' own, averaged over processes.
        accumulate: batches an update.
        ends: whether the update is made after this batch.
        progress: of the training, in [0, 1].
        precision: Lightning's name of it.
    """

    terms: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    parameters: Sequence[nn.Parameter]
    backward: Callable[[Tensor], None]
    accumulate: int = 1
    ends: bool = True
    progress: float = 0.0
    precision: str = "32-true"


class Balancing(nn.Module):
    """A way to balance tasks. As it stands: the sum of the losses, each times `Task.weight`.

    A `MultiTask` balances by a copy of its own (`for_tasks`), whose parameters are learnt by the optimiser of the
    weights, and which is in the checkpoint. A method overrides `weighted`, or where it needs the gradient of each
    task `backward`.
    """

    names: list[str]

    def for_tasks(self, tasks: Sequence[Task]) -> Self:
        """A copy that balances these tasks from the start."""
        own = copy.deepcopy(self)
        own.names = [task.name for task in tasks]
        own.begin()
        return own

    def begin(self) -> None:
        """Make the state that depends on the tasks, whose names are there."""

    def backward(self, step: Step) -> dict[str, Tensor]:
        """Add to the gradients of the weights; the factors on the tasks' terms, as far as they are not all 1."""
        terms, factors = self.weighted(step)
        step.backward(torch.stack(list(terms.values())).sum() / step.accumulate)
        return factors

    def weighted(self, step: Step) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        """The terms whose sum is minimised, and the factors of the tasks in them."""
        return step.terms, {}

    def end_epoch(self) -> None:
        """Take note of the end of an epoch."""


class Fixed(Balancing):
    """The sum of the losses, each times `Task.weight`, and nothing else."""
