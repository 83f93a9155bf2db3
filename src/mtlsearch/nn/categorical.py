"""Categorical gates: on each of several edges, one of several operations, drawn from arch parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.nn.gates import Relaxation


def deterministic(logits: Tensor, temperature: Tensor) -> Tensor:
    """The distribution's mean in place of samples, DARTS's softmax; the temperature plays no part."""
    return logits.softmax(dim=-1)


def concrete(logits: Tensor, temperature: Tensor) -> Tensor:
    """A differentiable sample, the Gumbel-softmax (AdaShare Eq. 2). The temperature is kept at 0.001 or more."""
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    noise = -(-uniform.log()).log()
    return ((logits + noise) / temperature.clamp(min=1e-3)).softmax(dim=-1)


RELAXATIONS: dict[str, Relaxation] = {"deterministic": deterministic, "concrete": concrete}


class Categorical(nn.Module):
    """Independent categorical gates.

    Args:
        count: how many.
        options: between how many each chooses.
        relaxation: makes gates from (logits, temperature) while training; evaluation takes the probabilities.
        init_std: logits start from a normal distribution round 0 of this width.
    """

    temperature: Tensor

    def __init__(
        self, count: int, options: int, *, relaxation: Relaxation = deterministic, init_std: float = 1e-3
    ) -> None:
        super().__init__()
        self.relaxation = relaxation
        self.logits = nn.Parameter(torch.randn(count, options) * init_std)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self) -> Tensor:
        """The gates of one forward pass (count, options), all drawn at once."""
        return self.relaxation(self.logits, self.temperature) if self.training else self.probabilities()

    def probabilities(self) -> Tensor:
        """With which each option is chosen (count, options)."""
        return self.logits.softmax(dim=-1)

    def entropy(self) -> Tensor:
        """The mean entropy of a gate in nats, between 0 and log(options)."""
        log_p = F.log_softmax(self.logits, dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1).mean()
