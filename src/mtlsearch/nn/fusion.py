"""Fusion of one task's features with those of others: ReLU(BN(1x1 convolution of the gated concatenation))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Fusion(nn.Module):
    """One target layer's fusion layer (MTL-NAS Eq. 2, initialised by Eq. 3).

    Args:
        channels: of the task's own features, and of the result.
        sources: channels of each source from other tasks.
        init_w_ti: the weight in [0, 1] with which the task's own features start, the sources sharing the
            rest; on diagonals, so that with 1.0 the layer starts as the identity up to its norm and
            activation. "random": a convolution's usual initialisation.
        activation: whether a ReLU ends it.
        momentum: of its BatchNorm.
        axis: where features have their channels, 1 or -1.
        lr_factor: on the learning rate of its parameters.
    """

    def __init__(
        self,
        channels: int,
        sources: Sequence[int],
        *,
        init_w_ti: float | str = 1.0,
        activation: bool = True,
        momentum: float = 0.1,
        axis: int = 1,
        lr_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.axis = axis
        self.widths = [channels, *sources]
        self.weight = nn.Parameter(torch.empty(channels, sum(self.widths)))
        if init_w_ti == "random":
            nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        else:
            shares = [float(init_w_ti)] + [(1 - float(init_w_ti)) / max(len(sources), 1)] * len(sources)
            blocks = [share * torch.eye(channels, width) for share, width in zip(shares, self.widths)]
            self.weight.data = torch.cat(blocks, dim=1)
        self.norm = (nn.BatchNorm2d if axis == 1 else nn.BatchNorm1d)(channels, momentum=momentum)
        self.lr_factors = self.norm.lr_factors = {"weight": lr_factor, "bias": lr_factor}

    def keep(self, sources: Sequence[int]) -> None:
        """Drop the weights of all sources but these, given by their position."""
        blocks = self.weight.data.split(self.widths, dim=1)
        kept = [0, *(i + 1 for i in sources)]
        self.weight = nn.Parameter(torch.cat([blocks[i] for i in kept], dim=1))
        self.widths = [self.widths[i] for i in kept]

    def forward(self, own: Tensor, sources: Sequence[Tensor], gates: Tensor | None = None) -> Tensor:
        """Features in the shape of `own`.

        Args:
            own: the task's own features, (B, C, H, W), or with the channels last.
            sources: the others' in the same layout and size, before their own fusion.
            gates: (number of sources,), each in [0, 1]; None: all are 1.
        """
        mixed = gated_product(self.weight, gates, [own, *sources], self.axis)
        if self.axis == 1:
            mixed = self.norm(mixed)
        else:
            mixed = self.norm(mixed.flatten(0, -2)).view_as(mixed)
        return mixed.relu_() if self.activation else mixed


def gated_product(weight: Tensor, gates: Tensor | None, maps: Sequence[Tensor], axis: int) -> Tensor:
    """The 1x1 convolution of the concatenation of maps[0] and gates[j] * maps[j + 1].

    The same number as scaling, concatenating and convolving, but a product a map is accumulated instead and
    nothing is kept for the backward pass beside the weight, the gates and the maps, which exist anyway. The
    gates' gradient needs no weight gradient.

    Args:
        weight: (C_out, sum of the maps' channels).
        gates: (len(maps) - 1,) or None for ones.
        maps: each (B, C_j, H, W) with `axis` 1, or (..., C_j) with `axis` -1.
    """
    device = weight.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weight, maps = weight.to(dtype), [m.to(dtype) for m in maps]
    channels_last = axis == -1 or maps[0].is_contiguous(memory_format=torch.channels_last)
    if axis == 1 and channels_last:
        return _product(weight, gates, [m.movedim(1, -1) for m in maps]).movedim(-1, 1)
    if channels_last:
        return _product(weight, gates, maps)
    batch, _, height, width = maps[0].shape
    return _product(weight, gates, [m.flatten(2) for m in maps], first=True).view(batch, -1, height, width)


def _product(weight: Tensor, gates: Tensor | None, maps: Sequence[Tensor], *, first: bool = False) -> Tensor:
    result: Tensor = _GatedProduct.apply(weight, gates, first, *maps)
    return result


class _GatedProduct(torch.autograd.Function):
    """`first`: maps are (B, C, N), else (..., C)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gates: Tensor | None, first: bool, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(weight, gates, *maps)
        ctx.first = first
        with torch.autocast(weight.device.type, enabled=False):
            blocks = _scaled(weight, gates, maps, first)
            if first:
                result = blocks[0] @ maps[0]
                for block, source in zip(blocks[1:], maps[1:]):
                    result.baddbmm_(block.expand(len(source), *block.shape), source)
                return result
            result = _rows(maps[0]) @ blocks[0].T
            for block, source in zip(blocks[1:], maps[1:]):
                result.addmm_(_rows(source), block.T)
            return result.view(*maps[0].shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, gates, *maps = ctx.saved_tensors
        first, needs = ctx.first, ctx.needs_input_grad
        grad = grad.contiguous()
        plain = weight.split([_width(m, first) for m in maps], dim=1)
        scales = [None, *gates.to(weight.dtype).unbind()] if gates is not None else [None] * len(maps)
        grad_weights, grad_gates, grad_maps = [], [], []
        with torch.autocast(weight.device.type, enabled=False):
            for block, scale, source, needed in zip(plain, scales, maps, needs[3:]):
                gate_needed = needs[1] and scale is not None
                back = None
                if gate_needed:
                    back = _back(grad, block, first)
                    grad_gates.append(torch.dot(back.reshape(-1), source.reshape(-1)))
                    back = back.mul_(scale) if needed else None
                elif needed:
                    back = _back(grad, block if scale is None else block * scale, first)
                grad_maps.append(back)
                if needs[0]:
                    outer = _outer(grad, source, first)
                    grad_weights.append(outer if scale is None else outer.mul_(scale))
        return (
            torch.cat(grad_weights, dim=1) if needs[0] else None,
            torch.stack(grad_gates).to(gates.dtype) if needs[1] and gates is not None else None,
            None,
            *grad_maps,
        )


def _width(source: Tensor, first: bool) -> int:
    return source.shape[1 if first else -1]


def _rows(source: Tensor) -> Tensor:
    return source.reshape(-1, source.shape[-1])


def _scaled(weight: Tensor, gates: Tensor | None, maps: Sequence[Tensor], first: bool) -> list[Tensor]:
    """The weight's block for each map, times its gate."""
    blocks = list(weight.split([_width(m, first) for m in maps], dim=1))
    if gates is None:
        return blocks
    return blocks[:1] + [block * gate for block, gate in zip(blocks[1:], gates.to(weight.dtype).unbind())]


def _back(grad: Tensor, block: Tensor, first: bool) -> Tensor:
    """The gradient with respect to a map that went through `block`."""
    return block.T @ grad if first else (_rows(grad) @ block).view(*grad.shape[:-1], block.shape[1])


def _outer(grad: Tensor, source: Tensor, first: bool) -> Tensor:
    """The gradient with respect to the block that `source` went through."""
    return (grad @ source.mT).sum(0) if first else _rows(grad).T @ _rows(source)


def resize(source: Tensor, like: Tensor, axis: int) -> Tensor:
    """R(.) of MTL-NAS Eq. 1: `source` brought to the height and width of `like`, bilinear."""
    if axis == 1:
        return source if source.shape[2:] == like.shape[2:] else _bilinear(source, like.shape[2:])
    if source.shape[:-1] == like.shape[:-1]:
        return source
    return _bilinear(source.movedim(-1, 1), like.shape[1:3]).movedim(1, -1)


def _bilinear(source: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(source, size=tuple(size), mode="bilinear", align_corners=False)
