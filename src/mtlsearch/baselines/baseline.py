"""Baseline: a network that is trained without a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mtlsearch.architecture import Architecture
from mtlsearch.multitask import MultiTask
from mtlsearch.task import Task


class Baseline(MultiTask):
    """An architecture and the training of its network, with what a run asks of a searcher.

    Args:
        architecture: of the network.
        network: to train.
        others: as for `MultiTask`.
    """

    def __init__(
        self, architecture: Architecture, network: nn.Module, tasks: Sequence[Task], **training: Any
    ) -> None:
        super().__init__(network, tasks, **training)
        self.architecture = architecture

    def first_stage(self) -> MultiTask:
        return self

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        return None

    def carried(self, stages: Sequence[str], chosen: int) -> list[str]:
        """Of the stages of a run those whose weights the finalist of this number has."""
        return list(stages)

    def derive(self) -> Architecture:
        return self.architecture

    def finalists(self) -> list[tuple[Architecture, nn.Module]]:
        return [(self.architecture, self.network())]
