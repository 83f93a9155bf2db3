"""Depthwise convolutions of maps with the channels last in memory, and their gradients in forms that are fast."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Depthwise(nn.Conv2d):
    """A depthwise convolution without bias that keeps a map's size, or halves it with stride 2.

    On a CPU its gradients are the forms below where the library's are slower, in single and double precision.

    Args:
        channels: in and out.
        kernel: 3 or 5.
        stride, dilation: 1 or 2.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            channels, channels, kernel, stride, padding, dilation=dilation, groups=channels, bias=False
        )
        self.slow = kernel > 3 or dilation > 1

    def forward(self, x: Tensor) -> Tensor:
        fast = self.slow and x.device.type == "cpu" and torch.is_grad_enabled()
        if not fast or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(x)
        result: Tensor = _Depthwise.apply(x, self.weight, self.stride[0], self.dilation[0])
        return result


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.steps = (stride, dilation)
        return depthwise(x, weight, stride, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = input_gradient(grad, weight, x, *ctx.steps) if ctx.needs_input_grad[0] else None
        needed, kernel = ctx.needs_input_grad[1], weight.shape[-1]
        return of_x, weight_gradient(x, grad, kernel, *ctx.steps) if needed else None, None, None


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Each channel with its own odd kernel: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)).

    Args:
        x: the map.
        weight: (C, 1, k, k).
        stride, dilation: 1 or 2.
    """
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))


def input_gradient(grad: Tensor, weight: Tensor, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """The gradient for `x`, of which only the shape counts, from the one for the result.

    Without a stride it is itself such a convolution, with the kernel turned round. With stride and dilation every
    other pixel is used, and among them it is one without either.
    """
    if stride == 1 or dilation == 2:
        back = depthwise(grad, weight.flip(2, 3), 1, dilation // stride)
        if stride == 1:
            return back
        spread = torch.zeros_like(x)
        spread[..., ::2, ::2] = back
        return spread
    padding = [weight.shape[-1] // 2] * 2
    arguments = (None, [2, 2], padding, [1, 1], False, [0, 0], len(weight), [True, False, False])
    gradient: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, *arguments)[0]
    return gradient


def weight_gradient(x: Tensor, grad: Tensor, kernel: int, stride: int = 1, dilation: int = 1) -> Tensor:
    """The gradient for `weight`, of this kernel: 3 or 5.

    The libraries on a CPU are fast for kernels up to three wide and without dilation, elsewhere slower by ten
    and more. So dilation becomes a batch of maps of every other pixel, and a wide kernel two narrow ones.
    """
    maps, grads = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    if dilation == 2 and stride == 2:
        maps, stride = maps[:, ::2, ::2], 1
    elif dilation == 2:
        maps, grads = _phases(maps), _phases(grads)
    if kernel == 3:
        return _weight_gradient(maps, grads, (3, 3), stride, (1, 1))
    # Three of the kernel's columns; with the map two pixels further, the middle one again and the others. What
    # that brings in from the next line meets zeros.
    first, second = _widened(maps, 2, 2)
    grads = _widened(grads, 0, 2 // stride)[0]
    left, right = (_weight_gradient(part, grads, (5, 3), stride, (2, 0)) for part in (first, second))
    return torch.cat([left, right[..., 1:]], dim=-1)


def _weight_gradient(
    maps: Tensor, grads: Tensor, kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Tensor:
    """Of maps (..., H, W, C)."""
    maps, grads = (part.flatten(0, -4).permute(0, 3, 1, 2) for part in (maps, grads))
    weight = maps.new_empty(maps.shape[1], 1, *kernel)
    strides, dilation = [stride, stride], [1, 1]
    arguments = (None, strides, padding, dilation, False, [0, 0], len(weight), [False, True, False])
    gradient: Tensor = torch.ops.aten.convolution_backward(grads, maps, weight, *arguments)[1]
    return gradient


def _phases(maps: Tensor) -> Tensor:
    """The four maps of every other pixel: (B, H, W, C) to (2, 2, B, ceil(H / 2), ceil(W / 2), C)."""
    height, width = maps.shape[1:3]
    if height % 2 or width % 2:
        maps = F.pad(maps, (0, 0, 0, width % 2, 0, height % 2))
    parted = maps.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    phases: Tensor = parted.permute(2, 4, 0, 1, 3, 5)
    return phases


def _widened(maps: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Maps (..., H, W, C) with columns of zeros on both sides, and the same memory from two pixels further on."""
    *lines, width, channels = maps.shape
    shape = *lines, left + width + right, channels
    memory = maps.new_empty(math.prod(shape) + 2 * channels)
    memory[-2 * channels :] = 0
    wide = memory[: -2 * channels].view(shape)
    wide[..., :left, :] = 0
    wide[..., left : left + width, :] = maps
    wide[..., left + width :, :] = 0
    return wide, memory[2 * channels :].view(shape)
