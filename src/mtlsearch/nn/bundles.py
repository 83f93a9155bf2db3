"""One candidate operation on all the edges that leave a node of a cell, computed together.

Weights and norms of the edges lie side by side, edge by edge. Nothing here is differentiated by autograd: a
bundle gives its own gradients, so that no more is kept and computed than it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtlsearch.nn.depthwise import depthwise, input_gradient, weight_gradient
from mtlsearch.nn.normed import (
    Norm,
    Normed,
    add_normed_,
    normed,
    normed_gradients,
    normed_product,
    to_map,
    to_rows,
)

Kept = list[Any]
"""What the forward pass of a bundle keeps, each a Normed or a map."""
Parameters = Sequence[Tensor]
"""A bundle's parameters in the order of its `parameters()`."""
Gradients = tuple[Tensor | None, list[Tensor | None]]


class Node(NamedTuple):
    """A node's map, channels last in memory, in the forms that bundles read."""

    x: Tensor  # (B, C, H, W)
    active: Tensor  # ReLU(x)
    wide: Tensor  # (B, edges * C, H, W): that, once for every edge


class NodeGradient:
    """Gradients for a node's forms; bundles add to them what they do not use any more themselves."""

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.active: Tensor | None = None
        self.wide: Tensor | None = None

    def add(self, form: str, grad: Tensor) -> None:
        """To one of the three by its name."""
        total = getattr(self, form)
        setattr(self, form, grad if total is None else total.add_(grad))


class Wanted(NamedTuple):
    """Which gradients are computed."""

    node: bool
    weights: bool  # of the operations
    parameters: bool


class Pull(NamedTuple):
    """What comes back to the rows that a bundle added to."""

    rows: Tensor  # (N, edges * C), the gradient for them
    sums: Tensor  # (edges, C), over the rows
    weights: Tensor  # (edges,), of the bundle's results
    wanted: Wanted


class Bundle(nn.Module):
    """An operation on `edges` edges that leave a node.

    Args:
        channels: of the node, and of the operation's result on each edge.
        edges: how many.
        stride: of all of them, 1 or 2.
    """

    def __init__(self, channels: int, edges: int, stride: int) -> None:
        super().__init__()
        self.channels, self.edges, self.stride = channels, edges, stride

    def state(self, edge: int) -> dict[str, Tensor]:
        """Views of an edge's part, named as in the operation that `operations.operation` makes."""
        raise NotImplementedError

    def prepare(self, node: Node, p: Parameters, known: Kept | None) -> Kept:
        """What is kept; the norms' running statistics are moved unless it is known from before."""
        raise NotImplementedError

    def add_(self, out: Tensor, node: Node, p: Parameters, kept: Kept, weights: Tensor) -> None:
        """Add the results, times the weights (edges,), to rows (N, edges * C)."""
        raise NotImplementedError

    def gradients(self, pull: Pull, node: Node, p: Parameters, kept: Kept, into: NodeGradient) -> Gradients:
        """Gradients of the weights (edges,) and of each parameter; those of the node are added to `into`."""
        raise NotImplementedError

    def columns(self, edge: int) -> slice:
        return slice(edge * self.channels, (edge + 1) * self.channels)


class Convolutions(Bundle):
    """Separable or dilated convolutions: (ReLU, depthwise, pointwise, BN), once or twice.

    Args:
        channels, edges, stride: see Bundle.
        kernel: 3 or 5.
        dilation: 2 for one such group, 1 for two of them.
    """

    def __init__(self, channels: int, edges: int, stride: int, *, kernel: int, dilation: int) -> None:
        super().__init__(channels, edges, stride)
        self.kernel, self.dilation = kernel, dilation
        groups = range(1 if dilation == 2 else 2)
        self.depth = nn.ParameterList(
            uniform(edges * channels, 1, kernel, kernel, fan_in=kernel**2) for _ in groups
        )
        self.point = nn.ParameterList(uniform(edges, channels, channels, fan_in=channels) for _ in groups)
        self.norms = nn.ModuleList(Norm(edges * channels) for _ in groups)

    def state(self, edge: int) -> dict[str, Tensor]:
        state = {}
        for group, (depth, point, norm) in enumerate(zip(self.depth, self.point, self.norms)):
            state[f"{4 * group + 1}.weight"] = depth[self.columns(edge)]
            state[f"{4 * group + 2}.weight"] = point[edge][:, :, None, None]
            state |= statistics_of(f"{4 * group + 3}", norm, self.columns(edge))
        return state

    def prepare(self, node: Node, p: Parameters, known: Kept | None) -> Kept:
        depth, point = p[: len(self.depth)], p[len(self.depth) :]
        result = depthwise(node.wide, depth[0], self.stride, self.dilation)
        kept = [self._normed(result, point, 0, known)]
        if len(depth) == 1:
            return kept
        middle = to_map(normed_product(kept[0], point[0]).relu_(), result)
        return [*kept, middle, self._normed(depthwise(middle, depth[1]), point, 1, known)]

    def _normed(self, x: Tensor, point: Parameters, group: int, known: Kept | None) -> Normed:
        norm: Norm = self.norms[group]  # type: ignore[assignment]
        return normed(to_rows(x), point[group], norm, None if known is None else known[2 * group])

    def add_(self, out: Tensor, node: Node, p: Parameters, kept: Kept, weights: Tensor) -> None:
        add_normed_(out, kept[-1], p[-1], weights[:, None])

    def gradients(self, pull: Pull, node: Node, p: Parameters, kept: Kept, into: NodeGradient) -> Gradients:
        groups = len(self.depth)
        of_depth: list[Tensor | None] = [None] * groups
        of_point: list[Tensor | None] = [None] * groups
        of_weights = None
        grad, sums, factors, wanted = pull.rows, pull.sums, pull.weights[:, None], pull.wanted
        for group in reversed(range(groups)):
            g = normed_gradients(
                grad,
                sums,
                kept[2 * group],
                p[groups + group],
                factors,
                want_point=wanted.parameters,
                want_rows=wanted.node or wanted.parameters,
            )
            of_weights = g.weights.sum(-1) if of_weights is None else of_weights
            of_point[group] = g.point
            if g.rows is None:
                break
            source, stride, dilation = (kept[1], 1, 1) if group else (node.wide, self.stride, self.dilation)
            outer = to_map(g.rows, source[:, :, ::stride, ::stride])
            if wanted.parameters:
                of_depth[group] = weight_gradient(source, outer, self.kernel, stride, dilation)
            if group:
                inner = input_gradient(outer, p[group], source)
                grad = to_rows(relu_gradient_(inner, source))
                sums = grad.sum(0).view(self.edges, -1)
                factors = torch.ones_like(factors)
            elif wanted.node:
                into.add("wide", input_gradient(outer, p[0], source, stride, dilation))
        return of_weights, [*of_depth, *of_point]


def relu_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """Make the gradient for the result of a ReLU the one for its input; `x` is either of them."""
    torch.ops.aten.threshold_backward(grad, x, 0, grad_input=grad)
    return grad


def statistics_of(name: str, norm: nn.Module, columns: slice) -> dict[str, Tensor]:
    """A norm's buffers, cut to some channels."""
    return {f"{name}.{key}": value[columns] if value.ndim else value for key, value in norm.named_buffers()}


def uniform(*shape: int, fan_in: int) -> nn.Parameter:
    """As a convolution is initialised."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
