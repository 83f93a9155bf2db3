"""Aggregators of gradients, such as torchjd's, on what tasks share."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.balancing.balancing import Step
from mtlsearch.balancing.gradients import Gradients, Row, added

Aggregator = Callable[[Tensor], Tensor]
"""From the gradients of m tasks (m, n) to one (n,)."""


class Aggregate(Gradients):
    """Aggregates the tasks' gradients where they meet: on the parameters that more than one task's loss moves.

    The others, such as those of a head, get the gradient of their own task. So a step with labels of one task is
    an ordinary one. What an aggregator draws is the same on all processes. What it remembers it forgets at the end
    of an epoch, so that a training that is resumed is one that was not stopped.

    Args:
        aggregator: of torchjd or of yours: a module that takes the gradients of m tasks (m, n), in the order of the
            tasks, and gives one (n,); or a function of m that makes one.
    """

    def __init__(self, aggregator: nn.Module | Callable[[int], Aggregator]) -> None:
        super().__init__()
        self._aggregator = (aggregator,)  # in a tuple: its memory is not in the checkpoint

    def begin(self) -> None:
        super().begin()
        self._at_work: dict[int, Aggregator] = {}

    def end_epoch(self) -> None:
        self._at_work.clear()

    def aggregator(self, count: int, device: torch.device) -> Aggregator:
        """The one for the gradients of so many tasks."""
        if count not in self._at_work:
            given: Any = self._aggregator[0]
            own = copy.deepcopy(given) if isinstance(given, nn.Module) else given(count)
            self._at_work[count] = own.to(device) if isinstance(own, nn.Module) else own
        return self._at_work[count]

    def combine(
        self, rows: Mapping[str, Row], values: Mapping[str, Tensor], step: Step
    ) -> tuple[Row, dict[str, Tensor]]:
        shared = moved_by_several(rows)
        gradient: Row = [None] * len(step.parameters)
        for row in rows.values():
            gradient = added(gradient, row)
        if not any(shared):
            return gradient, {}
        parameters = [p for p, both in zip(step.parameters, shared) if both]
        matrix = torch.stack([flat(row, parameters, shared) for row in rows.values()])
        torch.manual_seed(
            torch.initial_seed() + 1
        )  # processes may have drawn unlike numbers since the step's seed
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "You are solving a parameterized problem"
            )  # of Nash-MTL's, slow
            aggregate = self.aggregator(len(matrix), matrix.device)(matrix)
        parts = iter(aggregate.split([p.numel() for p in parameters]))
        return [
            next(parts).view_as(p).to(p.dtype) if both else own
            for p, own, both in zip(step.parameters, gradient, shared)
        ], {}


def moved_by_several(rows: Mapping[str, Row]) -> list[bool]:
    """For each parameter, whether more than one gradient is other than zero there."""
    there = [(name, i, g) for name, row in rows.items() for i, g in enumerate(row) if g is not None]
    if not there:
        return [False] * len(next(iter(rows.values())))
    largest = torch.stack(torch._foreach_norm([g for _, _, g in there], torch.inf)).float()
    count = [0] * len(next(iter(rows.values())))
    for (name, i, _), value in zip(there, largest.tolist()):
        if not value < torch.inf:
            raise ValueError(
                f"The gradient of {name!r} is not finite, so it cannot be aggregated: take a lower learning rate."
            )
        count[i] += value > 0
    return [number > 1 for number in count]


def flat(row: Row, parameters: list[nn.Parameter], shared: list[bool]) -> Tensor:
    """What a gradient is on the shared parameters, in single precision at least."""
    chosen = [g for g, both in zip(row, shared) if both]
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(chosen, parameters)]
    whole = torch.cat([part.flatten() for part in parts])
    return whole if whole.dtype == torch.float64 else whole.float()


def torchjd(name: str, **arguments: Any) -> Aggregate:
    """`Aggregate` by one of torchjd's aggregators.

    Args:
        name: of a class in `torchjd.aggregation`: "UPGrad", "MGDA", "PCGrad", "NashMTL", ...
        arguments: of that class; the number of tasks, where it takes one, is given.

    Raises:
        ValueError: torchjd or a part of it is not there, an unknown name, wrong arguments.
    """
    try:
        from torchjd import aggregation
    except ModuleNotFoundError as error:
        raise ValueError(missing(name, error)) from error
    public = [getattr(aggregation, each) for each in aggregation.__all__]
    found = [
        each for each in public if issubclass(each, aggregation.Aggregator) and not inspect.isabstract(each)
    ]
    known = [each.__name__ for each in found if not each.__name__.endswith("Aggregator")]
    if name not in known:
        raise ValueError(f"torchjd has no aggregator {name!r}: take one of {', '.join(known)}.")
    make = partial(getattr(aggregation, name), **arguments)
    counted = "n_tasks" in inspect.signature(make).parameters
    try:
        aggregator = make(n_tasks=2) if counted else make()
    except ImportError as error:
        raise ValueError(missing(name, error)) from error
    except TypeError as error:
        raise ValueError(f"torchjd's {name}: {error}.") from error
    return Aggregate((lambda count: make(n_tasks=count)) if counted else aggregator)


def missing(name: str, error: ImportError) -> str:
    return f"{name} needs torchjd and what it solves with: pip install 'mtlsearch[balancing]' ({error})."
