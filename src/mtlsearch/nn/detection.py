"""A single-shot detector's network: the head, its prior boxes, and the coding of boxes by them.

After SSD (Liu et al., ECCV 2016). Boxes are x1, y1, x2, y2 in pixels from the image's left upper corner. The
prediction for B images is one tensor (B, P, 9 + classes), a row for each of P prior boxes:

| columns | content |
|---|---|
| 0 to 3 | the offsets of the box from its prior, as `encode` makes them |
| 4 to 7 | the prior, the same for every image |
| 8 | the logit of background |
| 9 and on | the logits of the classes |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANCES = (0.1, 0.2)
"""What offsets of a centre, and of a side's logarithm, are divided by."""
LARGEST_GROWTH = math.log(1000 / 16)
"""A box is decoded to at most 62 times its prior's side, so that wild offsets stay finite."""


def ssd(
    num_classes: int,
    *,
    finest: int = 4,
    smallest: float = 0.12,
    largest: float = 0.66,
    fpn: int = 0,
    extra: int = 0,
    norm: bool = False,
) -> Callable[[Sequence[int], Sequence[int]], nn.Module]:
    """SSD's head: on each level a 3x3 convolution for the offsets and one for the logits.

    Of the m levels, the k-th from 0 has square priors of side s = smallest + (largest - smallest) k / (m - 1)
    and of the geometric mean of this and the next level's; and others of the area s² with sides 2 : 1, 1 : 2
    and, but on the last level, 3 : 1 and 1 : 3. So there are 6 priors a place, 4 on the last level.

    Args:
        num_classes: without background.
        finest: the smallest stride used.
        smallest, largest: sides as fractions of the image's shorter one, of the first and of the last level.
        fpn: channels of a top-down path over the levels, which makes the first ones see more; 0: none.
        extra: levels appended, each of twice the stride of the one before.
        norm: BatchNorm after these convolutions, as MTNAS's authors have it; SSD has none.
    """
    if not 0 < smallest < largest:
        raise ValueError(
            f"The sides of prior boxes go from smallest > 0 up to a larger one: found {smallest} to {largest}."
        )
    for name, value in {"fpn": fpn, "extra": extra}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} of the head 'ssd' must be an integer of at least 0, not {value!r}.")
    return partial(
        SSD,
        num_classes=num_classes,
        finest=finest,
        smallest=smallest,
        largest=largest,
        fpn=fpn,
        extra=extra,
        norm=norm,
    )


class SSD(nn.Module):
    """The head of `ssd`, for one pyramid: `module(features, size)` gives (B, P, 9 + classes)."""

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int,
        finest: int,
        smallest: float,
        largest: float,
        fpn: int,
        extra: int,
        norm: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = next((i for i, stride in enumerate(strides) if stride >= finest), len(strides) - 1)
        widths = list(channels[self.first :])
        self.top_down = TopDown(widths, fpn) if fpn else None
        widths = [fpn or width for width in widths] + [fpn or widths[-1]] * extra
        self.extra = nn.ModuleList(_halve(widths[-1]) for _ in range(extra))
        self.sides = prior_sides(len(widths), smallest, largest)
        self.offsets = nn.ModuleList(_last(c, 4 * len(s), norm) for c, s in zip(widths, self.sides))
        self.logits = nn.ModuleList(
            _last(c, (1 + num_classes) * len(s), norm) for c, s in zip(widths, self.sides)
        )
        for last, kinds in zip(self.logits, self.sides):
            # Background starts at three in four, as in the loss: to learn this would cost many steps.
            start = torch.zeros(len(kinds), 1 + num_classes)
            start[:, 0] = math.log(3 * num_classes)
            closing: Any = list(last.modules())[-1]
            with torch.no_grad():
                closing.bias.copy_(start.flatten())

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        levels = list(features[self.first :])
        if self.top_down is not None:
            levels = self.top_down(levels)
        for halve in self.extra:
            levels.append(halve(levels[-1]))
        rows = []
        for level, sides, offsets, logits in zip(levels, self.sides, self.offsets, self.logits):
            boxes = priors(size, level, sides).expand(len(level), -1, 4)
            rows.append(
                torch.cat(
                    [_rows(offsets(level), 4), boxes, _rows(logits(level), 1 + self.num_classes)], dim=2
                )
            )
        return torch.cat(rows, dim=1)


