"""Policy gradients: what a choice is worth, beside what choices have been worth of late."""

from __future__ import annotations

import torch
from torch import Tensor


def advantage(costs: Tensor, means: Tensor) -> Tensor:
    """How far costs are above their running means, which then move by a tenth of the way towards them.

    Each times the logarithm of the probability with which the choice was drawn that led to it, their sum has the
    gradient of REINFORCE (Williams, 1992) with a baseline.

    Args:
        costs: of any shape.
        means: of the same, NaN where there has been no cost yet. Changed in place.
    """
    costs, first = costs.to(means.dtype), means.isnan()
    above = costs - torch.where(first, costs, means)
    means.copy_(torch.where(first, costs, means.lerp(costs, 0.1)))
    return above
