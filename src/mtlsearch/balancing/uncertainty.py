"""Uncertainty weighting.

Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mtlsearch.balancing.balancing import Balancing, Step


class Uncertainty(Balancing):
    """Weighs each loss L by a learnt log-variance s of its task: exp(-s) L + s / 2, s from 0.

    This is the paper's form for classification (Eq. 10, s = log σ²). Its form for regression has a further factor
    1/2 on L, which is the same with s moved by log 2: in both the weight of a loss tends to 1 / (2 L), and here all
    of them start from `Task.weight`. Losses must be positive. The log-variances are parameters of the weights'
    optimiser, without weight decay and outside its clipping. That of a task without a label in the batch rests.

    Args:
        lr_factor: > 0, on their learning rate.
    """

    def __init__(self, *, lr_factor: float = 1.0) -> None:
        super().__init__()
        if not lr_factor > 0:
            raise ValueError(f"lr_factor must be above 0, not {lr_factor}.")
        self.lr_factors = {"log_variance": lr_factor}

    def begin(self) -> None:
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def weighted(self, step: Step) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        logs = dict(zip(self.names, self.log_variance))
        terms = {name: (-logs[name]).exp() * t if name in logs else t for name, t in step.terms.items()}
        terms["log-variances"] = torch.stack(
            [logs[name] / 2 for name in step.values] or [0 * logs[self.names[0]]]
        ).sum()
        return terms, {name: (-log).exp().detach() for name, log in logs.items()}
