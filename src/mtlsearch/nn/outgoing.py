"""Everything that leaves a node of a cell: all operations on all its edges."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.nn.bundles import (
    Bundle,
    Convolutions,
    Kept,
    Node,
    NodeGradient,
    Pull,
    Wanted,
    relu_gradient_,
)
from mtlsearch.nn.light_bundles import Identities, Pools, Reductions
from mtlsearch.nn.normed import Normed
from mtlsearch.nn.operations import OPERATIONS


class Outgoing(nn.ModuleDict):
    """A bundle for each operation but none, by its name.

    Args:
        channels: of the node, and of each result.
        edges: how many leave it.
        stride: of all of them, 1 or 2.
    """

    def __init__(self, channels: int, edges: int, stride: int) -> None:
        shape = channels, edges, stride
        super().__init__(
            {
                "max_pool_3x3": Pools(*shape, kind="max"),
                "avg_pool_3x3": Pools(*shape, kind="avg"),
                "skip_connect": Identities(*shape) if stride == 1 else Reductions(*shape),
                "sep_conv_3x3": Convolutions(*shape, kernel=3, dilation=1),
                "sep_conv_5x5": Convolutions(*shape, kernel=5, dilation=1),
                "dil_conv_3x3": Convolutions(*shape, kernel=3, dilation=2),
                "dil_conv_5x5": Convolutions(*shape, kernel=5, dilation=2),
            }
        )
        self.edges, self.stride = edges, stride
        self.counts = [len(list(bundle.parameters())) for bundle in self.values()]

    def state(self, edge: int, name: str) -> dict[str, Tensor]:
        """See `MixedCell.state`; here `edge` counts the edges of this node."""
        return self.bundle(name).state(edge) if name in self else {}

    def bundle(self, name: str) -> Bundle:
        bundle = self[name]
        assert isinstance(bundle, Bundle)
        return bundle

    def node(self, x: Tensor) -> Node:
        """The forms of the node's map (B, C, H, W) that bundles read."""
        x = x.contiguous(memory_format=torch.channels_last)
        active = x.relu()
        return Node(x, active, torch.cat([active] * self.edges, dim=1))

    def prepare(self, node: Node, p: Sequence[Tensor], known: list[Kept] | None = None) -> list[Kept]:
        """What each bundle keeps; see `Bundle.prepare`."""
        return [
            bundle.prepare(node, part, None if known is None else known[i])
            for i, (bundle, part) in enumerate(self._parts(p))
        ]

    def add_(self, out: Tensor, node: Node, p: Sequence[Tensor], kept: list[Kept], weights: Tensor) -> None:
        """Add all results, times the weights (edges, 8), to rows (N, edges * C)."""
        columns = weights.T[[OPERATIONS.index(name) for name in self]]
        for (bundle, part), own, column in zip(self._parts(p), kept, columns):
            bundle.add_(out, node, part, own, column)

    def gradients(
        self,
        grad: Tensor,
        node: Node,
        p: Sequence[Tensor],
        kept: list[Kept],
        weights: Tensor,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Gradients of the weights (edges, 8), of the node's map and of the parameters, where wanted."""
        sums = grad.sum(0).view(self.edges, -1)
        into = NodeGradient()
        of_weights = torch.zeros_like(weights)
        of_parameters: list[Tensor | None] = []
        for (bundle, part), name, own in zip(self._parts(p), self, kept):
            column = OPERATIONS.index(name)
            pull = Pull(grad, sums, weights[:, column], wanted)
            mine, others = bundle.gradients(pull, node, part, own, into)
            if mine is not None:
                of_weights[:, column] = mine
            of_parameters += others
        if into.x is None or into.wide is None:
            return of_weights, None, of_parameters
        for wide in into.wide.chunk(self.edges, dim=1):
            into.add("active", wide)
        assert into.active is not None
        return of_weights, into.x.add_(relu_gradient_(into.active, node.x)), of_parameters

    def _parts(self, p: Sequence[Tensor]) -> Iterator[tuple[Bundle, Sequence[Tensor]]]:
        """Each bundle with its parameters out of all of them."""
        start = 0
        for name, count in zip(self, self.counts):
            end = start + count
            yield self.bundle(name), p[start:end]
            start = end


def without_maps(kept: list[Kept]) -> list[Kept]:
    """What is known of a forward pass when its maps are not kept."""

    def one(x: Any) -> Any:
        return x._replace(rows=x.rows.new_empty(0)) if isinstance(x, Normed) else x.new_empty(0)

    return [[one(x) for x in part] for part in kept]


def flattened(kept: list[Kept]) -> tuple[list[Tensor | None], Any]:
    """All tensors in a row, and what `restored` wants besides."""
    tensors = [t for part in kept for x in part for t in (x if isinstance(x, Normed) else [x])]
    return tensors, [[isinstance(x, Normed) for x in part] for part in kept]


def restored(tensors: Iterator[Any], form: Any) -> list[Kept]:
    """The inverse of `flattened`."""

    def one(is_normed: bool) -> Any:
        return Normed(*(next(tensors) for _ in Normed._fields)) if is_normed else next(tensors)

    return [[one(is_normed) for is_normed in part] for part in form]
