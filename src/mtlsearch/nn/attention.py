"""Soft attention of a task over shared features, and a look at what layers give on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def watched(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at these paths give in the passes made within, by path."""
    seen: dict[str, Tensor] = {}

    def look(path: str, _: nn.Module, __: Any, output: Tensor) -> None:
        seen[path] = output

    hooks = [model.get_submodule(path).register_forward_hook(partial(look, path)) for path in paths]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class Mask(nn.Sequential):
    """A task's attention at one stage (MTAN Eq. 2's g and h): from features (B, C_in, H, W) to a mask in [0, 1]
    of shape (B, C, H, W), by 1x1 convolutions with BatchNorm, a ReLU between them and a sigmoid at the end."""

    def __init__(self, in_channels: int, width: int, channels: int) -> None:
        super().__init__(*_normed(in_channels, width), nn.ReLU(inplace=True), *_normed(width, channels))

    def forward(self, features: Tensor) -> Tensor:
        mask: Tensor = super().forward(features)
        return mask.sigmoid()


class Handover(nn.Module):
    """Brings what a task attended to at one stage to the next (MTAN Eq. 2's f): a bottleneck whose convolutions all
    tasks share, each with norms of its own.

    Norms of all tasks in one would mix their statistics, and hand one task's gradient to another's attention.
    """

    def __init__(self, tasks: Sequence[str], channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        widths = [channels, width, width, out_channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False)
            for before, after, kernel in zip(widths, widths[1:], (1, 3, 1))
        )
        self.shortcut = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norms = nn.ModuleDict(
            {task: nn.ModuleList(nn.BatchNorm2d(c) for c in (*widths[1:], out_channels)) for task in tasks}
        )

    def forward(self, features: Tensor, task: str, size: Sequence[int]) -> Tensor:
        """Features (B, C, H, W) of a task as (B, out_channels, *size), by max pooling."""
        norms: Any = self.norms[task]
        x = features
        for layer, norm in zip(self.layers, norms):
            x = norm(layer(x))
            if layer is not self.layers[-1]:
                x = x.relu()
        x = (x + norms[-1](self.shortcut(features))).relu()
        return x if x.shape[-2:] == torch.Size(size) else F.adaptive_max_pool2d(x, list(size))


def _normed(in_channels: int, channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
