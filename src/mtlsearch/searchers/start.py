"""Trainings that start from single-task networks: those of a stage before, or of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlsearch.multitask import MultiTask
from mtlsearch.namespace import rank_zero_info
from mtlsearch.searchers.joined import JoinedNetwork


class FromSingleTask(MultiTask):
    """Trains single-task networks, in a stage "single_task", before they are joined.

    A subclass names the joined network and ends its `__init__` with `start_from`.
    """

    begin_single = False
    """Whether a run begins with the stage "single_task"."""

    def joined(self) -> JoinedNetwork:
        """The network that takes over the weights."""
        raise NotImplementedError

    def start_from(
        self, init: nn.Module | str | Path | None, single_task: bool, training: Mapping[str, Any]
    ) -> None:
        """Set where the weights come from.

        Args:
            init: trained single-task networks: the module, or the folder of a run of them.
            single_task: whether a run starts with the stage of that name where `init` is not given.
            training: of that stage, as for `MultiTask`.
        """
        self.begin_single = single_task and init is None
        self._single_training = {**training, "stage": "single_task"}
        if init is not None:
            self.load_single_task(init)

    def first_stage(self) -> MultiTask:
        if not self.begin_single:
            return self
        single = self.joined().single_task()
        return MultiTask(single, self.tasks, seed=self.seed, **self._single_training)

    def next_stage(self, finished: MultiTask) -> MultiTask | None:
        if finished is self:
            return None
        self.load_single_task(finished.network())
        return self

    def load_single_task(self, source: nn.Module | str | Path) -> None:
        """Take over the weights of trained single-task networks: a module, or the folder of a run."""
        if isinstance(source, nn.Module):
            state = source.state_dict()
        else:
            path = Path(source) / "model.safetensors"
            if not path.exists():
                raise ValueError(
                    f"init: {path} is not there. Give the folder of a finished run of single_task."
                )
            state = load_file(path)
            self.inherited_run = Path(source)
        own = self.joined().single_task().state_dict()
        wrong = sorted(key for key in own.keys() | state.keys() if _shape(own, key) != _shape(state, key))
        if wrong:
            raise ValueError(
                f"init: the single-task networks do not fit: {len(wrong)} entries differ, such as {wrong[0]!r}. "
                "Tasks and backbone must be the same."
            )
        self.joined().load_state_dict(state, strict=False)
        self.begin_single = False

    def on_fit_start(self) -> None:
        if self.begin_single:
            rank_zero_info(
                "The training starts from what the backbone holds; mtlsearch.search(...) would train the "
                "single-task networks first, or give them as init=."
            )


def _shape(state: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None
