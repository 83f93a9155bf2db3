"""Single-task networks joined by given fusion edges: NDDR-CNN, and the supernets of MTL-NAS's comparison.

Gao, Ma, Zhao, Liu and Yuille, "NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative
Dimensionality Reduction", CVPR 2019: at some layers the features of all tasks are concatenated, and each task gets
a 1x1 convolution of them with BatchNorm and ReLU. This is the fusion of MTL-NAS (Eq. 2) between equal layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mtlsearch.backbones import Backbone, Node
from mtlsearch.baselines.joined import JoinedBaseline, joints
from mtlsearch.searchers.calibration import Calibrated
from mtlsearch.searchers.fusion import Edge, FusionNetwork, candidate_edges, fusion_architecture, resolved
from mtlsearch.searchers.ranges import check_init_w_ti
from mtlsearch.task import Task

ListEdges = Callable[[list[str], Sequence[Node]], list[Edge]]


class Fused(Calibrated, JoinedBaseline):
    """Single-task networks joined by given fusion edges.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`.
        edges: lists them for the tasks' names and the backbone's layers.
        init_w_ti: w_TI of MTL-NAS Eq. 3 in [0, 1], the weight with which a task's own features start, the others
            sharing the rest, or "random".
        activation: what ends a fusion layer: "relu", None, or "auto", None where the backbone's layers have
            negative outputs, which a ReLU would destroy.
        fusion_lr_factor: on the learning rate of the fusion layers.
        fusion_bn_momentum: of their BatchNorm.
        fusion_bn_init: how it starts: "standard", the paper's, or "identity", see `Calibrated`.
        others: as for `JoinedBaseline`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone,
        edges: ListEdges,
        *,
        init_w_ti: float | str,
        activation: str | None = "auto",
        fusion_lr_factor: float = 1.0,
        fusion_bn_momentum: float = 0.05,
        fusion_bn_init: str = "standard",
        **others: Any,
    ) -> None:
        check_init_w_ti(init_w_ti)

        def join(backbone: Backbone) -> tuple[Any, FusionNetwork]:
            nodes = backbone.nodes
            chosen = edges([task.name for task in tasks], nodes)
            end = resolved(activation, nodes)
            network = FusionNetwork(
                tasks,
                backbone,
                chosen,
                chosen,
                activation=end,
                init_w_ti=init_w_ti,
                momentum=fusion_bn_momentum,
                lr_factor=fusion_lr_factor,
            )
            return fusion_architecture(tasks, backbone.spec, nodes, chosen, chosen, activation=end), network

        super().__init__(tasks, backbone, join, **others)
        self.begin_norms(fusion_bn_init)


class NDDR(Fused):
    """NDDR-CNN: all tasks' features are fused at equal layers, after each stage or, as in MTL-NAS's "NDDR-CNN
    (Supernet)", after each layer.

    The fusion starts at the paper's best diagonals, 0.9 for the task's own features and 0.1 for the other's (here
    for all others together). The paper fuses VGG-16's features after the pooling that ends a stage, we before it;
    it multiplies the learning rate of the fusion layers by 100, with plain SGD at 0.001.

    Args:
        after: "stage" or "layer".
        others: as for `Fused`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet50",
        *,
        after: str = "stage",
        init_w_ti: float | str = 0.9,
        **others: Any,
    ) -> None:
        super().__init__(tasks, backbone, partial(_equal_layers, after=after), init_w_ti=init_w_ti, **others)


def _equal_layers(tasks: list[str], nodes: Sequence[Node], *, after: str) -> list[Edge]:
    layers = joints(nodes, after)
    return [edge for edge in candidate_edges(tasks, nodes, max_distance=0) if edge.layer in layers]


class MTLNASSupernet(Fused):
    """All candidate edges of MTL-NAS's search space, trained without a search (its "MTL-NAS (Supernet)").

    Args:
        within_stage, max_distance: the search space, see `candidate_edges`.
        others: as for `Fused`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet50",
        *,
        within_stage: bool = True,
        max_distance: int | None = 2,
        init_w_ti: float | str = 1.0,
        **others: Any,
    ) -> None:
        edges = partial(candidate_edges, within_stage=within_stage, max_distance=max_distance)
        super().__init__(tasks, backbone, edges, init_w_ti=init_w_ti, **others)
