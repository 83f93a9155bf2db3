"""Baselines that join single-task networks, and train them again together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlsearch.architecture import Architecture
from mtlsearch.backbones import Backbone, Node, load
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.cost import backbone_params
from mtlsearch.searchers.joined import JoinedNetwork
from mtlsearch.searchers.ranges import check_choice
from mtlsearch.searchers.start import FromSingleTask
from mtlsearch.task import Task

Join = Callable[[Backbone], tuple[Architecture, JoinedNetwork]]


class JoinedBaseline(FromSingleTask, Baseline):
    """A network of joined single-task networks, and its training.

    In a run, stage "single_task" trains the single-task networks in lockstep, unless `init` gives them, and stage
    "train" trains them joined.

    Args:
        tasks: K >= 1; one alone is not joined to anything.
        backbone: name of a timm model, or a `Backbone`.
        join: makes the architecture and its network.
        pretrained: start from timm's weights.
        init: trained single-task networks: the module, or the folder of a run of them.
        single_task: whether a run starts with the stage of that name where `init` is not given.
        seed: of the initial weights and of the training.
        training: of both stages, as for `MultiTask`.
    """

    net: JoinedNetwork

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone,
        join: Join,
        *,
        pretrained: bool = False,
        init: nn.Module | str | Path | None = None,
        single_task: bool = True,
        seed: int = 0,
        **training: Any,
    ) -> None:
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        super().__init__(*join(backbone), tasks, seed=seed, **{"stage": "train", **training})
        self.single_task_backbone_params = len(self.tasks) * backbone_params(backbone)
        self.start_from(init, single_task, training)

    def joined(self) -> JoinedNetwork:
        return self.net


def joints(nodes: Sequence[Node], after: str) -> list[int]:
    """The layers that are joined: every one with "layer", the last of every stage with "stage".

    The layers of a plain ViT are one stage.
    """
    check_choice("after", after, ("stage", "layer"))
    last = {node.stage: layer for layer, node in enumerate(nodes)}
    return list(range(len(nodes))) if after == "layer" else sorted(last.values())
