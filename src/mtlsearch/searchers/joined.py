"""Single-task backbones run in lockstep, and what networks that join them have in common."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtlsearch.architecture import Architecture, check_paths, check_spec
from mtlsearch.backbones import Backbone, Node
from mtlsearch.nn.lockstep import Lockstep
from mtlsearch.task import Task


@dataclass(frozen=True)
class JoinedArchitecture(Architecture):
    """One backbone a task; what joins them counts the layers from 0.

    Args:
        backbone: {"name", "arguments"} of `mtlsearch.backbones.load`; None for a module of yours.
        nodes: the layers' {"path", "stage"} in order.
    """

    backbone: dict[str, Any] | None
    nodes: list[dict[str, Any]]

    def check(self) -> None:
        check_spec(self.backbone)
        if not isinstance(self.nodes, list):
            raise ValueError(f"nodes must be a list, not {self.nodes!r}.")
        for node in self.nodes:
            types = {key: type(value) for key, value in node.items()} if isinstance(node, dict) else None
            if types != {"path": str, "stage": int}:
                raise ValueError(f"A node must have a path and a stage, a number, not {node!r}.")

    def check_nodes(self, backbone: Backbone) -> None:
        """Raise a ValueError where this backbone's layers are not those of the architecture."""
        check_paths([node["path"] for node in self.nodes], [node.path for node in backbone.nodes])


def listed(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """The field `nodes` for these."""
    return [{"path": node.path, "stage": node.stage} for node in nodes]


class JoinedNetwork(nn.Module):
    """One backbone a task in lockstep and the tasks' heads: single-task networks, unless a subclass joins them.

    Args:
        lockstep: the backbones.
        heads: by task.
    """

    def __init__(self, lockstep: Lockstep, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.lockstep = lockstep
        self.heads = heads
        self.nodes = lockstep.backbone.nodes

    def single_task(self) -> JoinedNetwork:
        """A copy of the backbones and heads alone."""
        return JoinedNetwork(*copy.deepcopy((self.lockstep, self.heads)))

    def forward(self, image: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Predictions by task, computing only what these need.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        return self.predict(image, self.pyramids(image, wanted), wanted)

    def pyramids(self, image: Tensor, wanted: Sequence[str]) -> dict[str, list[Tensor]]:
        """The features that the heads of the wanted tasks read."""
        return self.lockstep(image, wanted)  # type: ignore[no-any-return]

    def predict(
        self, image: Tensor, pyramids: dict[str, list[Tensor]], wanted: Sequence[str]
    ) -> dict[str, Tensor]:
        """Predictions of the wanted tasks from their features."""
        size = image.shape[-2:]
        return {name: self.heads[name](pyramids[name], size) for name in wanted}


def separate(tasks: Sequence[Task], backbone: Backbone) -> tuple[Lockstep, nn.ModuleDict]:
    """A backbone of this structure for each task, and the tasks' heads, to join."""
    backbones = {
        task.name: backbone.again() if i else copy.deepcopy(backbone) for i, task in enumerate(tasks)
    }
    heads = {task.name: task.head(backbone.channels, backbone.strides) for task in tasks}
    return Lockstep(backbones), nn.ModuleDict(heads)
