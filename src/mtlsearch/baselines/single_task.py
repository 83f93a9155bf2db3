"""A network of its own for every task, trained in lockstep: the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mtlsearch.backbones import Backbone, load
from mtlsearch.baselines.baseline import Baseline
from mtlsearch.searchers.fusion import fusion_architecture
from mtlsearch.task import Task


class SingleTask(Baseline):
    """One backbone and head a task, with nothing shared.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`.
        pretrained: start from timm's weights.
        seed: of the initial weights and of the training.
        training: as for `MultiTask`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet50",
        *,
        pretrained: bool = False,
        seed: int = 0,
        **training: Any,
    ) -> None:
        torch.manual_seed(seed)
        backbone = load(backbone, pretrained=pretrained) if isinstance(backbone, str) else backbone
        architecture = fusion_architecture(tasks, backbone.spec, backbone.nodes)
        network = architecture.build(tasks, backbone)
        super().__init__(architecture, network, tasks, seed=seed, **{"stage": "single_task", **training})
