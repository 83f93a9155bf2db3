"""The bundles of operations that have no weights, or hardly any: pools and skip connections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlsearch.nn.bundles import (
    Bundle,
    Gradients,
    Kept,
    Node,
    NodeGradient,
    Parameters,
    Pull,
    statistics_of,
    uniform,
)
from mtlsearch.nn.normed import Norm, add_normed_, normed, normed_gradients, to_map, to_rows
from mtlsearch.nn.operations import even_and_odd
from mtlsearch.nn.pools import average_pool, average_pool_gradient, max_pool, max_pool_gradient


class Pools(Bundle):
    """3x3 pools and their BN: the same for every edge, so computed once.

    Args:
        channels, edges, stride: see Bundle.
        kind: "max" or "avg".
    """

    def __init__(self, channels: int, edges: int, stride: int, *, kind: str) -> None:
        super().__init__(channels, edges, stride)
        self.kind = kind
        self.norm = Norm(channels)

    def state(self, edge: int) -> dict[str, Tensor]:
        return statistics_of("1", self.norm, slice(None))

    def prepare(self, node: Node, p: Parameters, known: Kept | None) -> Kept:
        x = node.x.contiguous(memory_format=torch.channels_last)
        pooled = max_pool(x, self.stride) if self.kind == "max" else average_pool(x, self.stride)
        return [normed(to_rows(pooled), None, self.norm, None if known is None else known[0])]

    def add_(self, out: Tensor, node: Node, p: Parameters, kept: Kept, weights: Tensor) -> None:
        x = kept[0]
        factors = weights[:, None] * x.scale
        for edge, factor in enumerate(factors):
            out[:, self.columns(edge)].addcmul_(x.rows, factor)
        if x.shift is not None:
            out.sub_((factors * x.shift).flatten())

    def gradients(self, pull: Pull, node: Node, p: Parameters, kept: Kept, into: NodeGradient) -> Gradients:
        x = kept[0]
        own = total = None
        if pull.wanted.weights:
            dots = torch.stack([(part * x.rows).sum(0) for part in pull.rows.chunk(self.edges, dim=1)])
            own = x.scale * (dots if x.shift is None else dots - x.shift * pull.sums)
            total = pull.weights @ own
        if pull.wanted.node:
            mixed = _weighted(pull)
            if x.covariance is None:
                mixed.mul_(x.scale)
            else:
                if total is None:
                    total = x.scale * (mixed * x.rows).sum(0)
                count = len(mixed)
                mixed.sub_(pull.weights @ pull.sums / count).mul_(x.scale)
                mixed.addcmul_(x.rows, x.scale.square() * total / -count)
            back = max_pool_gradient if self.kind == "max" else average_pool_gradient
            like = node.x[:, :, :: self.stride, :: self.stride]
            into.add("x", back(to_map(mixed, like), node.x, self.stride))
        return None if own is None else own.sum(-1), []


class Identities(Bundle):
    """Skip connections where no edge has a stride."""

    def state(self, edge: int) -> dict[str, Tensor]:
        return {}

    def prepare(self, node: Node, p: Parameters, known: Kept | None) -> Kept:
        return []

    def add_(self, out: Tensor, node: Node, p: Parameters, kept: Kept, weights: Tensor) -> None:
        for edge, weight in enumerate(weights):
            out[:, self.columns(edge)].addcmul_(to_rows(node.x), weight)

    def gradients(self, pull: Pull, node: Node, p: Parameters, kept: Kept, into: NodeGradient) -> Gradients:
        own = None
        if pull.wanted.weights:
            rows = to_rows(node.x)
            own = torch.stack([(part * rows).sum() for part in pull.rows.chunk(self.edges, dim=1)])
        if pull.wanted.node:
            into.add("x", to_map(_weighted(pull), node.x))
        return own, []


class Reductions(Bundle):
    """Skip connections where the edges have stride 2: FactorizedReduce."""

    def __init__(self, channels: int, edges: int, stride: int) -> None:
        super().__init__(channels, edges, stride)
        self.even = uniform(edges, channels - channels // 2, channels, fan_in=channels)
        self.odd = uniform(edges, channels // 2, channels, fan_in=channels)
        self.norm = Norm(edges * channels)

    def state(self, edge: int) -> dict[str, Tensor]:
        weights = {
            "even.weight": self.even[edge][:, :, None, None],
            "odd.weight": self.odd[edge][:, :, None, None],
        }
        return weights | statistics_of("norm", self.norm, self.columns(edge))

    def prepare(self, node: Node, p: Parameters, known: Kept | None) -> Kept:
        rows = to_rows(torch.cat(even_and_odd(node.active), dim=1))
        return [normed(rows, self._point(p), self.norm, None if known is None else known[0])]

    def _point(self, p: Parameters) -> Tensor:
        """All convolutions as one matrix (1, edges * C, 2 C) for the even pixels and the odd ones."""
        even, odd = F.pad(p[0], (0, self.channels)), F.pad(p[1], (self.channels, 0))
        return torch.cat([even, odd], dim=1).reshape(1, -1, 2 * self.channels)

    def add_(self, out: Tensor, node: Node, p: Parameters, kept: Kept, weights: Tensor) -> None:
        add_normed_(out, kept[0], self._point(p), weights.repeat_interleave(self.channels)[None])

    def gradients(self, pull: Pull, node: Node, p: Parameters, kept: Kept, into: NodeGradient) -> Gradients:
        g = normed_gradients(
            pull.rows,
            pull.sums.view(1, -1),
            kept[0],
            self._point(p),
            pull.weights.repeat_interleave(self.channels)[None],
            want_point=pull.wanted.parameters,
            want_rows=pull.wanted.node,
        )
        if g.rows is not None:
            height, width = node.x.shape[-2:]
            even, odd = to_map(g.rows, node.x[:, :, ::2, ::2]).chunk(2, dim=1)
            active = torch.zeros_like(node.active)
            active[:, :, ::2, ::2] = even
            active[:, :, 1::2, 1::2] = odd[:, :, : height // 2, : width // 2]
            into.add("active", active)
        of_even = of_odd = None
        if g.point is not None:
            point = g.point.view(self.edges, self.channels, -1)
            of_even = point[:, : self.even.shape[1], : self.channels]
            of_odd = point[:, self.even.shape[1] :, self.channels :]
        return g.weights.view(self.edges, -1).sum(-1), [of_even, of_odd]


def _weighted(pull: Pull) -> Tensor:
    """The gradients of all edges, times their weights: (N, C)."""
    first, *others = pull.rows.chunk(len(pull.weights), dim=1)
    mixed = first * pull.weights[0]
    for part, weight in zip(others, pull.weights[1:]):
        mixed.addcmul_(part, weight)
    return mixed
