"""Single-task backbones joined by fusion edges: the network of MTL-NAS, and its architecture as data.

Without edges it is the single-task networks themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from mtlsearch.architecture import backbone_of, specs_of, tasks_of
from mtlsearch.backbones import Backbone, Node
from mtlsearch.nn.fusion import Fusion, resize
from mtlsearch.searchers.joined import JoinedArchitecture, JoinedNetwork, listed, separate
from mtlsearch.task import Task


class Edge(NamedTuple):
    """A fusion edge: the target layer of `task` reads the source layer of `source_task`."""

    task: str
    layer: int
    source_task: str
    source_layer: int


Layer = tuple[str, int]


def candidate_edges(
    tasks: Sequence[str], nodes: Sequence[Node], *, within_stage: bool = True, max_distance: int | None = 2
) -> list[Edge]:
    """The search space (MTL-NAS Sect. 5.1), by target and then source.

    Args:
        tasks: names; a target may read from every other task.
        nodes: the backbone's layers.
        within_stage: only from the target's own stage.
        max_distance: from how many layers earlier at most; None: any. Never from a later one.
    """
    return [
        Edge(task, layer, source_task, source_layer)
        for task in tasks
        for layer in range(len(nodes))
        for source_task in tasks
        if source_task != task
        for source_layer in range(layer + 1)
        if max_distance is None or layer - source_layer <= max_distance
        if not within_stage or nodes[layer].stage == nodes[source_layer].stage
    ]


def resolved(activation: str | None, nodes: Sequence[Node]) -> str | None:
    """What ends a fusion layer; with "auto" a ReLU unless a layer has negative outputs, which it would destroy."""
    if activation not in ("auto", "relu", None):
        raise ValueError(f"activation must be 'auto', 'relu' or null, not {activation!r}.")
    if activation != "auto":
        return activation
    return None if any(node.signed for node in nodes) else "relu"


@dataclass(frozen=True)
class FusionArchitecture(JoinedArchitecture):
    """Single-task backbones and the fusion edges between them.

    Args:
        backbone, nodes: as for `JoinedArchitecture`.
        activation: what ends a fusion layer, "relu" or None.
        candidates: every edge that could have been chosen, with its "probability" if it was searched. A layer
            that has one keeps its fusion layer in the network, whether an edge was chosen or not.
        edges: the chosen ones.
    """

    activation: str | None
    candidates: list[dict[str, Any]]
    edges: list[dict[str, Any]]

    kind = "fusion"

    def check(self) -> None:
        super().check()
        for name in ("candidates", "edges"):
            if not isinstance(getattr(self, name), list):
                raise ValueError(f"{name} must be a list, not {getattr(self, name)!r}.")
        if self.activation not in ("relu", None):
            raise ValueError(f"activation must be 'relu' or null, not {self.activation!r}.")
        candidates = [self._edge(entry, {"probability"}) for entry in self.candidates]
        for entry in self.edges:
            if self._edge(entry, set()) not in candidates:
                raise ValueError(f"The chosen edge {entry} is not among the candidates.")

    def _edge(self, entry: Any, further: set[str]) -> Edge:
        if not isinstance(entry, dict) or entry.keys() - further != set(Edge._fields):
            raise ValueError(f"An edge must have {', '.join(Edge._fields)}, not {entry!r}.")
        edge = Edge(*(entry[field] for field in Edge._fields))
        valid = [type(value) for value in edge] == [str, int, str, int]
        valid = valid and {edge.task, edge.source_task} <= set(self.tasks) and edge.task != edge.source_task
        if not (valid and 0 <= edge.source_layer <= edge.layer < len(self.nodes)):
            raise ValueError(f"The edge {entry} names no such task or layer, or reads from a later layer.")
        return edge

    def chosen(self) -> list[Edge]:
        return [self._edge(entry, set()) for entry in self.edges]

    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> FusionNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        self.check_nodes(backbone)
        candidates = [self._edge(entry, {"probability"}) for entry in self.candidates]
        return FusionNetwork(tasks, backbone, candidates, self.chosen(), activation=self.activation)


def fusion_architecture(
    tasks: Sequence[Task],
    spec: dict[str, Any] | None,
    nodes: Sequence[Node],
    candidates: Sequence[Edge] = (),
    edges: Sequence[Edge] = (),
    *,
    activation: str | None = None,
    probabilities: Sequence[float] | None = None,
) -> FusionArchitecture:
    """The data of a network on a backbone of this `spec`; without edges, of single-task networks."""
    entries: list[dict[str, Any]] = [dict(edge._asdict()) for edge in candidates]
    if probabilities is not None:
        entries = [entry | {"probability": p} for entry, p in zip(entries, probabilities)]
    return FusionArchitecture(
        tasks=specs_of(tasks),
        backbone=spec,
        nodes=listed(nodes),
        activation=activation,
        candidates=entries,
        edges=[dict(edge._asdict()) for edge in edges],
    )


class FusionNetwork(JoinedNetwork):
    """One backbone a task in lockstep, fusion layers on the way, and the tasks' heads.

    Args:
        tasks: any number.
        backbone: for the first task; the others get one of the same structure.
        candidates: their targets get a fusion layer each.
        edges: those that are there.
        activation: "relu" or None.
        init_w_ti, momentum, lr_factor: as for `Fusion`.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        candidates: Sequence[Edge],
        edges: Sequence[Edge],
        *,
        activation: str | None,
        init_w_ti: float | str = 1.0,
        momentum: float = 0.05,
        lr_factor: float = 1.0,
    ) -> None:
        super().__init__(*separate(tasks, backbone))
        self._connect(candidates, edges)
        fusions: dict[str, nn.ModuleDict] = {task.name: nn.ModuleDict() for task in tasks}
        for (task, layer), sources in self.sources.items():
            fusions[task][str(layer)] = Fusion(
                self.nodes[layer].channels,
                [self.nodes[source_layer].channels for _, source_layer in sources],
                init_w_ti=init_w_ti,
                activation=activation == "relu",
                momentum=momentum,
                axis=self.nodes[layer].axis,
                lr_factor=lr_factor,
            )
        self.fusions: Any = nn.ModuleDict(fusions)

    def _connect(self, candidates: Sequence[Edge], edges: Sequence[Edge]) -> None:
        self.sources: dict[Layer, list[Layer]] = {(edge.task, edge.layer): [] for edge in candidates}
        self._gates: dict[Layer, list[int]] = {layer: [] for layer in self.sources}
        for i, edge in enumerate(edges):
            self.sources[edge.task, edge.layer].append((edge.source_task, edge.source_layer))
            self._gates[edge.task, edge.layer].append(i)

    def reduced(self, candidates: Sequence[Edge], edges: Sequence[Edge]) -> FusionNetwork:
        """A copy with fewer edges, the weights of those that stay kept."""
        network = copy.deepcopy(self)
        network._connect(candidates, edges)
        for (task, layer), before in self.sources.items():
            if (task, layer) in network.sources:
                kept = [before.index(source) for source in network.sources[task, layer]]
                network.fusions[task][str(layer)].keep(kept)
            else:
                del network.fusions[task][str(layer)]
        return network

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predictions by task, computing only what these need.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
            gates: (number of edges,); None: all are 1.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        last = self.last_layers(wanted)
        features: dict[Layer, Tensor] = {}

        def exchange(layer: int, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
            features.update({(task, layer): output for task, output in outputs.items()})
            return {task: self._fuse(task, layer, features, gates) for task in outputs if last[task] > layer}

        return self.predict(image, self.lockstep(image, list(last), exchange), wanted)

    def last_layers(self, wanted: Sequence[str]) -> dict[str, int]:
        """For each task that has to run, the wanted first, the last layer of it that is needed."""
        last = dict.fromkeys(wanted, len(self.nodes))
        open_tasks = list(wanted)
        while open_tasks:
            task = open_tasks.pop()
            for (target, layer), sources in self.sources.items():
                if target == task and layer < last[task]:
                    for source, source_layer in sources:
                        if source_layer > last.get(source, -1):
                            last[source] = source_layer
                            open_tasks.append(source)
        return last

    def _fuse(self, task: str, layer: int, features: Mapping[Layer, Tensor], gates: Tensor | None) -> Tensor:
        own = features[task, layer]
        if (task, layer) not in self.sources:
            return own
        axis = self.nodes[layer].axis
        sources = [resize(features[source], own, axis) for source in self.sources[task, layer]]
        here = self._gates[task, layer]
        fused: Tensor = self.fusions[task][str(layer)](
            own, sources, gates[here] if gates is not None else None
        )
        return fused