class TopDown(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017): each level plus the coarser ones, then a 3x3 convolution."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(_conv(width, width), nn.ReLU(inplace=True)) for _ in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, features)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, levels)]


def prior_sides(levels: int, smallest: float, largest: float) -> list[list[tuple[float, float]]]:
    """Width and height of each level's priors as fractions of the image's shorter side; see `ssd`."""
    step = (largest - smallest) / max(levels - 1, 1)
    result = []
    for level in range(levels):
        side = smallest + step * level
        ratios = (1.0, 2.0, 1 / 2) if level == levels - 1 else (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
        between = math.sqrt(side * (side + step))
        result.append([(side * math.sqrt(r), side / math.sqrt(r)) for r in ratios] + [(between, between)])
    return result


def priors(size: tuple[int, int], level: Tensor, sides: Sequence[tuple[float, float]]) -> Tensor:
    """The priors (h * w * sides, 4) of a level (B, C, h, w): at each place one of each of the `sides`.

    The places divide the image of `size` (H, W) evenly, whatever the level's stride. Priors may reach beyond
    the image; their centres lie inside.
    """
    kind = torch.promote_types(level.dtype, torch.float32)
    y, x = (
        (torch.arange(places, device=level.device, dtype=kind) + 0.5) * (pixels / places)
        for places, pixels in zip(level.shape[-2:], size)
    )
    centres = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)[:, :, None]
    half = torch.tensor(sides, device=level.device, dtype=kind) * (min(size) / 2)
    return torch.cat([centres - half, centres + half], dim=-1).flatten(0, 2)


def split(prediction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets (B, P, 4), priors (P, 4) and logits (B, P, 1 + classes) of a prediction."""
    if prediction.ndim != 3 or prediction.shape[2] < 10:
        raise ValueError(
            f"A prediction of boxes is (B, priors, 9 + classes): found {tuple(prediction.shape)}. Take a head "
            "of mtlsearch.nn.detection, or let yours return this."
        )
    return prediction[..., :4], prediction[0, :, 4:8], prediction[..., 8:]


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Offsets (..., 4) of boxes from their priors: of the centres in sides of the prior, and the logarithms of the
    quotients of the sides, each divided by its variance."""
    centre, side = centred(boxes)
    prior_centre, prior_side = centred(priors)
    return torch.cat(
        [
            (centre - prior_centre) / prior_side / VARIANCES[0],
            (side / prior_side).log() / VARIANCES[1],
        ],
        dim=-1,
    )


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """The boxes (..., 4) that have these offsets from their priors: what `encode` undoes."""
    prior_centre, prior_side = centred(priors)
    centre = prior_centre + offsets[..., :2] * VARIANCES[0] * prior_side
    half = (offsets[..., 2:] * VARIANCES[1]).clamp(max=LARGEST_GROWTH).exp() * prior_side / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def centred(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The centres and the sides, width and height, (..., 2) each, of boxes."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low


def _rows(maps: Tensor, width: int) -> Tensor:
    """Maps (B, n * width, h, w) as rows (B, h * w * n, width)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def _last(in_channels: int, out_channels: int, norm: bool) -> nn.Module:
    """A convolution with a bias, its own or its norm's."""
    return _conv(in_channels, out_channels) if norm else nn.Conv2d(in_channels, out_channels, 3, padding=1)


def _halve(channels: int) -> nn.Sequential:
    """A level of twice the stride, as SSD's: by half as many channels."""
    return nn.Sequential(
        nn.Conv2d(channels, channels // 2, 1, bias=False),
        nn.BatchNorm2d(channels // 2),
        nn.ReLU(inplace=True),
        _conv(channels // 2, channels, stride=2),
        nn.ReLU(inplace=True),
    )
