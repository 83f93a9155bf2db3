"""VD-CNN (Conneau et al., 2017), a residual network over the characters of a text, as a `Backbone`."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from mtlsearch.backbones.backbone import Backbone, from_module

BLOCKS = {9: (1, 1, 1, 1), 17: (2, 2, 2, 2), 29: (5, 5, 2, 2), 49: (8, 8, 5, 3)}
"""Blocks of each level, by the number of convolution layers: the first, and two a block."""
WIDTHS = (64, 128, 256, 512)
EMBEDDING = 16


def vdcnn(depth: int = 9, *, tokens: int = 69) -> Backbone:
    """A VD-CNN with shortcuts, which reads (B, T) token ids.

    Its features are (B, C, 1, T / stride), so whatever takes an image's features takes them too. The paper's
    classifier, three layers on the eight largest values of each channel, is a head and not part of it.

    Args:
        depth: 9, 17, 29 or 49 convolution layers.
        tokens: number of ids; 0 is padding. `mtlsearch.data.Text` has the paper's 69.
    """
    if depth not in BLOCKS:
        raise ValueError(f"A VD-CNN has a depth of {', '.join(map(str, BLOCKS))}, not {depth!r}.")
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, not {tokens}.")
    model = VDCNN(BLOCKS[depth], tokens)
    blocks = [path for path, module in model.named_modules() if isinstance(module, Block)]
    spec = {"name": "vdcnn", "arguments": {"depth": depth, "tokens": tokens}}
    return from_module(model, ["stem", *blocks], size=(1, 64), tokens=tokens, spec=spec)


class VDCNN(nn.Module):
    """The network without its classifier: ids (B, T) to a list of features, one a level, each half as long."""

    def __init__(self, blocks: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, EMBEDDING, padding_idx=0)
        self.stem = nn.Conv2d(EMBEDDING, WIDTHS[0], (1, 3), padding=(0, 1))
        self.pool = nn.MaxPool2d((1, 3), stride=(1, 2), padding=(0, 1))
        inputs = (WIDTHS[0], *WIDTHS)
        self.levels = nn.ModuleList(
            nn.Sequential(*(Block(before if i == 0 else after, after) for i in range(count)))
            for count, (before, after) in zip(blocks, pairwise(inputs))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, ids: Tensor) -> list[Tensor]:
        x = self.stem(self.embed(ids).transpose(1, 2).unsqueeze(2))
        features: list[Tensor] = []
        for level in self.levels:
            x = level(self.pool(x) if features else x)
            features.append(x)
        return features


class Block(nn.Module):
    """Two convolutions over three characters, and a shortcut that is a 1x1 convolution where channels differ."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, out_channels, (1, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, (1, 3), padding=(0, 1), bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.downsample = None
        if channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = (self.layers(x) + shortcut).relu()
        return output
