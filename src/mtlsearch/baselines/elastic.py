"""One backbone of which every task runs the channels that it selects: the network of DEN, and it as data.

With all channels selected it is the hard-sharing network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtlsearch.architecture import Architecture, backbone_of, check_paths, check_spec, specs_of, tasks_of
from mtlsearch.backbones import Backbone
from mtlsearch.nn.elastic import ElasticPaths, Widths, elastic, hidden_channels
from mtlsearch.task import Task

Kept = Mapping[str, Sequence[int]]
"""By task, of each block the number of hidden channels that it runs."""


@dataclass(frozen=True)
class ElasticArchitecture(Architecture):
    """A backbone, and for each task the channels that it runs of each block's hidden layer.

    Args:
        backbone: {"name", "arguments"} of `mtlsearch.backbones.load`; None for a module of yours.
        blocks: module paths of the L blocks that a task can skip or narrow, in order.
        channels: of each block's hidden layer.
        kept: by task, how many of them, the first ones, it runs; 0 skips the block.
    """

    backbone: dict[str, Any] | None
    blocks: list[str]
    channels: list[int]
    kept: dict[str, list[int]]

    kind = "elastic"

    def check(self) -> None:
        check_spec(self.backbone)
        count = len(self.blocks) if isinstance(self.blocks, list) else 0
        if not count or any(not isinstance(path, str) for path in self.blocks):
            raise ValueError(f"blocks must be a list of module paths, not {self.blocks!r}.")
        if not isinstance(self.channels, list) or [type(value) for value in self.channels] != [int] * count:
            raise ValueError(f"channels must be {count} whole numbers, not {self.channels!r}.")
        if not isinstance(self.kept, dict) or list(self.kept) != list(self.tasks):
            raise ValueError(f"kept must have an entry for each of {list(self.tasks)}.")
        for task, values in self.kept.items():
            if not isinstance(values, list) or [type(value) for value in values] != [int] * count:
                raise ValueError(f"kept of {task!r} must be {count} whole numbers, not {values!r}.")
            if any(not 0 <= kept <= own for kept, own in zip(values, self.channels)):
                raise ValueError(f"kept of {task!r} must be from 0 to {self.channels}, not {values}.")

    def build(self, tasks: Sequence[Task] | None = None, backbone: Backbone | None = None) -> ElasticNetwork:
        tasks = tasks_of(self, tasks)
        backbone = backbone_of(self.backbone, backbone)
        check_paths(self.blocks, [node.path for node in elastic(backbone)])
        found = hidden_channels(backbone)
        if found != self.channels:
            raise ValueError(
                f"The backbone's blocks have {found} hidden channels, and not {self.channels} as in the "
                "architecture: another model, or another version of timm."
            )
        return ElasticNetwork(tasks, backbone, self.kept)


def elastic_architecture(
    tasks: Sequence[Task], backbone: Backbone, kept: Kept | None = None
) -> ElasticArchitecture:
    """The data of a network on this backbone; every task runs all channels where `kept` is None."""
    channels = hidden_channels(backbone)
    if kept is None:
        kept = {task.name: channels for task in tasks}
    return ElasticArchitecture(
        tasks=specs_of(tasks),
        backbone=backbone.spec,
        blocks=[node.path for node in elastic(backbone)],
        channels=channels,
        kept={name: list(values) for name, values in kept.items()},
    )


def widths_of(kept: Kept) -> Widths:
    """The same by block."""
    return [dict(zip(kept, row)) for row in zip(*kept.values())]


class ElasticNetwork(nn.Module):
    """A shared backbone with a selection of channels, and the tasks' heads.

    Args:
        tasks: any number.
        backbone: copied.
        kept: by task, the channels that it runs of each block; None: all. Those that no task runs are not there.
            A norm that several paths reach has running statistics for each, (paths, C).
    """

    def __init__(self, tasks: Sequence[Task], backbone: Backbone, kept: Kept | None = None) -> None:
        super().__init__()
        channels, strides = backbone.channels, backbone.strides
        whole = hidden_channels(backbone)
        self.paths = ElasticPaths(copy.deepcopy(backbone))
        self.heads = nn.ModuleDict({task.name: task.head(channels, strides) for task in tasks})
        self.kept = {task.name: list(whole) for task in tasks}
        if kept is not None:
            self._keep(kept)

    def _keep(self, kept: Kept) -> None:
        self.kept = {task: list(kept[task]) for task in self.kept}
        widths: Any = widths_of(self.kept)
        self.paths.shrink([max(own.values()) for own in widths])
        self.paths.separate(widths)

    def reduced(self, kept: Kept) -> ElasticNetwork:
        """A copy in which each task runs these channels only; the others go, weights and statistics stay."""
        network = copy.deepcopy(self)
        network._keep(kept)
        return network

    def forward(
        self, image: Tensor, tasks: Sequence[str] | None = None, widths: Widths | None = None
    ) -> dict[str, Tensor]:
        """Predictions by task, computing only what these need, and once what they share.

        Args:
            image: (B, 3, H, W), RGB in [0, 1].
            tasks: names of those wanted; None: all.
            widths: in place of the network's own selection.
        """
        wanted = list(self.heads) if tasks is None else list(tasks)
        pyramids = self.paths(image, wanted, widths_of(self.kept) if widths is None else widths)
        size = image.shape[-2:]
        return {name: self.heads[name](pyramids[name], size) for name in wanted}
