"""Fusion of one task's features with others': ReLU(BN(1x1 convolution of the gated concatenation))."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        widths = [channels, *sources]
        if init_w_ti == "random":
            bound = sum(widths) ** -0.5
            weights = [torch.empty(channels, width).uniform_(-bound, bound) for width in widths]
        else:
            w_ti = float(init_w_ti)
            shares = [w_ti] + [(1 - w_ti) / max(len(sources), 1)] * len(sources)
            weights = [share * torch.eye(channels, width) for share, width in zip(shares, widths)]
        self.weights = Weights(weights, lr_factor)
        norm: Any = (nn.BatchNorm2d if axis == 1 else nn.BatchNorm1d)(channels, momentum=momentum)
        norm.lr_factors = {"weight": lr_factor, "bias": lr_factor}
        self.norm = norm

    def keep(self, sources: Sequence[int]) -> None:
        """Drop the weights of all sources but these, given by their position."""
        weights = list(self.weights)
        self.weights = Weights([weights[0], *(weights[i + 1] for i in sources)], self.weights.lr_factor)

    def forward(self, own: Tensor, sources: Sequence[Tensor], gates: Tensor | None = None) -> Tensor:
        """Features in the shape of `own`.

        Args:
            own: the task's own features, (B, C, H, W), or with the channels last.
            sources: the others' in the same layout and size, before their own fusion.
            gates: (number of sources,), each in [0, 1]; None: all are 1.
        """
        mixed = gated_product(list(self.weights), gates, [own, *sources], self.axis)
        flat = mixed if self.axis == 1 else mixed.flatten(0, -2)
        normed: Tensor = self.norm(flat).view_as(mixed)
        return normed.relu_() if self.activation else normed


class Weights(nn.ParameterList):
    """Parameters in a row, with one factor on their learning rate."""

    def __init__(self, weights: Iterable[Tensor], lr_factor: float) -> None:
        super().__init__(weights)
        self.lr_factor = lr_factor
        self.lr_factors = {str(i): lr_factor for i in range(len(self))}


def gated_product(
    weights: Sequence[Tensor], gates: Tensor | None, maps: Sequence[Tensor], axis: int
) -> Tensor:
    """The 1x1 convolution of the concatenation of maps[0] and gates[j] * maps[j + 1].

    The same number as scaling, concatenating and convolving, but a product a map is accumulated instead and
    nothing is kept for the backward pass beside the weights, the gates and the maps, which exist anyway. The
    gates' gradient needs no weight gradient.

    Args:
        weights: the convolution's kernel, a part for each map (C_out, C_j).
        gates: (len(maps) - 1,) or None for ones.
        maps: each (B, C_j, H, W) with `axis` 1, or (..., C_j) with `axis` -1.
    """
    device = maps[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weights, maps = [w.to(dtype) for w in weights], [m.to(dtype) for m in maps]
    shape = maps[0].shape
    if axis == -1:
        maps = [m.flatten(1, -2).mT.unsqueeze(-1) for m in maps]
    result: Tensor = _GatedProduct.apply(len(maps), gates, *weights, *maps)
    return result if axis == 1 else result.squeeze(-1).mT.reshape(*shape[:-1], -1)


class _GatedProduct(torch.autograd.Function):
    """Of maps (B, C_j, H, W); the first has no gate."""

    @staticmethod
    def forward(ctx: Any, count: int, gates: Tensor | None, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(gates, *tensors)
        weights, maps = tensors[:count], tensors[count:]
        result = _product(maps[0], weights[0])
        for i in range(1, count):
            product = _product(maps[i], weights[i])
            result = result.add_(product) if gates is None else result.addcmul_(product, gates[i - 1])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gates, *tensors = ctx.saved_tensors
        weights, maps = tensors[: ctx.count], tensors[ctx.count :]
        _, gates_needed, *needed = ctx.needs_input_grad
        weights_needed, maps_needed = needed[: ctx.count], needed[ctx.count :]
        grad_weights: list[Tensor | None] = []
        grad_maps: list[Tensor | None] = []
        grad_gates: list[Tensor] = []
        for i, (weight, source) in enumerate(zip(weights, maps)):
            gate = gates[i - 1] if gates is not None and i > 0 else None
            back = None
            if maps_needed[i] or (gates_needed and gate is not None):
                back = _product(grad, weight.T)
                if gate is not None:
                    if gates_needed:
                        grad_gates.append(torch.dot(_rows(back).ravel(), _rows(source).ravel()))
                    back.mul_(gate)
            outer = _outer(grad, source) if weights_needed[i] else None
            grad_maps.append(back)
            grad_weights.append(outer if outer is None or gate is None else outer.mul_(gate))
        return None, torch.stack(grad_gates) if grad_gates else None, *grad_weights, *grad_maps


def _product(source: Tensor, weight: Tensor) -> Tensor:
    """weight (O, C) applied to the channels of a map (B, C, H, W)."""
    batch, channels, height, width = source.shape
    with torch.autocast(source.device.type, enabled=False):
        if 2 * batch * height * width < channels:  # a copy of the weight would cost more than the product
            rows = _rows(source) @ weight.T
            return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
        # The dilation changes nothing, but sends small batches on a CPU to the faster of torch's libraries.
        dilation = 2 if source.device.type == "cpu" else 1
        return F.conv2d(source, weight.contiguous()[:, :, None, None], dilation=dilation)


def _outer(grad: Tensor, source: Tensor) -> Tensor:
    """The gradient with respect to the weight that was applied to `source`."""
    with torch.autocast(source.device.type, enabled=False):
        return _rows(grad).T @ _rows(source)


def _rows(source: Tensor) -> Tensor:
    """A map as (B H W, C): a view where the channels are last in memory."""
    return source.permute(0, 2, 3, 1).reshape(-1, source.shape[1])


def resize(source: Tensor, like: Tensor, axis: int) -> Tensor:
    """R(.) of MTL-NAS Eq. 1: `source` brought to the height and width of `like`, bilinear."""
    if axis == 1:
        return source if source.shape[2:] == like.shape[2:] else _bilinear(source, like.shape[2:])
    if source.shape[:-1] == like.shape[:-1]:
        return source
    return _bilinear(source.movedim(-1, 1), like.shape[1:3]).movedim(1, -1)


def _bilinear(source: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(source, size=tuple(size), mode="bilinear", align_corners=False)
