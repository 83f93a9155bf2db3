"""The eight candidate operations of a cell (DARTS), and what prepares a cell's inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtlsearch.nn.depthwise import Depthwise

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


def operation(name: str, channels: int, stride: int, *, affine: bool = True) -> nn.Module:
    """A candidate operation: (B, channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride)).

    Args:
        name: one of OPERATIONS.
        channels: in and out.
        stride: 1 or 2.
        affine: whether its norms scale and shift. A search has none that do (DARTS, section 3.1). The norm
            after a pool never does.

    Raises:
        ValueError: there is no such operation.
    """
    if name not in OPERATIONS:
        raise ValueError(f"There is no operation {name!r}: it must be one of {list(OPERATIONS)}.")
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)
    if name == "max_pool_3x3":
        pool: nn.Module = nn.MaxPool2d(3, stride, padding=1)
        return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False))
    if name == "avg_pool_3x3":
        pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=False))
    kernel = int(name[-1])
    if name.startswith("dil"):
        return nn.Sequential(*_separable(channels, kernel, stride, 2, affine))
    return nn.Sequential(
        *_separable(channels, kernel, stride, 1, affine), *_separable(channels, kernel, 1, 1, affine)
    )


def _separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU, depthwise and pointwise convolution, BN."""
    return [
        nn.ReLU(),
        Depthwise(channels, kernel, stride, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


class Zero(nn.Module):
    """Zeros in the shape of an operation's output."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution without bias, BN: (B, C_in, H, W) to (B, C_out, H', W').

    Args:
        in_channels, out_channels: C_in and C_out.
        kernel: of the convolution; it has no padding, so that H' = H - kernel + 1.
        affine: whether the norm scales and shifts.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, *, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel, bias=False),
            nn.BatchNorm2d(out_channels, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)  # type: ignore[no-any-return]
        normed: Tensor = self[2](relu_conv(x, self[1].weight))  # type: ignore[arg-type]
        return normed


def relu_conv(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution, without padding, of ReLU(x), which keeps `x` for the backward pass but not ReLU(x)."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x, weight = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight))
    result: Tensor = _ReLUConv.apply(x, weight)
    return result


class _ReLUConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x.relu(), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        no, mask = [0, 0], [*ctx.needs_input_grad, False]
        convolution = torch.ops.aten.convolution_backward
        back, of_weight, _ = convolution(grad, x.relu(), weight, None, [1, 1], no, [1, 1], False, no, 1, mask)
        return None if back is None else torch.ops.aten.threshold_backward(back, x, 0), of_weight


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2, one of them a pixel further right and down, side by side, and BN.

    (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2)); beyond an odd edge there are zeros.
    """

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = even_and_odd(x)
        if self.training and torch.is_grad_enabled():
            parts = [relu_conv(even, self.even.weight), relu_conv(odd, self.odd.weight)]
        else:
            parts = [self.even(even.relu()), self.odd(odd.relu())]
        normed: Tensor = self.norm(torch.cat(parts, dim=1))
        return normed


def even_and_odd(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels (2 i, 2 j) and (2 i + 1, 2 j + 1) of a map, both ceil(H / 2) by ceil(W / 2)."""
    height, width = x.shape[-2:]
    odd = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
    return x[..., ::2, ::2], odd[..., 1::2, 1::2]
