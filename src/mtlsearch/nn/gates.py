"""Gates: values in [0, 1] drawn from arch parameters by a relaxation, and made hard in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Relaxation = Callable[[Tensor, Tensor], Tensor]


def deterministic(logits: Tensor, temperature: Tensor) -> Tensor:
    """The distribution's mean in place of samples (MTL-NAS Eq. 4 and 5); the temperature plays no part."""
    return logits.sigmoid()


def concrete(logits: Tensor, temperature: Tensor) -> Tensor:
    """A differentiable sample: sigmoid((logit(p) + logistic noise) / temperature) (MTL-NAS Eq. 6).

    The paper's α in that equation is the odds p / (1 - p), so its logarithm is the logit. It is the first of
    the two numbers of AdaShare's Gumbel-softmax (its Eq. 2): two Gumbel variables differ by a logistic one. The
    temperature is kept at 0.001 or more, where the gradient still is a number.
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    return ((logits + uniform.logit()) / temperature.clamp(min=1e-3)).sigmoid()


def bernoulli(logits: Tensor, temperature: Tensor) -> Tensor:
    """Hard samples without a gradient, for policy gradients; the temperature plays no part."""
    return (torch.rand_like(logits) < logits.sigmoid()).to(logits.dtype)


RELAXATIONS: dict[str, Relaxation] = {"deterministic": deterministic, "concrete": concrete}


def relaxation_of(choice: str | Relaxation, known: Mapping[str, Relaxation] = RELAXATIONS) -> Relaxation:
    """A relaxation by its name, or the function given; a ValueError names those there are."""
    if not isinstance(choice, str):
        return choice
    if choice not in known:
        raise ValueError(f"relaxation must be one of {list(known)} or a function, not {choice!r}.")
    return known[choice]


def entropy(logits: Tensor) -> Tensor:
    """The mean entropy of a gate in nats, between 0 and log 2 (MTL-NAS Eq. 12, without its weight γ)."""
    p = logits.sigmoid()
    return (p * F.softplus(-logits) + (1 - p) * F.softplus(logits)).mean()


def initial_logits(count: int, *, init_std: float, init_probability: float) -> nn.Parameter:
    """With which `Gates` start, (count,)."""
    mean = math.log(init_probability / (1 - init_probability))
    return nn.Parameter(mean + torch.randn(count) * init_std)


class Gates(nn.Module):
    """Independent Bernoulli gates.

    Args:
        count: how many.
        relaxation: makes gates from (logits, temperature) while training; evaluation takes the probabilities.
        init_std: logits start from a normal distribution of this width. Not 0: there the entropy's gradient
            vanishes.
        init_probability: that it is round.
    """

    temperature: Tensor

    def __init__(
        self,
        count: int,
        *,
        relaxation: Relaxation = deterministic,
        init_std: float = 0.01,
        init_probability: float = 0.5,
    ) -> None:
        super().__init__()
        self.relaxation = relaxation
        self.logits = initial_logits(count, init_std=init_std, init_probability=init_probability)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self) -> Tensor:
        """The gates of one forward pass (count,), all drawn at once."""
        return self.relaxation(self.logits, self.temperature) if self.training else self.probabilities()

    def probabilities(self) -> Tensor:
        """Each gate's probability to be on (count,)."""
        return self.logits.sigmoid()

    def entropy(self) -> Tensor:
        """The mean entropy of a gate in nats, see `entropy`."""
        return entropy(self.logits)

    def hard(self) -> Tensor:
        """On where the probability is above one half (MTL-NAS Eq. 9), as booleans; a tie is off."""
        return self.logits > 0

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw from the distribution (count,), as booleans: Eq. 6 at temperature 0."""
        uniform = torch.rand(self.logits.shape, generator=generator)
        return uniform.to(self.logits.device) < self.probabilities()


def straight_through(relaxation: Relaxation) -> Relaxation:
    """The relaxation's gates rounded in the forward pass, with its gradient in the backward pass."""
    return partial(_rounded, relaxation)


def _rounded(relaxation: Relaxation, logits: Tensor, temperature: Tensor) -> Tensor:
    soft = relaxation(logits, temperature)
    return soft + (soft.round() - soft).detach()
