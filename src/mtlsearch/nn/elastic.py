"""One backbone run along several paths whose blocks may be narrower: the estimator of Deep Elastic Networks.

A task runs the first channels of a block's hidden layer, or skips the block. Hidden channels are those between two
layers of a block, with nothing between them but BatchNorm, depthwise convolutions and what has no parameters. Those
that a task leaves out are not computed for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlsearch.backbones import Backbone, Node
from mtlsearch.nn.branches import Pass, cat
from mtlsearch.nn.paths import Block, Paths, skippable

Widths = Sequence[Mapping[str, int]]
"""For each block the number of hidden channels that each task runs; 0 skips the block."""


class Hidden(NamedTuple):
    """A hidden layer: paths, in a block, of the modules that make, change and read its channels."""

    first: str
    norms: list[str]
    depthwise: list[str]
    last: str
    channels: int


def hidden_layer(block: nn.Module) -> Hidden | None:
    """The first hidden layer of a block outside its shortcut; None where there is none."""
    found: Hidden | None = None
    for path, module in block.named_modules():
        side = path.partition(".")[0]
        if side in ("downsample", "shortcut"):
            continue
        if side == "se" and any(True for _ in module.parameters()):
            found = None  # squeeze and excitation looks at all channels at once
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            groups = getattr(module, "groups", 1)
            inputs, outputs = module.weight.shape[1] * groups, module.weight.shape[0]
            follows = found is not None and found.channels == inputs and _parent(found.first) == _parent(path)
            if found is not None and follows and groups == 1:
                return found._replace(last=path)
            if found is not None and follows and groups == inputs == outputs:
                found.depthwise.append(path)
            else:
                found = Hidden(path, [], [], "", outputs) if groups == 1 else None
        elif isinstance(module, _BatchNorm):
            if found is not None:
                found.norms.append(path)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            found = None
    return None


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def elastic(backbone: Backbone) -> list[Node]:
    """The nodes that a task can skip and that have a hidden layer."""
    modules = dict(backbone.model.named_modules())
    return [node for node in skippable(backbone) if hidden_layer(modules[node.path]) is not None]


def hidden_channels(backbone: Backbone) -> list[int]:
    """How many hidden channels each of the `elastic` nodes has."""
    layers = [hidden_layer(backbone.model.get_submodule(node.path)) for node in elastic(backbone)]
    return [layer.channels for layer in layers if layer is not None]


class ElasticPaths(Paths):
    """A backbone whose elastic blocks have for each task a number of hidden channels, in place of a gate.

    Raises:
        ValueError: it has no elastic block.
    """

    refusal = (
        "This backbone has no block that a task could skip or run with fewer hidden channels: den needs residual "
        "blocks in which nothing but BatchNorm and depthwise convolutions stands between two layers. Any ResNet, "
        "ConvNeXt, MobileNetV2 or ViT has some."
    )

    def gated(self, backbone: Backbone) -> list[Node]:
        return elastic(backbone)

    def gate(self, block: nn.Module, index: int) -> ElasticBlock:
        return ElasticBlock(block, index, self._pass)

    def shrink(self, channels: Sequence[int]) -> None:
        """Remove of each block the hidden channels after this number, and all of it for 0."""
        for index, kept in enumerate(channels):
            block = self.block(index)
            assert isinstance(block, ElasticBlock)
            if kept:
                block.shrink(kept)
        self.drop([index for index, kept in enumerate(channels) if not kept])


class ElasticBlock(Block):
    """A block that runs with the first of its hidden channels: its gates are their numbers, and 0 skips it."""

    def __init__(self, block: nn.Module, index: int, run: Pass) -> None:
        super().__init__(block, index, run)
        hidden = hidden_layer(block)
        assert hidden is not None
        self.hidden = hidden

    def _branched(self, stack: Tensor, skips: Tensor, parts: Sequence[Any], rows: int) -> Tensor:
        flat = [(i, tasks, channels) for i, own in enumerate(parts) for tasks, channels in own]
        inputs, shortcuts = stack.split(rows), skips.split(rows)
        outputs = [shortcuts[i] for i, _, _ in flat]
        for channels in sorted({channels for _, _, channels in flat if channels}):
            chosen = [n for n, part in enumerate(flat) if part[2] == channels]
            places = [flat[n][0] for n in chosen]
            self._pass.stacked = [flat[n][1] for n in chosen]
            with self._narrowed(channels) as tensors:
                result = self._called(
                    cat([inputs[i] for i in places]), cat([shortcuts[i] for i in places]), tensors
                )
            for n, part in zip(chosen, result.split(rows)):
                outputs[n] = part
        return cat(outputs)

    @contextmanager
    def _narrowed(self, channels: int) -> Iterator[dict[str, Tensor] | None]:
        """The tensors that stand in for the block's own where it runs with so many hidden channels."""
        there = self.hidden.channels if self.block is not None else 0
        if channels > there:
            raise ValueError(
                f"Block {self.index} has {there} hidden channels in this network, and {channels} are wanted."
            )
        if channels == there:
            yield None
            return
        try:
            self._set_groups(channels)
            yield {name: tensor.narrow(axis, 0, channels) for name, tensor, axis in self._tensors()}
        finally:
            self._set_groups(there)

    def shrink(self, channels: int) -> None:
        """Remove the hidden channels after this number."""
        assert self.block is not None
        for name, tensor, axis in self._tensors():
            path, _, own = name.rpartition(".")
            kept = tensor.detach().narrow(axis, 0, channels).clone()
            setattr(
                self.block.get_submodule(path),
                own,
                nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept,
            )
        self._set_groups(channels)
        for path in self.hidden.norms:
            norm: Any = self.block.get_submodule(path)
            norm.num_features = channels
        self.hidden = self.hidden._replace(channels=channels)

    def _tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """Parameters and buffers that hold the hidden channels: their names in the block, and on which axis."""
        assert self.block is not None
        hidden = self.hidden
        names = [
            *((path, name, 0) for path in (hidden.first, *hidden.depthwise) for name in ("weight", "bias")),
            *((path, name, 0) for path in hidden.norms for name in ("weight", "bias")),
            *((path, name, -1) for path in hidden.norms for name in ("running_mean", "running_var")),
            (hidden.last, "weight", 1),
        ]
        for path, name, axis in names:
            tensor = getattr(self.block.get_submodule(path), name)
            if tensor is not None:
                yield f"{path}.{name}", tensor, axis

    def _set_groups(self, channels: int) -> None:
        assert self.block is not None
        for path in self.hidden.depthwise:
            conv: Any = self.block.get_submodule(path)
            conv.groups = channels
