"""Candidates: several architectures that are trained one after another, the best of which is the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mtlsearch.architecture import Architecture
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.multitask import MultiTask
from mtlsearch.task import Task


class Candidates(Baseline):
    """Trains every candidate alike, in stages "train_1", "train_2", ...; a run takes the best on validation data.

    Args:
        candidates: at least one architecture, with its network to train.
        tasks, training: as for `MultiTask`.
    """

    def __init__(
        self, candidates: Sequence[tuple[Architecture, nn.Module]], tasks: Sequence[Task], **training: Any
    ) -> None:
        (architecture, network), *others = candidates
        super().__init__(architecture, network, tasks, **{**training, "stage": "train_1"})
        self._others = [
            (other, MultiTask(net, tasks, **{**training, "stage": f"train_{number}"}))
            for number, (other, net) in enumerate(others, start=2)
        ]

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        stages = [self, *(stage for _, stage in self._others)]
        following = stages.index(finished) + 1
        return stages[following] if following < len(stages) else None

    def carried(self, stages: Sequence[str], chosen: int) -> list[str]:
        return [f"train_{chosen + 1}"]

    def finalists(self) -> list[tuple[Architecture, nn.Module]]:
        others = [(architecture, stage.network()) for architecture, stage in self._others]
        return [(self.architecture, self.network()), *others]
