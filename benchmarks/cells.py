"""An iteration of a search for cells, ours against a plain formulation of the papers' equations.

Plain: every operation of every edge on its own, weighted and summed, and weight gradients computed in the arch step
too. Both hold the same weights and run interleaved in one process, one thread, fp32: DARTS's search network with 16
channels, 8 cells on a batch of 16 at 32x32 and 5 cells on a batch of 2 at 128x128, all channels or, as in PC-DARTS,
a quarter of them. An iteration is a weight step and an arch step; times are the processor's.

    python benchmarks/cells.py [--json FILE] [--repeats 3]
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import saved_bytes
from report import main, ratio
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mtlsearch.nn.mixed import MixedCell
from mtlsearch.searcher import frozen_statistics, only

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from plain_cells import PlainCell, paired_gradients

SETTINGS = {"8 cells, 16 images of 32x32": (8, 16, 32), "5 cells, 2 images of 128x128": (5, 2, 128)}
AT_MOST = {1: (0.40, 0.55), 4: (0.48, 0.55)}


class Network(nn.Module):
    """DARTS's search network: a stem, cells that reduce at one and two thirds of the depth, and a classifier."""

    def __init__(self, cells: int, *, channels: int = 16, partial: int = 1) -> None:
        super().__init__()
        stem = 3 * channels
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        self.cells = nn.ModuleList()
        before, last, reduces_first = stem, stem, False
        for index in range(cells):
            reduction = index in (cells // 3, 2 * cells // 3)
            channels *= 1 + reduction
            shape = {"reduction": reduction, "reduces_first": reduces_first, "partial": partial}
            self.cells.append(MixedCell((before, last), channels, **shape))
            before, last, reduces_first = last, 4 * channels, reduction
        self.classifier = nn.Linear(last, 10)
        self.logits = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(14, 8)) for _ in range(2))
        self.edges = nn.ParameterList(nn.Parameter(1e-3 * torch.randn(14)) for _ in range(2 * (partial > 1)))

    def forward(self, image: Tensor) -> Tensor:
        gates = [(logits.softmax(-1), None) for logits in self.logits]
        if self.edges:
            gates = [(gate, edges.sigmoid()) for (gate, _), edges in zip(gates, self.edges)]
        s0 = s1 = self.stem(image)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1, *gates[cell.reduction])
        return self.classifier(s1.mean((2, 3)))

    def arch(self) -> list[nn.Parameter]:
        return [*self.logits, *self.edges]

    def weights(self) -> list[nn.Parameter]:
        known = {id(parameter) for parameter in self.arch()}
        return [parameter for parameter in self.parameters() if id(parameter) not in known]


def as_plain(network: Network) -> Network:
    plain = copy.deepcopy(network)
    plain.cells = nn.ModuleList(PlainCell(cell) for cell in plain.cells)
    return plain


def recomputing(network: Network) -> Network:
    other = copy.deepcopy(network)
    for cell in other.cells:
        cell.recompute = True
    return other


def loss(network: nn.Module, image: Tensor) -> Tensor:
    return nn.functional.cross_entropy(network(image), torch.arange(len(image)) % 10)


def arch_step(network: Network, image: Tensor) -> None:
    with only(network.arch(), network), frozen_statistics(network):
        loss(network, image).backward()
    network.zero_grad()


def weight_step(network: Network, image: Tensor) -> None:
    with only(network.weights(), network):
        loss(network, image).backward()
    network.zero_grad()


def plain_step(network: Network, image: Tensor) -> None:
    loss(network, image).backward()
    network.zero_grad()


