"""One backbone of which every task runs the blocks that it selects: the network of AdaShare, and it as data.

With all blocks selected it is the hard-sharing network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.architecture import Architecture, backbone_of, check_paths, check_spec, specs_of, tasks_of
from mtlsearch.backbones import Backbone
from mtlsearch.nn.branches import Gates
from mtlsearch.nn.paths import Paths, skippable
from mtlsearch.task import Task

Selection = Mapping[str, Sequence[bool]]


@dataclass(frozen=True)
class PolicyArchitecture(Architecture):
    """A backbone, and for each task the blocks that it runs.

    Args:
        backbone: {"name", "arguments"} of `mtlsearch.backbones.load`; None for a module of yours.
        blocks: module paths of the L blocks that can be skipped, in order.
        stages: the stage of each.
        probabilities: by task, with which each block was selected when this was chosen.
        select: by task, whether it runs each block.
        instance: whether a network in it selects anew for every image; `select` then is what it does on most.
    """

    backbone: dict[str, Any] | None
    blocks: list[str]
    stages: list[int]
    probabilities: dict[str, list[float]]
    select: dict[str, list[bool]]
    instance: bool = False

    kind = "policy"

    def check(self) -> None:
        check_spec(self.backbone)
        count = len(self.blocks) if isinstance(self.blocks, list) else 0
        if not count or any(not isinstance(path, str) for path in self.blocks):
            raise ValueError(f"blocks must be a list of module paths, not {self.blocks!r}.")
        if not isinstance(self.stages, list) or [type(stage) for stage in self.stages] != [int] * count:
            raise ValueError(f"stages must be {count} whole numbers, not {self.stages!r}.")
        if not isinstance(self.instance, bool):
            raise ValueError(f"instance must be true or false, not {self.instance!r}.")
        for name, kind in (("probabilities", float), ("select", bool)):
            field = getattr(self, name)
            if not isinstance(field, dict) or list(field) != list(self.tasks):
                raise ValueError(f"{name} must have an entry for each of {list(self.tasks)}.")
            for task, values in field.items():
                if not isinstance(values, list) or [type(value) for value in values] != [kind] * count:
                    raise ValueError(
                        f"{name} of {task!r} must be {count} of {kind.__name__}, not {values!r}."
                    )
        if any(not 0 <= p <= 1 for values in self.probabilities.values() for p in values):
            raise ValueError("probabilities must lie in [0, 1].")

    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> PolicyNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        check_paths(self.blocks, [node.path for node in skippable(backbone)])
        return PolicyNetwork(tasks, backbone, self.select, instance=self.instance)


def policy_architecture(
    tasks: Sequence[Task],
    backbone: Backbone,
    select: Selection | None = None,
    probabilities: Mapping[str, Sequence[float]] | None = None,
    *,
    instance: bool = False,
) -> PolicyArchitecture:
    """The data of a network on this backbone; every task runs all blocks where `select` is None."""
    nodes = skippable(backbone)
    if select is None:
        select = {task.name: [True] * len(nodes) for task in tasks}
    if probabilities is None:
        probabilities = {name: [float(on) for on in chosen] for name, chosen in select.items()}
    return PolicyArchitecture(
        tasks=specs_of(tasks),
        backbone=backbone.spec,
        blocks=[node.path for node in nodes],
        stages=[node.stage for node in nodes],
        probabilities={name: list(values) for name, values in probabilities.items()},
        select={name: list(chosen) for name, chosen in select.items()},
        instance=instance,
    )


def selected(select: Selection) -> Gates:
    """The hard gates of a selection: for each block, whether each task runs it."""
    return [dict(zip(select, on)) for on in zip(*select.values())]


class PolicyNetwork(nn.Module):
    """A shared backbone with a policy, and the tasks' heads.

    Args:
        tasks: any number.
        backbone: copied.
        select: by task, the blocks that it runs; None: all. A block that no task runs is removed, but for its
            shortcut. A norm that several paths reach has running statistics for each, (paths, C).
        instance: whether a `Predictor` selects instead, for every image.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        backbone: Backbone,
        select: Selection | None = None,
        *,
        instance: bool = False,
    ) -> None:
        super().__init__()
        channels, strides = backbone.channels, backbone.strides
        self.paths = Paths(copy.deepcopy(backbone))
        self.heads = nn.ModuleDict({task.name: task.head(channels, strides) for task in tasks})
        count = len(self.paths.blocks)
        self.predictor = Predictor(count, len(self.heads)) if instance else None
        self.select = {task.name: [True] * count for task in tasks}
        if select is not None and not instance:
            self._select(select)

    def _select(self, select: Selection) -> None:
        self.select = {task: list(select[task]) for task in self.select}
        gates = selected(self.select)
        self.paths.drop([index for index, gate in enumerate(gates) if not any(gate.values())])
        self.paths.separate(gates)

    def reduced(self, select: Selection) -> PolicyNetwork:
        """A copy in which each task runs these blocks only; the others go, weights and statistics stay."""
        network = copy.deepcopy(self)
        if network.predictor is None:
            network._select(select)
        return network

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, gates: Gates | None = None
    ) -> dict[str, Tensor]:
        """Predictions by task, computing only what these need, and once what they share.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
            gates: in place of the policy, see `mtlsearch.nn.branches.Gate`.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        pyramids = self.paths(image, wanted, self.gates(image) if gates is None else gates)
        size = image.shape[-2:]
        return {name: self.heads[name](pyramids[name], size) for name in wanted}

    def gates(self, image: Tensor) -> Gates:
        """The policy's own gates for these images."""
        if self.predictor is None:
            return selected(self.select)
        on = self.predictor(self.paths.backbone.normalize(image)) > 0
        return [{task: on[:, i, k] for k, task in enumerate(self.select)} for i in range(on.shape[1])]


class Predictor(nn.Module):
    """Selects blocks for an image (AdaShare's ablation "Instance"): a small network on the image at 1/4 of its
    size, as the policy networks of BlockDrop and of Deep Elastic Networks are small ResNets.

    Args:
        blocks, tasks: how many.
        init_std, init_probability: of the logits at the start, as for `Gates`.
    """

    def __init__(
        self,
        blocks: int,
        tasks: int,
        *,
        init_std: float = 0.01,
        init_probability: float = 0.5,
        width: int = 16,
    ) -> None:
        super().__init__()
        self.shape = (blocks, tasks)
        widths = [3, width, 2 * width, 4 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()
                )
                for before, after in pairwise(widths)
            )
        )
        self.classify = nn.Linear(widths[-1], blocks * tasks)
        nn.init.normal_(self.classify.weight, std=init_std)
        nn.init.constant_(self.classify.bias, float(torch.tensor(init_probability).logit()))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, L, K) for normalised images."""
        small = F.avg_pool2d(image, 4) if min(image.shape[-2:]) >= 64 else image
        logits: Tensor = self.classify(self.layers(small).mean(dim=(2, 3)))
        return logits.view(-1, *self.shape)
