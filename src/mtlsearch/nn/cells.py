"""Cells as DARTS derives them: two inputs, four nodes that add up two operations each, outputs concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.nn.operations import OPERATIONS, FactorizedReduce, ReLUConvBN, operation

NODES = range(2, 6)
EDGES = [(source, node) for node in NODES for source in range(node)]
"""The edges (source, node) that a search chooses from; 0 and 1 are the cell's inputs."""

Pairs = Sequence[Any]
"""A derived cell: eight pairs (operation, input), two a node, in the order of the nodes."""


def check_pairs(pairs: Any) -> None:
    """Raises a ValueError unless these are eight pairs [operation, input] of a derived cell."""
    if not isinstance(pairs, Sequence) or isinstance(pairs, str) or len(pairs) != 2 * len(NODES):
        raise ValueError(f"A cell is {2 * len(NODES)} pairs [operation, input], two a node, not {pairs!r}.")
    for index, pair in enumerate(pairs):
        node = NODES[index // 2]
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"Pair {index} must be [operation, input], not {pair!r}.")
        name, source = pair
        if name not in OPERATIONS[1:]:
            raise ValueError(
                f"Pair {index} names the operation {name!r}: it must be one of {list(OPERATIONS[1:])}."
            )
        if type(source) is not int or not 0 <= source < node:
            raise ValueError(
                f"Pair {index} belongs to node {node}, whose inputs are 0 to {node - 1}, not {source!r}."
            )
        if index % 2 and source == pairs[index - 1][1]:
            raise ValueError(f"Both pairs of node {node} take input {source}: they must differ.")


def derive_pairs(weights: Tensor, edges: Tensor | None = None) -> list[list[Any]]:
    """For each node the two strongest incoming edges, each with its best operation (DARTS, section 2.4).

    An edge is as strong as its best operation that is not none. The two are in the order of their inputs, so
    that cells that compute the same are equal.

    Args:
        weights: (14, 8) by EDGES and OPERATIONS, after the softmax.
        edges: (14,) weights of the edges, after theirs (PC-DARTS's edge normalization); None: all alike.
    """
    best, choice = weights.detach()[:, 1:].max(dim=1)
    strength = (best if edges is None else best * edges.detach()).tolist()
    pairs = []
    for node in NODES:
        incoming = [i for i, edge in enumerate(EDGES) if edge[1] == node]
        strongest = sorted(incoming, key=lambda i: -strength[i])[:2]
        pairs += [[OPERATIONS[int(choice[i]) + 1], EDGES[i][0]] for i in sorted(strongest)]
    return pairs


class Cell(nn.Module):
    """A derived cell.

    Args:
        pairs: (operation, input) for each of its eight edges.
        in_channels: of its two inputs.
        channels: of each node; the cell gives four times as many.
        reduction: whether it halves its inputs' size.
        reduces_first: whether the first input is twice as large as the second.
        unpadded: prepare the inputs by 3x3 convolutions without padding in place of 1x1 ones.

    Raises:
        ValueError: the pairs are not a cell's.
    """

    def __init__(
        self,
        pairs: Pairs,
        in_channels: tuple[int, int],
        channels: int,
        *,
        reduction: bool,
        reduces_first: bool = False,
        unpadded: bool = False,
    ) -> None:
        super().__init__()
        check_pairs(pairs)
        self.sources = [source for _, source in pairs]
        self.prepare = Prepare(in_channels, channels, reduces_first=reduces_first, unpadded=unpadded)
        self.operations = nn.ModuleList(
            operation(name, channels, 2 if reduction and source < 2 else 1) for name, source in pairs
        )

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        """(B, 4 * channels, H', W') of the two inputs (B, in_channels[i], H_i, W_i)."""
        states = [*self.prepare(s0, s1)]
        for first in range(0, len(self.sources), 2):
            a, b = (self.operations[i](states[self.sources[i]]) for i in (first, first + 1))
            states.append(a + b)
        return torch.cat(states[2:], dim=1)


class Prepare(nn.Module):
    """Brings the two inputs of a cell to its channels and to one size.

    Args:
        in_channels, channels, reduces_first, unpadded: see Cell.
        affine: whether the norms scale and shift.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        *,
        reduces_first: bool = False,
        unpadded: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.kernel = 3 if unpadded else 1
        first, second = (ReLUConvBN(width, channels, self.kernel, affine=affine) for width in in_channels)
        self.first: nn.Module = first
        if reduces_first:
            self.first = (
                nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), first)
                if unpadded
                else FactorizedReduce(in_channels[0], channels, affine=affine)
            )
        self.second = second

    def forward(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor]:
        """Both as (B, channels, H, W).

        Raises:
            ValueError: they do not come to one size, or are too small for what has no padding.
        """
        if min(*s0.shape[-2:], *s1.shape[-2:]) < self.kernel:
            raise ValueError(
                f"Maps of {tuple(s0.shape[-2:])} and {tuple(s1.shape[-2:])} are too small for an unpadded "
                "3x3 convolution: take larger images."
            )
        first, second = self.first(s0), self.second(s1)
        if first.shape != second.shape:
            raise ValueError(
                f"A cell's inputs come to {tuple(first.shape)} and {tuple(second.shape)}: they must have one "
                "size, the first one twice that where reduces_first is set."
            )
        return first, second
