"""Steps of AdaShare, ours against a plain formulation of the paper's equations.

Plain: a full pass of the backbone for every task, every block computed whatever the gate, weight gradients
computed in the policy step too. Both hold the same weights and run interleaved in one process, one thread, fp32:
ResNet-34 at stride 8 with ASPP heads, 3 tasks, batch 2 at 129x129.

    python benchmarks/paths.py [--json FILE] [--repeats 5]
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from report import main, ratio
from torch import Tensor, nn

import mtlsearch as ms
from mtlsearch.nn.paths import Paths
from mtlsearch.searcher import only

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from plain_paths import PlainPaths, own_name

HEAD = {"name": "aspp", "width": 256, "dropout": 0.0}
TASKS = [
    ms.tasks.segmentation("semantic", num_classes=13, head=HEAD),
    ms.tasks.normals("normals", head=HEAD),
    ms.tasks.depth("depth", head=HEAD),
]
NAMES = [task.name for task in TASKS]
BATCH, SIZE = 2, 129


class Network(nn.Module):
    """Either formulation, with heads whose convolutions are torch's own in the plain one."""

    def __init__(self, paths: nn.Module, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.paths, self.heads = paths, heads

    def forward(self, image: Tensor, gates: Sequence[Any]) -> dict[str, Tensor]:
        pyramids = self.paths(image, NAMES, gates)
        return {name: self.heads[name](pyramids[name], image.shape[-2:]) for name in NAMES}


def build() -> tuple[Network, Network]:
    torch.manual_seed(0)
    backbone = ms.backbones.load("resnet34", output_stride=8)
    heads = nn.ModuleDict({task.name: task.head(backbone.channels, backbone.strides) for task in TASKS})
    plain_heads = copy.deepcopy(heads)
    for head in plain_heads.values():
        for branch in head.branches:
            whole = nn.Conv2d(
                branch[0].in_channels,
                branch[0].out_channels,
                3,
                padding=branch[0].padding,
                dilation=branch[0].dilation,
            )
            whole.load_state_dict(branch[0].state_dict())
            branch[0] = whole
    return Network(Paths(copy.deepcopy(backbone)), heads), Network(PlainPaths(backbone), plain_heads)


def soft(logits: Tensor, opened: int) -> list[dict[str, Any]]:
    closed = len(logits) - opened
    values = logits[closed:].sigmoid()
    return [dict.fromkeys(NAMES, True)] * closed + [dict(zip(NAMES, row)) for row in values]


def half(length: int) -> list[dict[str, Any]]:
    """Every task skips half of the blocks, each other ones."""
    generator = torch.Generator().manual_seed(1)
    on = torch.ones(length, len(NAMES), dtype=torch.bool)
    for task in range(len(NAMES)):
        on[torch.randperm(length, generator=generator)[: length // 2], task] = False
    return [dict(zip(NAMES, row)) for row in on.tolist()]


def benchmark(repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    ours, plain = build()
    image = torch.rand(BATCH, 3, SIZE, SIZE)
    length = len(ours.paths.blocks)
    logits = nn.Parameter(torch.linspace(-1, 1, length * len(NAMES)).view(length, -1))

    def loss(network: Network, gates: Sequence[Any]) -> Tensor:
        outputs = network(image, gates).values()
        return torch.stack([output.square().mean() for output in outputs]).sum()

    def weights(network: Network, opened: int) -> None:
        logits.requires_grad_(False)
        loss(network, soft(logits, opened)).backward()
        network.zero_grad()

    def policy(network: Network, opened: int) -> None:
        logits.requires_grad_(True)
        if network is ours:
            with only([logits], network):
                loss(network, soft(logits, opened)).backward()
        else:
            loss(network, soft(logits, opened)).backward()
        network.zero_grad()
        logits.grad = None

    def retrain(network: Network) -> None:
        loss(network, half(length)).backward()
        network.zero_grad()

    def infer(network: Network) -> None:
        network.eval()
        with torch.no_grad():
            network(image, half(length))
        network.train()

    steps: dict[str, tuple[Callable[[Network], None], float]] = {
        "weight step, last block open": (lambda n: weights(n, 1), 0.65),
        "weight step, all blocks open": (lambda n: weights(n, length), 0.90),
        "policy step, last block open": (lambda n: policy(n, 1), 0.45),
        "policy step, all blocks open": (lambda n: policy(n, length), 0.75),
        "retraining, half of the blocks skipped": (retrain, 0.60),
        "inference, half of the blocks skipped": (infer, 0.50),
    }
    rows = []
    for what, (step, limit) in steps.items():
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for repeat in range(repeats + 1):
            for name, network in (("ours", ours), ("plain", plain)):
                start = time.perf_counter()
                step(network)
                if repeat:
                    times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(ratio(what, medians["ours"], medians["plain"], "s", at_most=limit))
    rows += agreement()
    return rows


def agreement() -> list[dict[str, Any]]:
    """How far outputs and running statistics of one pass differ, relative to the plain ones."""
    ours, plain = build()
    image = torch.rand(BATCH, 3, SIZE, SIZE)
    length = len(ours.paths.blocks)
    gates = soft(torch.linspace(-1, 1, length * len(NAMES)).view(length, -1), length)
    with torch.no_grad():
        a, b = ours(image, gates), plain(image, gates)
    outputs = max(float((a[name] - b[name]).norm() / b[name].norm()) for name in NAMES)
    mine = {own_name(name): value for name, value in ours.named_buffers() if "running" in name}
    theirs = {own_name(name): value for name, value in plain.named_buffers() if "running" in name}
    statistics_ = max(float((mine[n] - v).norm() / v.norm()) for n, v in theirs.items())
    return [
        {"what": "outputs, relative difference", "ours": outputs, "at most": 1e-4},
        {"what": "running statistics, relative difference", "ours": statistics_, "at most": 1e-4},
    ]


if __name__ == "__main__":
    main("A step of AdaShare: ours and the plain formulation", benchmark, repeats=5)
