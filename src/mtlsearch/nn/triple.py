"""Parts of TripleNet's decoder: attention skip-layer fusion, the inner-connected module, and its supervision."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Supervised(NamedTuple):
    """Logits of segmentation while TripleNet trains: of the prediction, and at every level of the decoder.

    Args:
        final: (B, classes, H, W) of the image's size.
        aware: of each level, (B, classes, h, w).
        agnostic: of each level whether there is an object, (B, 1, h, w).
    """

    final: Tensor
    aware: list[Tensor]
    agnostic: list[Tensor]


class SkipFusion(nn.Module):
    """A level of the decoder: the coarser level, and the encoder's, whose channels the coarser one weighs.

    The weights are those of squeeze and excitation, made from the coarser level (attention skip-layer fusion).

    Args:
        skip_channels: of the encoder's level.
        width: channels of the decoder.
    """

    def __init__(self, skip_channels: int, width: int) -> None:
        super().__init__()
        hidden = max(width // 16, 4)
        self.coarse = conv(width, width, 1)
        self.skip = conv(skip_channels, width, 3)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, width, 1),
            nn.Sigmoid(),
        )
        self.shortcut = normed(2 * width, width, 1)
        narrow = max(width // 4, 1)
        self.residual = nn.Sequential(
            conv(2 * width, narrow, 1), conv(narrow, narrow, 3), normed(narrow, width, 1)
        )

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """(B, width, H, W) from a coarser level (B, width, h, w) and the encoder's (B, C, H, W)."""
        coarse = upsampled(self.coarse(coarse), skip)
        both = torch.cat([coarse, self.attention(coarse) * self.skip(skip)], dim=1)
        fused: Tensor = self.shortcut(both) + self.residual(both)
        return fused.relu()


class InnerConnection(nn.Module):
    """At one level, features for segmentation, and with them those for detection (the inner-connected module)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.segmentation = conv(width, width // 2, 3)
        self.detection = conv(width + width // 2, width, 3)

    def forward(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Features for detection (B, width, h, w) and for segmentation (B, width / 2, h, w)."""
        own = self.segmentation(level)
        return self.detection(torch.cat([level, own], dim=1)), own


class MultiscaleFusion(nn.Module):
    """All levels of the decoder as one of the finest's size: a 1x1 convolution of their concatenation, with
    BatchNorm and ReLU, computed level by level before what is coarse is upsampled."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(levels))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """(B, width, H, W) from levels (B, width, h, w), finest first."""
        parts = [upsampled(layer(level), levels[0]) for layer, level in zip(self.layers, levels)]
        fused: Tensor = self.norm(torch.stack(parts).sum(0))
        return fused.relu()


class Supervision(nn.Module):
    """By what a level's features for segmentation are supervised while the network trains."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.aware = nn.Conv2d(width, num_classes, 1)
        self.agnostic = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes (B, num_classes, h, w) and of there being an object (B, 1, h, w)."""
        return self.aware(features), self.agnostic(features)


def upsampled(features: Tensor, like: Tensor) -> Tensor:
    """Features (B, C, h, w) in the height and width of others, bilinear."""
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


def normed(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


def conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution with BatchNorm and ReLU."""
    return normed(in_channels, channels, kernel, stride).append(nn.ReLU(inplace=True))
