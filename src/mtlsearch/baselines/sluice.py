"""Sluice networks: subspaces of features mixed between single-task networks, and layers before their heads.

Ruder, Bingel, Augenstein and Søgaard, "Latent Multi-Task Architecture Learning", AAAI 2019, for recurrent networks.

Taken over: G = 2 subspaces a task, each a half of a layer's channels, and after a layer a learnt alpha over
all (K G)^2 pairs of them; in front of a task's head a learnt mixture beta of its layers; the squared Frobenius
norm that makes a layer's subspaces orthogonal, at the weight 0.1 of the authors' example.

Adapted: all that the paper's beta mixes has one shape, so here each level of the feature pyramid is mixed with
the earlier layers that have its channels and size. The authors' files put the penalty on two of an LSTM's
weight matrices, of which a block has no counterpart, so here it is on the features, positions for rows, with
channels of unit length, so that one weight serves all backbones. alpha and beta start near the identity,
between networks that were trained for one task each, where the paper starts from scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtlsearch.architecture import backbone_of, specs_of, tasks_of
from mtlsearch.backbones import Backbone
from mtlsearch.baselines.joined import JoinedBaseline, joints
from mtlsearch.baselines.stitched import StitchedArchitecture, StitchedNetwork
from mtlsearch.multitask import Batch
from mtlsearch.nn.attention import watched
from mtlsearch.nn.stitch import Mixture, as_map
from mtlsearch.nn.stitch import Sluice as Unit
from mtlsearch.searchers.joined import listed
from mtlsearch.searchers.ranges import check_ranges
from mtlsearch.task import Task


@dataclass(frozen=True)
class SluiceArchitecture(StitchedArchitecture):
    """Single-task backbones with sluice units between them.

    Args:
        backbone, nodes, units: as for `StitchedArchitecture`.
        subspaces: into how many parts a unit cuts a task's channels.
        levels: for each level of the pyramid the layers that are mixed into it.
    """

    subspaces: int
    levels: list[list[int]]

    kind = "sluice"

    def check(self) -> None:
        super().check()
        if type(self.subspaces) is not int or self.subspaces < 1:
            raise ValueError(f"subspaces must be a whole number from 1 up, not {self.subspaces!r}.")
        known = range(len(self.nodes))
        if not isinstance(self.levels, list) or not all(
            isinstance(level, list) and all(type(layer) is int and layer in known for layer in level)
            for level in self.levels
        ):
            raise ValueError(
                f"levels must list layers, numbers below {len(self.nodes)}, not {self.levels!r}."
            )

    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> SluiceNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        self.check_nodes(backbone)
        possible = earlier_layers(backbone)
        fits = len(possible) == len(self.levels) and all(
            set(level) <= set(layers) for level, layers in zip(self.levels, possible)
        )
        if not fits:
            raise ValueError(
                f"Into the levels of this backbone the layers {possible} can be mixed, and not {self.levels}."
            )
        return SluiceNetwork(tasks, backbone, self.units, self.levels, subspaces=self.subspaces)


def earlier_layers(backbone: Backbone) -> list[list[int]]:
    """For each level of the pyramid the layers with its channels and size that come before the one that it is."""
    training = backbone.training
    backbone.eval()
    with torch.no_grad(), watched(backbone.model, [node.path for node in backbone.nodes]) as seen:
        levels = backbone.pyramid(backbone.model(backbone.example().to(backbone.mean)))
    backbone.train(training)
    found: list[list[int]] = []
    for level in levels:
        layers = {
            number: map_
            for number, node in enumerate(backbone.nodes)
            if (map_ := _map_of(seen[node.path], level, node.axis)) is not None
        }
        same = [number for number, map_ in layers.items() if torch.equal(map_, level)]
        own = (same or list(layers) or [0])[-1]  # a norm may come between the last layer and the level
        found.append([number for number in layers if number < own])
    return found


def _map_of(output: Tensor, level: Tensor, axis: int) -> Tensor | None:
    """A layer's output in the shape of a level; None where it has another."""
    height, width = level.shape[-2:]
    if output.ndim == 3 and output.shape[1] < height * width:
        return None
    map_ = as_map(output, level, axis)
    return map_ if map_.shape == level.shape else None


