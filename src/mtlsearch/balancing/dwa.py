"""Dynamic weight average: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mtlsearch.balancing.balancing import Balancing, Step


class DynamicWeightAverage(Balancing):
    """Weighs a task more, the more slowly its loss fell from the epoch before last to the last one (Eq. 7).

    The factors are K softmax(r / temperature) with r the ratio of the mean losses of these epochs, and 1 before
    there are two. They come beside `Task.weight`.

    Args:
        temperature: > 0; the paper takes 2.
    """

    total: Tensor
    batches: Tensor
    means: Tensor

    def __init__(self, *, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}.")
        self.temperature = temperature

    def begin(self) -> None:
        count = len(self.names)
        self.register_buffer("total", torch.zeros(count))
        self.register_buffer("batches", torch.zeros(count))
        self.register_buffer("means", torch.full((2, count), torch.nan))

    def factors(self) -> Tensor:
        """(K,): those of this epoch."""
        ratio = self.means[1] / self.means[0]
        ratio = torch.where(ratio.isfinite(), ratio, 1.0)
        return len(self.names) * (ratio / self.temperature).softmax(dim=0)

    def weighted(self, step: Step) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        for i, name in enumerate(self.names):
            if name in step.values:
                self.total[i] += step.values[name]
                self.batches[i] += 1
        factors = dict(zip(self.names, self.factors()))
        terms = {name: factors[name] * t if name in factors else t for name, t in step.terms.items()}
        return terms, factors

    def end_epoch(self) -> None:
        if self.batches.any():  # an epoch may update arch parameters alone
            self.means.copy_(torch.stack([self.means[1], self.total / self.batches]))
            self.total.zero_()
            self.batches.zero_()
