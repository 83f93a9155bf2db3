"""Supernet: a search space as one network whose forward pass is steered by gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlsearch.architecture import Architecture


class Supernet(nn.Module, ABC):
    """Pure torch: it sees no trainer, no loss and no configuration."""

    exact = True
    """Whether `extract`'s network gives what the supernet gives under the same hard gates, in eval mode."""

    @abstractmethod
    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Architecture | None = None
    ) -> dict[str, Tensor]:
        """Predictions by task.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
            gates: an architecture for its hard gates; None: relaxed gates while training, their
                probabilities in eval mode.
        """

    @abstractmethod
    def arch_parameters(self) -> list[nn.Parameter]:
        """The arch parameters in a fixed order; every other parameter is a weight."""

    @abstractmethod
    def derive(self) -> Architecture:
        """The most probable architecture."""

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Architecture:
        """An architecture drawn from the distribution that the arch parameters describe."""

    @abstractmethod
    def extract(self, architecture: Architecture) -> nn.Module:
        """The network of an architecture of this space, with the trained weights copied."""

    def weights(self) -> list[nn.Parameter]:
        """Every parameter that is not an arch parameter, in the module's order."""
        arch = {id(parameter) for parameter in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in arch]
