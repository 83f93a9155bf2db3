"""3x3 pools of maps with the channels last in memory, and their gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlsearch.nn.depthwise import depthwise, input_gradient


def max_pool(x: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
    return _max(_max(x, 3, stride), 2, stride)


def max_pool_gradient(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient for `x` from the one for its pool; of equal pixels the first has it, row by row."""
    across = _max(x, 3, stride)
    return _max_gradient(_max_gradient(grad, across, 2, stride), x, 3, stride)


def _max(x: Tensor, dim: int, stride: int) -> Tensor:
    """The largest of three neighbours along an axis."""
    before, centre, after = _neighbours(x, dim, stride)
    largest = centre.clone()
    _maximum_(largest.narrow(dim, 1, before.shape[dim]), before)
    _maximum_(largest.narrow(dim, 0, after.shape[dim]), after)
    return largest


def _maximum_(x: Tensor, other: Tensor) -> None:
    torch.maximum(x, other, out=x)


def _max_gradient(grad: Tensor, x: Tensor, dim: int, stride: int) -> Tensor:
    largest = _max(x, dim, stride)
    back = torch.zeros_like(x)
    rest = grad.clone()
    for start, part, into in zip((1, 0), _neighbours(x, dim, stride), _neighbours(back, dim, stride)):
        length = part.shape[dim]
        own = rest.narrow(dim, start, length) * part.eq(largest.narrow(dim, start, length))
        into.add_(own)
        rest.narrow(dim, start, length).sub_(own)
    after = _neighbours(back, dim, stride)[2]
    after.add_(rest.narrow(dim, 0, after.shape[dim]))
    return back


def _neighbours(x: Tensor, dim: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """What lies before, on and after each pixel of the result: before all but the first, after where there is."""
    length = x.shape[dim]
    count = (length + stride - 1) // stride
    index: list[slice] = [slice(None)] * x.ndim

    def every(start: int, number: int) -> Tensor:
        index[dim] = slice(start, start + max(number - 1, 0) * stride + (number > 0), stride)
        return x[tuple(index)]

    return every(stride - 1, count - 1), every(0, count), every(1, (length - 2) // stride + 1)


def average_pool(x: Tensor, stride: int) -> Tensor:
    """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)); what lies outside is not counted."""
    return depthwise(x, _ones(x), stride) / _counts(x, stride)


def average_pool_gradient(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """The gradient for `x` from the one for its pool."""
    return input_gradient(grad / _counts(x, stride), _ones(x), x, stride)


def _ones(x: Tensor) -> Tensor:
    return x.new_ones(x.shape[1], 1, 3, 3)


def _counts(x: Tensor, stride: int) -> Tensor:
    """How many pixels of the map are under each window (1, 1, H', W')."""
    whole = x.new_ones(1, 1, *x.shape[-2:])
    return depthwise(whole, _ones(whole), stride)