class SluiceNetwork(StitchedNetwork):
    """Single-task networks with sluice units between them, and mixtures of layers in front of the heads.

    Args:
        tasks: any number.
        backbone: for the first task; the others get one of the same structure.
        layers: after which there is a unit.
        levels: as for `SluiceArchitecture`.
        subspaces, own, lr_factor: as for `mtlsearch.nn.stitch.Sluice`.
        own_level: the weight in [0, 1] with which a level itself starts in its mixture.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        layers: Sequence[int],
        levels: Sequence[Sequence[int]],
        *,
        subspaces: int = 2,
        own: float = 0.9,
        own_level: float = 0.9,
        lr_factor: float = 1.0,
    ) -> None:
        names = [task.name for task in tasks]
        nodes = {layer: backbone.nodes[layer] for layer in layers}
        for node in nodes.values():
            if node.channels % subspaces:
                raise ValueError(
                    f"subspaces must divide the {node.channels} channels of {node.path!r}: {subspaces} does not."
                )
        units = {
            layer: Unit(names, subspaces=subspaces, own=own, axis=node.axis, lr_factor=lr_factor)
            for layer, node in nodes.items()
        }
        super().__init__(tasks, backbone, units)
        self.levels = [list(level) for level in levels]
        self.mixtures: Any = nn.ModuleDict(
            {
                name: nn.ModuleDict(
                    {
                        str(number): Mixture(len(level), own=own_level, lr_factor=lr_factor)
                        for number, level in enumerate(levels)
                        if level
                    }
                )
                for name in names
            }
        )

    def pyramids(self, image: Tensor, wanted: Sequence[str]) -> dict[str, list[Tensor]]:
        seen: dict[tuple[str, int], Tensor] = {}
        mixed = {layer for level in self.levels for layer in level}

        def look(layer: int, outputs: dict[str, Tensor]) -> None:
            if layer in mixed:
                seen.update({(task, layer): outputs[task] for task in wanted})

        pyramids = self.run(image, wanted, look)
        for task, pyramid in pyramids.items():
            for number, level in enumerate(self.levels):
                if level:
                    own = pyramid[number]
                    maps = [as_map(seen[task, layer], own, self.nodes[layer].axis) for layer in level]
                    pyramid[number] = self.mixtures[task][str(number)](own, maps)
        return pyramids

    @contextmanager
    def watch_overlap(self) -> Iterator[list[Tensor]]:
        """How far from orthogonal the subspaces were, for each unit and each pass made within."""
        found: list[Tensor] = []
        with ExitStack() as hooks:
            for unit in self.units.values():
                hooks.enter_context(
                    unit.register_forward_pre_hook(lambda unit, given: found.append(unit.overlap(given[0])))
                )
            yield found


class Sluice(JoinedBaseline):
    """Single-task networks, joined by sluice units and trained together.

    Args:
        tasks: K >= 1.
        backbone: name of a timm model, or a `Backbone`.
        after: where the units are, after each "stage" or each "layer". The layers of a plain ViT are one stage.
        subspaces: G; it must divide the channels of the layers that have a unit.
        alpha_self: the weight in [0, 1] with which a subspace itself starts, all others sharing the rest.
        beta_self: the weight in [0, 1] with which a level of the pyramid itself starts, earlier layers sharing
            the rest.
        orthogonality: weight >= 0 of the penalty, summed over tasks, units and pairs of subspaces.
        sluice_lr_factor: on the learning rate of alpha and beta.
        others: as for `JoinedBaseline`.
    """

    net: SluiceNetwork

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: str | Backbone = "resnet50",
        *,
        after: str = "stage",
        subspaces: int = 2,
        alpha_self: float = 0.9,
        beta_self: float = 0.9,
        orthogonality: float = 0.1,
        sluice_lr_factor: float = 1.0,
        **others: Any,
    ) -> None:
        check_ranges({"alpha_self": alpha_self, "beta_self": beta_self}, low=0, high=1)
        check_ranges({"orthogonality": orthogonality}, low=0)
        check_ranges({"subspaces": subspaces}, low=1)

        def join(backbone: Backbone) -> tuple[SluiceArchitecture, SluiceNetwork]:
            alone = len(tasks) == 1
            layers = [] if alone else joints(backbone.nodes, after)
            levels = [[] if alone else level for level in earlier_layers(backbone)]
            network = SluiceNetwork(
                tasks,
                backbone,
                layers,
                levels,
                subspaces=subspaces,
                own=alpha_self,
                own_level=beta_self,
                lr_factor=sluice_lr_factor,
            )
            nodes = listed(backbone.nodes)
            return SluiceArchitecture(
                specs_of(tasks), backbone.spec, nodes, layers, subspaces, levels
            ), network

        super().__init__(tasks, backbone, join, **others)
        self.orthogonality = orthogonality

    def terms(self, group: str, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        if not (self.orthogonality and len(self.net.units)):
            return super().terms(group, batch, batch_index)
        with self.net.watch_overlap() as found:
            terms = super().terms(group, batch, batch_index)
        passes = len(found) // len(self.net.units)
        overlap = torch.stack(found).sum() / passes
        several = dist.is_available() and dist.is_initialized()
        settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1, "sync_dist": several}
        self.log("train/overlap", overlap.detach(), **settings)
        terms["orthogonality"] = self.orthogonality * overlap
        return terms
