"""Cross-stitch networks: linear combinations of the tasks' features between single-task networks.

Misra, Shrivastava, Gupta and Hebert, "Cross-stitch Networks for Multi-task Learning", CVPR 2016. After a
layer each task gets, channel by channel, a learnt linear combination of the features of all tasks (Eq. 1). As
in the paper the units start as convex combinations near the identity, between networks that were trained for
one task each. The paper stitches AlexNet after each pooling and fully connected layer; we stitch any backbone
after each stage, or each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtlsearch.architecture import backbone_of, specs_of, tasks_of
from mtlsearch.backbones import Backbone
from mtlsearch.baselines.joined import JoinedBaseline, joints
from mtlsearch.baselines.stitched import StitchedArchitecture, StitchedNetwork
from mtlsearch.nn.stitch import CrossStitch as Unit
from mtlsearch.searchers.joined import listed
from mtlsearch.searchers.ranges import check_ranges
from mtlsearch.task import Task


@dataclass(frozen=True)
class CrossStitchArchitecture(StitchedArchitecture):
    """Single-task backbones with cross-stitch units between them; fields as for `StitchedArchitecture`."""

    kind = "cross_stitch"

    def build(
        self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None
    ) -> CrossStitchNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        self.check_nodes(backbone)
        return CrossStitchNetwork(tasks, backbone, self.units)


class CrossStitchNetwork(StitchedNetwork):
    """Single-task networks with cross-stitch units between them.

    Args:
        tasks: any number.
        backbone: for the first task; the others get one of the same structure.
        layers: after which there is a unit.
        own, lr_factor: as for `mtlsearch.nn.stitch.CrossStitch`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        layers: Sequence[int],
        *,
        own: float = 0.9,
        lr_factor: float = 1.0,
    ) -> None:
        names = [task.name for task in tasks]
        nodes = {layer: backbone.nodes[layer] for layer in layers}
        units = {
            layer: Unit(names, node.channels, own=own, axis=node.axis, lr_factor=lr_factor)
            for layer, node in nodes.items()
        }
        super().__init__(tasks, backbone, units)


class CrossStitch(JoinedBaseline):
    """Single-task networks, joined by cross-stitch units and trained together.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`.
        after: where the units are, after each "stage" or each "layer". The layers of a plain ViT are one stage.
        alpha_self: the weight in [0, 1] with which a task's own features start, the others sharing the rest.
        stitch_lr_factor: on the learning rate of the units; the paper takes 100 to 1000, with plain SGD.
        others: as for `JoinedBaseline`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet50",
        *,
        after: str = "stage",
        alpha_self: float = 0.9,
        stitch_lr_factor: float = 1.0,
        **others: Any,
    ) -> None:
        check_ranges({"alpha_self": alpha_self}, low=0, high=1)

        def join(backbone: Backbone) -> tuple[CrossStitchArchitecture, CrossStitchNetwork]:
            layers = joints(backbone.nodes, after) if len(tasks) > 1 else []
            network = CrossStitchNetwork(tasks, backbone, layers, own=alpha_self, lr_factor=stitch_lr_factor)
            return CrossStitchArchitecture(
                specs_of(tasks), backbone.spec, listed(backbone.nodes), layers
            ), network

        super().__init__(tasks, backbone, join, **others)
