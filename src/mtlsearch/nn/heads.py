"""Heads: from a feature pyramid to one task's prediction.

`light`, `large_fov`, `aspp` and `pointwise` are for every pixel, `pool` is for the whole image, `ssd` for boxes.
Each takes the number of output channels, or of classes, and returns `head(channels, strides)`, which builds a
module for a pyramid with these channels and strides, finest first. The module is called as
`module(features, size)`, features a list of (B, C, H, W) and size the image's (H, W), and returns
(B, out, *size), for the whole image (B, out), and for boxes what `mtlsearch.nn.detection` says.

A task takes its head by name, as {"name": its name, **its arguments}, or as such a function of its own.

A layer with learning rates of its own names their factors in `lr_factors`, by its direct parameters' names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsearch.nn.detection import ssd

Head = Callable[[Sequence[int], Sequence[int]], nn.Module]
HeadChoice = str | Mapping[str, Any] | Head


def light(out_channels: int, *, width: int = 64, finest: int = 4) -> Head:
    """For small images: a top-down sum of the levels from stride `finest` on, then a 3x3 convolution.

    Args:
        width: channels of the sum.
        finest: the smallest stride used; with 2 the head costs three times as much.
    """
    return partial(Light, out_channels=out_channels, width=width, finest=finest)


def large_fov(
    out_channels: int, *, width: int = 1024, dropout: float = 0.5, last_layer_lr: Sequence[float] = (1.0, 1.0)
) -> Head:
    """DeepLab-LargeFOV on the last level, with BatchNorm, as in MTL-NAS's VGG-16.

    Args:
        last_layer_lr: factors on the learning rate of the last weight and bias; the authors take (10, 20).
    """
    return partial(
        LargeFOV, out_channels=out_channels, width=width, dropout=dropout, last_layer_lr=last_layer_lr
    )


def aspp(
    out_channels: int,
    *,
    width: int = 1024,
    dilations: Sequence[int] = (6, 12, 18, 24),
    dropout: float = 0.5,
    last_layer_lr: Sequence[float] = (1.0, 1.0),
) -> Head:
    """DeepLab-v2's atrous spatial pyramid pooling on the last level, as in AdaShare.

    Args:
        last_layer_lr: factors on the learning rate of each branch's last weight and bias.
    """
    return partial(
        ASPP,
        out_channels=out_channels,
        width=width,
        dilations=dilations,
        dropout=dropout,
        last_layer_lr=last_layer_lr,
    )


def pointwise(out_channels: int) -> Head:
    """For branches that end in a map of their own: a 1x1 convolution with BatchNorm on the finest level (MTNAS)."""
    return partial(Pointwise, out_channels=out_channels)


def pool(out_channels: int, *, dropout: float = 0.2) -> Head:
    """For image labels: the mean of the last level over the image, then a linear layer."""
    return partial(Pool, out_channels=out_channels, dropout=dropout)


def dense(head: HeadChoice, out_channels: int) -> Head:
    """The head that a task for every pixel takes."""
    return _resolve(head, out_channels, (light, aspp, large_fov, pointwise))


def image(head: HeadChoice, out_channels: int) -> Head:
    """The head that a task for the whole image takes."""
    return _resolve(head, out_channels, (pool,))


def boxes(head: HeadChoice, num_classes: int) -> Head:
    """The head that a task of boxes takes."""
    return _resolve(head, num_classes, (ssd,))


def _resolve(head: HeadChoice, out_channels: int, makers: Sequence[Callable[..., Head]]) -> Head:
    if callable(head):
        return head
    arguments = {"name": head} if isinstance(head, str) else dict(head)
    known = {make.__name__: make for make in makers}
    name = arguments.pop("name", None)
    if name not in known:
        raise ValueError(
            f"No such head for this kind of task: {head!r}. Choose one of {', '.join(known)}, "
            "or pass a function head(channels, strides)."
        )
    try:
        return known[name](out_channels, **arguments)
    except TypeError as error:
        raise ValueError(f"Head {name!r} does not take the arguments {arguments}: {error}.") from error


class Light(nn.Module):
    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, out_channels: int, width: int, finest: int
    ) -> None:
        super().__init__()
        self.first = next((i for i, stride in enumerate(strides) if stride >= finest), len(strides) - 1)
        self.levels = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[self.first :])
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.classify = nn.Conv2d(width, out_channels, 1)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        levels = [level(x) for level, x in zip(self.levels, features[self.first :])]
        merged = levels.pop()
        while levels:
            finer = levels.pop()
            merged = finer + F.interpolate(merged, size=finer.shape[-2:], mode="nearest")
        return _resize(self.classify(self.smooth(merged)), size)


class LargeFOV(nn.Module):
    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        out_channels: int,
        width: int,
        dropout: float,
        last_layer_lr: Sequence[float],
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Atrous(channels[-1], width, 12, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            LastLayer(width, out_channels, last_layer_lr),
        )

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return _resize(self.layers(features[-1]), size)


class ASPP(nn.Module):
    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        out_channels: int,
        width: int,
        dilations: Sequence[int],
        dropout: float,
        last_layer_lr: Sequence[float],
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                Atrous(channels[-1], width, dilation),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Conv2d(width, width, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                LastLayer(width, out_channels, last_layer_lr),
            )
            for dilation in dilations
        )

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return _resize(reduce(torch.add, (branch(features[-1]) for branch in self.branches)), size)


class Atrous(nn.Conv2d):
    """A dilated 3x3 convolution that keeps the size, without the taps that on this map meet padding alone.

    At stride 8 a photograph of 129x129 is a map of 17x17, on which dilations of 18 and 24 leave the centre.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, padding = self.weight, [self.dilation[0], self.dilation[1]]
        for axis in (0, 1):
            if self.dilation[axis] >= x.shape[2 + axis]:
                weight, padding[axis] = weight.narrow(2 + axis, 1, 1), 0
        return F.conv2d(x, weight, self.bias, padding=padding, dilation=self.dilation)


class Pointwise(nn.Module):
    def __init__(self, channels: Sequence[int], strides: Sequence[int], *, out_channels: int) -> None:
        super().__init__()
        self.classify = nn.Sequential(
            nn.Conv2d(channels[0], out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return _resize(self.classify(features[0]), size)


class Pool(nn.Module):
    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, out_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(channels[-1], out_channels)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        prediction: Tensor = self.classify(self.dropout(features[-1].mean(dim=(2, 3))))
        return prediction


class LastLayer(nn.Conv2d):
    """A 1x1 convolution that names its own factors on the learning rate."""

    def __init__(self, in_channels: int, out_channels: int, factors: Sequence[float]) -> None:
        super().__init__(in_channels, out_channels, 1)
        weight, bias = factors
        self.lr_factors = {"weight": weight, "bias": bias}


def _resize(prediction: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(prediction, size=size, mode="bilinear", align_corners=False)
