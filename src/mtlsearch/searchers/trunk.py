"""What the branches of MTNAS stand on: levels of feature maps from stacked cells, or from a timm backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlsearch.backbones import Backbone
from mtlsearch.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD

MakeCell = Callable[..., nn.Module]


class CellTrunk(nn.Module):
    """A stem of stride 4 and stacked cells.

    The levels are the stem's inner map at stride 2, the output of the last cell before each reduction, and that of
    the last cell; their channels are C, 4 C, 8 C, 16 C and so on.

    Args:
        make_cell: as for `CellsNetwork`.
        channels: C, of the stem and of a node in the first cells; a multiple of 4. Doubled at every reduction.
        cells: how many.
        reductions: numbers of the cells, counted from 0, that halve the resolution; neither the first nor the last.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, make_cell: MakeCell, *, channels: int, cells: int, reductions: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(-1, 1, 1), persistent=False)
        half = channels // 2
        self.stem = nn.Sequential(*_conv(3, half, 2), nn.ReLU(), *_conv(half, channels, 1))
        self.second = nn.Sequential(nn.ReLU(), *_conv(channels, channels, 2))
        self.cells = nn.ModuleList()
        self.channels, self.strides = [channels], [2]
        before, previous, width, reduces_first = channels, channels, channels, True
        for number in range(cells):
            reduction = number in reductions
            if reduction:
                self.channels.append(previous)
                width *= 2
            cell = make_cell(
                "backbone",
                (before, previous),
                width,
                reduction=reduction,
                reduces_first=reduces_first,
                unpadded=False,
            )
            self.cells.append(cell)
            before, previous, reduces_first = previous, 4 * width, reduction
        self.channels.append(previous)
        self.strides += [4 * 2**i for i in range(len(reductions) + 1)]
        self.before = before
        self.ends = [*(number - 1 for number in sorted(reductions)), cells - 1]

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """The levels, finest first, and the output of the last cell but one."""
        normed = (image - self.mean) / self.std
        before = self.stem(
            normed.contiguous(memory_format=torch.channels_last)
        )  # faster in depthwise convolutions
        levels = [before]
        x = self.second(before)
        for number, cell in enumerate(self.cells):
            before, x = x, cell(before, x)
            if number in self.ends:
                levels.append(x)
        return levels, before


class BackboneTrunk(nn.Module):
    """The feature pyramid of a backbone, in place of a searched one."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if wrong := [channels for channels in backbone.channels if channels % 4]:
            raise ValueError(f"Branches need levels whose channels are multiples of 4: one has {wrong[0]}.")
        self.backbone = backbone
        self.channels, self.strides = list(backbone.channels), list(backbone.strides)
        self.before = self.channels[-1]

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        levels: list[Tensor] = self.backbone(image)
        return levels, levels[-1]


def check_layout(*, channels: int, cells: int, reductions: Any, detection_cells: int) -> None:
    """Raise a ValueError that names what is wrong with a layout."""
    for name, value, low in (
        ("channels", channels, 4),
        ("cells", cells, 1),
        ("detection_cells", detection_cells, 1),
    ):
        if not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be a whole number from {low} up, not {value!r}.")
    if channels % 4:
        raise ValueError(f"channels must be a multiple of 4, not {channels}.")
    if not isinstance(reductions, list | tuple) or any(not isinstance(i, int) for i in reductions):
        raise ValueError(f"reductions must be numbers of cells, not {reductions!r}.")
    if list(reductions) != sorted(set(reductions)) or any(not 0 < i < cells - 1 for i in reductions):
        raise ValueError(
            f"reductions must be numbers of cells in order, after the first (0) and before the last "
            f"({cells - 1}), not {list(reductions)}."
        )


def _conv(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