def median_times(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, interleaved; of the processor, which other programs disturb less."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class Peak(TorchDispatchMode):
    """Follows the bytes of all tensors made while it is on; `most` is the largest sum at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = id(storage)
                if key not in before and key not in self.known:
                    self.known.add(key)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(run: Callable[[], None]) -> int:
    with Peak() as peak:
        run()
    return peak.most


def benchmark(repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for partial, limits in AT_MOST.items():
        for (setting, (cells, batch, size)), limit in zip(SETTINGS.items(), limits):
            what = f"{setting}, 1/{partial} of the channels" if partial > 1 else setting
            rows += compare(what, cells, batch, size, partial, limit, repeats)
    return rows + agreement()


def compare(
    what: str, cells: int, batch: int, size: int, partial: int, limit: float, repeats: int
) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    ours = Network(cells, partial=partial)
    plain, again = as_plain(ours), recomputing(ours)
    image = torch.randn(batch, 3, size, size)
    last = image.contiguous(memory_format=torch.channels_last)
    seconds = median_times(
        {
            "ours arch": lambda: arch_step(ours, last),
            "ours weights": lambda: weight_step(ours, last),
            "plain arch": lambda: plain_step(plain, image),
            "plain weights": lambda: plain_step(plain, image),
            "again arch": lambda: arch_step(again, last),
            "again weights": lambda: weight_step(again, last),
        },
        repeats,
    )
    total = {
        kind: seconds[f"{kind} arch"] + seconds[f"{kind} weights"] for kind in ("ours", "plain", "again")
    }
    kept, plain_kept = (
        saved_bytes(lambda n=n, x=x: loss(n, x), [*n.parameters(), *n.buffers(), x]) / 2**20
        for n, x in ((ours, last), (plain, image))
    )
    most, plain_most = (
        peak_bytes(lambda n=n, x=x: plain_step(n, x)) / 2**20 for n, x in ((again, last), (plain, image))
    )
    return [
        ratio(f"{what}: iteration", total["ours"], total["plain"], "s", at_most=limit),
        ratio(f"{what}: arch step", seconds["ours arch"], seconds["plain arch"], "s"),
        ratio(f"{what}: weight step", seconds["ours weights"], seconds["plain weights"], "s"),
        ratio(f"{what}: saved activations", kept, plain_kept, "MiB", at_most=0.40),
        ratio(f"{what}: iteration that recomputes", total["again"], total["plain"], "s", at_most=0.55),
        ratio(f"{what}: peak of a step that recomputes", most, plain_most, "MiB", at_most=0.15),
    ]


def agreement() -> list[dict[str, Any]]:
    """How far gradients are from the plain form's in double precision, relative to their norm."""
    torch.manual_seed(0)
    ours = Network(4, partial=1)
    image = torch.randn(4, 3, 16, 16)
    exact, double = gradients_of(as_plain(ours).double(), copy.deepcopy(ours).double(), image.double())
    plain, single = gradients_of(as_plain(ours), ours, image)
    norm = exact.norm()
    distance = {"double": double, "ours": single, "plain": plain}
    off = {name: float((gradient.double() - exact).norm() / norm) for name, gradient in distance.items()}
    return [
        {
            "what": "gradients in double precision, relative difference",
            "ours": off["double"],
            "at most": 1e-10,
        },
        ratio(
            "gradients, distance from double precision", off["ours"], off["plain"], "relative", at_most=4.0
        ),
    ]


def gradients_of(plain: Network, ours: Network, image: Tensor) -> tuple[Tensor, Tensor]:
    """All gradients of both, flat and in the same order."""
    loss(plain, image).backward()
    loss(ours, image).backward()
    pairs = [
        (a, b) for mine, other in zip(ours.cells, plain.cells) for _, a, b in paired_gradients(mine, other)
    ]
    rest = [ours.stem, ours.classifier, ours.logits], [plain.stem, plain.classifier, plain.logits]
    pairs += [(a.grad, b.grad) for m, n in zip(*rest) for a, b in zip(m.parameters(), n.parameters())]
    return tuple(torch.cat([gradient.detach().flatten() for gradient in side]) for side in zip(*pairs))[::-1]


if __name__ == "__main__":
    main("A search for cells: ours and the plain formulation", benchmark, repeats=3)
