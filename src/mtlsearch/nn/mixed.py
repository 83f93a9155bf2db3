"""A cell of the supernet: every operation on every edge, weighted (DARTS Eq. 2; partial channels: PC-DARTS)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtlsearch.nn.bundles import Wanted
from mtlsearch.nn.cells import EDGES, NODES, Cell, Pairs, Prepare
from mtlsearch.nn.normed import to_map, to_rows
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.nn.outgoing import Outgoing, flattened, restored, without_maps

SOURCES = range(5)
LEAVING = [[i for i, edge in enumerate(EDGES) if edge[0] == source] for source in SOURCES]
"""The edges that leave each node, in the order of their targets."""


class MixedCell(nn.Module):
    """A cell whose edges are weighted sums of all operations, whose norms neither scale nor shift.

    All edges that leave a node are computed together, the norms' statistics come from those of what is before
    their 1x1 products, and gradients are those that are wanted only. It is the same function as operation by
    operation.

    Args:
        in_channels, channels, reduction, reduces_first, unpadded: see `cells.Cell`.
        partial: operations see the first channels / partial of the channels, the others go past them, and all
            are shuffled (PC-DARTS).
        recompute: keep the nodes' maps only and compute the rest again in the backward pass.

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
        self.outgoing = nn.ModuleList(
            Outgoing(channels // partial, len(edges), 2 if reduction and source < 2 else 1)
            for source, edges in enumerate(LEAVING)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, edges: Tensor | None = None) -> Tensor:
        """(B, 4 * channels, H', W') of the two inputs (B, in_channels[i], H_i, W_i).

        Args:
            s0, s1: the outputs of the two cells before.
            weights: (14, 8) by `cells.EDGES` and `operations.OPERATIONS`, soft or hard.
            edges: (14,) weights of the edges (PC-DARTS's edge normalization); None: all are 1.

        Raises:
            ValueError: weights of another shape, or inputs that do not come to one size.
        """
        shape = len(EDGES), len(OPERATIONS)
        if weights.shape != shape or (edges is not None and edges.shape != shape[:1]):
            found = tuple(weights.shape), None if edges is None else tuple(edges.shape)
            raise ValueError(f"weights must be {shape} and edges {shape[:1]} or None, not {found}.")
        first, second = self.prepare(s0, s1)
        parameters = list(self.outgoing.parameters())
        with torch.autocast(first.device.type, enabled=False):
            dtype = parameters[0].dtype
            maps = [x.to(dtype).contiguous(memory_format=torch.channels_last) for x in (first, second)]
            weights = weights.to(dtype)
            if edges is not None:
                edges = edges.to(dtype)
                weights = weights * edges[:, None]
            keep_maps = torch.is_grad_enabled() and not self.recompute
            mixed: Tensor = _Mixed.apply(self, keep_maps, weights, edges, *maps, *parameters)
        return mixed

    def state(self, edge: int, name: str) -> dict[str, Tensor]:
        """The state of an edge's operation, as `operations.operation(..., affine=False)` has it: views.

        Args:
            edge: the index in `cells.EDGES`.
            name: of the operation.
        """
        source = EDGES[edge][0]
        outgoing: Any = self.outgoing[source]
        return outgoing.state(LEAVING[source].index(edge), name)  # type: ignore[no-any-return]

    @torch.no_grad()
    def extract(self, pairs: Pairs) -> Cell:
        """The derived cell with this one's trained weights.

        It equals this cell under the pairs' hard weights. With `partial` > 1 its operations see all channels,
        so they start afresh and only what prepares the inputs is copied.
        """
        cell = Cell(
            pairs,
            self.in_channels,
            self.channels,
            reduction=self.reduction,
            reduces_first=self.reduces_first,
            unpadded=self.unpadded,
        )
        like = next(self.parameters())
        cell.to(like.device, like.dtype).train(self.training)
        cell.prepare.load_state_dict(cell.prepare.state_dict() | self.prepare.state_dict())
        if self.partial == 1:
            for index, (name, source) in enumerate(pairs):
                edge = EDGES.index((source, NODES[index // 2]))
                derived = cell.operations[index]
                derived.load_state_dict(derived.state_dict() | self.state(edge, name))
        return cell


class _Mixed(torch.autograd.Function):
    """The cell behind its preparation. The nodes' rows are columns of one buffer, which is the result.

    With partial channels, `mixed` holds what the operations give until all edges have come into a node; then it
    is shuffled with what has gone past them, which is in its place in that buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, cell: MixedCell, keep_maps: bool, weights: Tensor, edges: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        nodes = list(tensors[:2])
        width = cell.channels // cell.partial
        like = _strided(nodes[0], cell)
        count = like.shape[0] * like.shape[2] * like.shape[3]
        mixed = nodes[0].new_zeros(count, 4 * width)
        out = mixed if cell.partial == 1 else nodes[0].new_zeros(count, 4 * cell.channels)
        saved: list[Tensor | None] = []
        ctx.forms = []
        for source, outgoing, p in _sources(cell, tensors[2:]):
            x, leaving = nodes[source], LEAVING[source]
            node = outgoing.node(x[:, :width])
            kept = outgoing.prepare(node, p)
            outgoing.add_(_last(mixed, len(leaving)), node, p, kept, weights[leaving])
            if cell.partial > 1:
                rows = to_rows(_bypass(x[:, width:], outgoing.stride)[0])
                for i in leaving:
                    part = _node(out, EDGES[i][1] - 2)[:, width:]
                    part.add_(rows) if edges is None else part.addcmul_(rows, edges[i])
            if source > 0:  # all that comes into the next node is there
                target = _node(out, source - 1)
                if cell.partial > 1:
                    whole = torch.cat([_node(mixed, source - 1), target[:, width:]], dim=1)
                    target.copy_(_shuffled(whole, cell.partial))
                nodes.append(to_map(target, like))
            flat, form = flattened(kept if keep_maps else without_maps(kept))
            saved += flat
            ctx.forms.append(form)
        result = to_map(out, like)
        ctx.cell, ctx.keep_maps = cell, keep_maps
        ctx.save_for_backward(result, weights, edges, *tensors, *saved)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cell: MixedCell = ctx.cell
    result, weights, edges, *tensors = ctx.saved_tensors
    number = len(ctx.needs_input_grad) - 4
    parameters, saved = tensors[2:number], iter(tensors[number:])
    kepts = [restored(saved, form) for form in ctx.forms]
    _, _, want_weights, want_edges, *want = ctx.needs_input_grad
    width = cell.channels // cell.partial

    rows = to_rows(grad).clone()
    nodes = [*tensors[:2], *result.chunk(4, dim=1)]
    of_mixed = rows if cell.partial == 1 else rows.new_empty(len(rows), 4 * width)
    of_inputs: list[Tensor | None] = [torch.zeros_like(x) if w else None for x, w in zip(nodes, want[:2])]
    of_weights = torch.zeros_like(weights)
    of_edges = None if edges is None else torch.zeros_like(edges)
    of_parameters: list[Tensor | None] = []
    for source, outgoing, p in reversed(list(_sources(cell, parameters))):
        x, leaving = nodes[source], LEAVING[source]
        if source > 0 and cell.partial > 1:  # all that goes out of the next node is there
            whole = _shuffled(_node(rows, source - 1), width)
            _node(of_mixed, source - 1).copy_(whole[:, :width])
            _node(rows, source - 1).copy_(whole)
        into = of_inputs[source] if source < 2 else to_map(_node(rows, source - 2), x)
        wanted = Wanted(into is not None, want_weights, any(want[2:]))
        node = outgoing.node(x[:, :width])
        kept = kepts[source] if ctx.keep_maps else outgoing.prepare(node, p, kepts[source])
        grads = outgoing.gradients(_last(of_mixed, len(leaving)), node, p, kept, weights[leaving], wanted)
        of_weights[leaving] = grads[0]
        if into is not None and grads[1] is not None:
            into[:, :width] += grads[1]
        of_parameters = grads[2] + of_parameters
        if cell.partial > 1:
            parts = [_node(rows, EDGES[i][1] - 2)[:, width:] for i in leaving]
            bypass, indices = _bypass(x[:, width:], outgoing.stride)
            if of_edges is not None and want_edges:
                of_edges[leaving] = torch.stack([(part * to_rows(bypass)).sum() for part in parts])
            if into is not None:
                factors = torch.ones_like(weights[leaving, 0]) if edges is None else edges[leaving]
                total = torch.zeros_like(parts[0])
                for part, factor in zip(parts, factors):
                    total.addcmul_(part, factor)
                into[:, width:] += _bypass_gradient(to_map(total, bypass), x[:, width:], indices)
    return None, None, of_weights if want_weights else None, of_edges, *of_inputs, *of_parameters


def _bypass(x: Tensor, stride: int) -> tuple[Tensor, Tensor | None]:
    """What the channels past the operations come to on an edge, and where the pool took it from."""
    if stride == 1:
        return x, None
    pooled, indices = torch.ops.aten.max_pool2d_with_indices(x, [2, 2], [2, 2], [0, 0], [1, 1], True)
    return pooled, indices


def _bypass_gradient(grad: Tensor, x: Tensor, indices: Tensor | None) -> Tensor:
    if indices is None:
        return grad
    window = [2, 2], [2, 2], [0, 0], [1, 1], True
    back: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, indices)
    return back


def _sources(
    cell: MixedCell, parameters: Sequence[Tensor]
) -> Iterator[tuple[int, Outgoing, Sequence[Tensor]]]:
    """Each node that edges leave, with its bundles and their parameters."""
    start = 0
    for source, outgoing in enumerate(cell.outgoing):
        assert isinstance(outgoing, Outgoing)
        end = start + sum(outgoing.counts)
        yield source, outgoing, parameters[start:end]
        start = end


def _strided(x: Tensor, cell: MixedCell) -> Tensor:
    return x[:, :, ::2, ::2] if cell.reduction else x


def _node(rows: Tensor, index: int) -> Tensor:
    """The columns of one of the four nodes."""
    return rows.chunk(4, dim=1)[index]


def _last(rows: Tensor, number: int) -> Tensor:
    """The columns of the last nodes."""
    return rows[:, -number * (rows.shape[1] // 4) :]


def _shuffled(rows: Tensor, groups: int) -> Tensor:
    """Channel i of each of `groups` parts side by side, for all i; with the parts' length it is undone."""
    shuffled: Tensor = rows.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1)
    return shuffled
