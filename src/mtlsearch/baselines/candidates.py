"""Candidates: several architectures that are trained one after another, the best of which is the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mtlsearch.architecture import Architecture
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.multitask import MultiTask
from mtlsearch.searchers.calibration import Calibrated
from mtlsearch.searchers.joined import JoinedNetwork
from mtlsearch.task import Task


class Candidate(Calibrated):
    """The training of one of several networks."""

    net: JoinedNetwork

    def joined(self) -> JoinedNetwork:
        return self.net


class Candidates(Candidate, Baseline):
    """Trains every candidate alike, in stages "train_1", "train_2", ...; a run takes the best on validation data.

    Candidates that join single-task networks may all start from the same ones, see `FromSingleTask`.

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
            (other, Candidate(net, tasks, **{**training, "stage": f"train_{number}"}))
            for number, (other, net) in enumerate(others, start=2)
        ]

    def begin_norms(self, init: str) -> None:
        super().begin_norms(init)
        for _, other in self._others:
            other.begin_norms(init)

    def load_single_task(self, source: nn.Module | str | Path) -> None:
        super().load_single_task(source)
        for _, other in self._others:
            other.load_single_task(source)

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        stages = [self, *(stage for _, stage in self._others)]
        if finished not in stages:  # it has trained the single-task networks
            self.load_single_task(finished.network())
            return self
        following = stages.index(finished) + 1
        return stages[following] if following < len(stages) else None

    def carried(self, stages: Sequence[str], chosen: int) -> list[str]:
        return [stage for stage in stages if stage in ("single_task", f"train_{chosen + 1}")]

    def finalists(self) -> list[tuple[Architecture, nn.Module]]:
        others = [(architecture, stage.network()) for architecture, stage in self._others]
        return [(self.architecture, self.network()), *others]
