"""Metrics over all labelled entries of a data set, never means of batch values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """The mean of a value over the labelled entries of a data set; NaN where there are none.

    Args:
        amount: `amount(prediction, target)` gives the sum of the value over a batch's labelled entries and
            their number, as a task's loss does.
    """

    full_state_update = False
    total: Tensor
    lost: Tensor
    count: Tensor

    def __init__(self, amount: Callable[[Any, Any], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.amount = amount
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("lost", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Any, target: Any) -> None:
        amount, count = self.amount(prediction, target)
        # Kahan's compensated sum: Apple's MPS has no float64, and fp32 alone stops counting at 2^24.
        total = self.total + amount
        self.lost += amount - (total - self.total)
        self.total = total
        self.count += count

    def compute(self) -> Tensor:
        return (self.total + self.lost) / self.count


class MeanError(Mean):
    """A mean that is better when lower."""

    higher_is_better = False


class MeanScore(Mean):
    """A mean that is better when higher."""

    higher_is_better = True


class PartScore(Metric):
    """One of the values of a metric that computes several, better when higher.

    Alone it has that metric for itself; `shared` lets the parts of one task have it in common.

    Args:
        make: makes the whole metric, whose compute gives {name: scalar}. Parts with the same `make` are parts of
            the same metric.
        name: the part's.
        breaks_down: whether it tells more of another part, as that of one class does of the mean over classes.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, make: Callable[[], Metric], name: str, *, breaks_down: bool = False) -> None:
        super().__init__()
        self.make = make
        self.name = name
        self.breaks_down = breaks_down
        self.whole = make()
        self.leads = True

    def update(self, prediction: Any, target: Any) -> None:
        if self.leads:
            self.whole.update(prediction, target)

    def compute(self) -> Tensor:
        values: dict[str, Tensor] = self.whole.compute()
        return values[self.name]

    def reset(self) -> None:
        super().reset()
        self.whole.reset()


def shared(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics of one task, in which the parts of one metric now have it in common.

    They have to be updated together: the first of them updates the whole for all.
    """
    wholes: dict[Callable[[], Metric], Metric] = {}
    for metric in metrics:
        if isinstance(metric, PartScore):
            metric.leads = metric.make not in wholes
            metric.whole = wholes.setdefault(metric.make, metric.whole)
    return list(metrics)
