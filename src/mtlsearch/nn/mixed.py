"""A cell of the supernet: every operation on every edge, weighted (DARTS Eq. 2; PC-DARTS Eq. 3 and 4)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.nn.cells import EDGES, NODES, Cell, Pairs, Prepare
from mtlsearch.nn.operations import OPERATIONS, operation


class MixedCell(nn.Module):
    """A cell whose edges are weighted sums of all operations, whose norms neither scale nor shift.

    Args:
        in_channels, channels, reduction, reduces_first, unpadded: see `cells.Cell`.
        partial: operations see channels / partial of the channels, the others go past them, and all are
            shuffled (PC-DARTS).
        recompute: keep less for the backward pass and compute it again.

    Raises:
        ValueError: the channels do not divide by `partial`.
    """

    def __init__(
        self,
        in_channels: tuple[int, int],
        channels: int,
        *,
        reduction: bool,
        reduces_first: bool = False,
        unpadded: bool = False,
        partial: int = 1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if partial < 1 or channels % partial:
            raise ValueError(f"The {channels} channels of a cell must divide by partial={partial}.")
        self.in_channels = in_channels
        self.channels = channels
        self.reduction, self.reduces_first, self.unpadded = reduction, reduces_first, unpadded
        self.partial = partial
        self.recompute = recompute
        self.prepare = Prepare(
            in_channels, channels, reduces_first=reduces_first, unpadded=unpadded, affine=False
        )
        self.operations = nn.ModuleList(
            nn.ModuleList(
                operation(name, channels // partial, self._stride(source), affine=False)
                for name in OPERATIONS
            )
            for source, _ in EDGES
        )

    def _stride(self, source: int) -> int:
        return 2 if self.reduction and source < 2 else 1

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, edges: Tensor | None = None) -> Tensor:
        """(B, 4 * channels, H', W') of the two inputs (B, in_channels[i], H_i, W_i).

        Args:
            s0, s1: the outputs of the two cells before.
            weights: (14, 8) by `cells.EDGES` and `operations.OPERATIONS`, soft or hard.
            edges: (14,) weights of the edges; None: all are 1.
        """
        states = [*self.prepare(s0, s1)]
        for node in NODES:
            incoming = [i for i, edge in enumerate(EDGES) if edge[1] == node]
            outputs = [self._mixed(i, states[EDGES[i][0]], weights[i]) for i in incoming]
            if edges is not None:
                outputs = [output * edges[i] for i, output in zip(incoming, outputs)]
            states.append(torch.stack(outputs).sum(0))
        return torch.cat(states[2:], dim=1)

    def _mixed(self, index: int, x: Tensor, weights: Tensor) -> Tensor:
        seen = self.channels // self.partial
        used, past = x[:, :seen], x[:, seen:]
        operations: Any = self.operations[index]
        mixed = torch.stack([w * op(used) for w, op in zip(weights, operations)]).sum(0)
        if self.partial == 1:
            return mixed
        if self._stride(EDGES[index][0]) == 2:
            past = F.max_pool2d(past, 2, ceil_mode=True)
        whole = torch.cat([mixed, past], dim=1)
        shuffled: Tensor = whole.unflatten(1, (self.partial, seen)).transpose(1, 2).flatten(1, 2)
        return shuffled

    @torch.no_grad()
    def extract(self, pairs: Pairs) -> Cell:
        """The derived cell with this one's trained weights.

        It equals this cell under the pairs' hard weights. With `partial` > 1 its operations see all channels,
        so only the preparation of its inputs is copied and they start afresh.
        """
        cell = Cell(
            pairs,
            self.in_channels,
            self.channels,
            reduction=self.reduction,
            reduces_first=self.reduces_first,
            unpadded=self.unpadded,
        )
        cell.to(next(self.parameters()).device, next(self.parameters()).dtype).train(self.training)
        copy_into(cell.prepare, copy.deepcopy(self.prepare))
        if self.partial == 1:
            for index, (name, source) in enumerate(pairs):
                edge = EDGES.index((source, NODES[index // 2]))
                mine: Any = self.operations[edge]
                copy_into(cell.operations[index], mine[OPERATIONS.index(name)])
        return cell


def copy_into(target: nn.Module, source: nn.Module) -> None:
    """Weights and statistics of a module whose norms do not scale into one whose norms do, by 1 and 0."""
    target.load_state_dict(source.state_dict(), strict=False)
    for module in target.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
