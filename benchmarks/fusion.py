"""One iteration of the MTL-NAS search, ours against a plain formulation of the paper's equations.

Plain: every gate drawn on its own, gated features scaled one by one, concatenated, then convolved; the arch step
computes weight gradients too. Both hold the same weights and run interleaved in one process, one thread, fp32.

    python benchmarks/fusion.py [--json FILE] [--repeats 7]
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from memory import saved_bytes
from report import main, ratio
from torch import Tensor, nn

import mtlsearch as ms
from mtlsearch.nn.fusion import Fusion
from mtlsearch.searcher import frozen_statistics, only
from mtlsearch.searchers.mtlnas import FusionSupernet

TASKS = [ms.tasks.segmentation("semantic", num_classes=13), ms.tasks.normals("normals")]
BATCH, SIZE = 2, 129


class PlainFusion(nn.Module):
    """ReLU(BN(1x1 convolution of the concatenation of own features and gated sources)), as Eq. 2 is written."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        weight = torch.cat([part.data for part in fusion.weights], dim=1)
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        self.conv.weight.data = weight[:, :, None, None]
        self.norm = copy.deepcopy(fusion.norm)

    def forward(self, own: Tensor, sources: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensor:
        scaled = [gate * source for gate, source in zip(gates, sources)]
        return F.relu(self.norm(self.conv(torch.cat([own, *scaled], dim=1))))


class PlainSupernet(nn.Module):
    """K separate backbones, layer after layer, with the supernet's weights."""

    def __init__(self, supernet: FusionSupernet, backbones: dict[str, ms.backbones.Backbone]) -> None:
        super().__init__()
        network = supernet.network
        self.sources = network.sources
        self.logits = nn.ParameterList(nn.Parameter(logit.clone()) for logit in supernet.gates.logits.data)
        self.heads = copy.deepcopy(network.heads)
        self.fusions = nn.ModuleDict(
            {
                t: nn.ModuleDict({n: PlainFusion(f) for n, f in fs.items()})
                for t, fs in network.fusions.items()
            }
        )
        first = next(iter(backbones.values()))
        self.normalize = first.normalize
        self.layers = nn.ModuleDict({task: b.model for task, b in backbones.items()})
        ends = {node.path: i for i, node in enumerate(first.nodes)}
        self.plan = [(name, ends.get(name)) for name in first.model]
        self.levels = [level["module"].replace(".", "_") for level in first.model.feature_info.info]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features: dict[tuple[str, int], Tensor] = {}
        states = dict.fromkeys(self.layers, self.normalize(image))
        pyramids: dict[str, list[Tensor]] = {task: [] for task in self.layers}
        gates = iter(self.logits)
        for name, node in self.plan:
            for task in states:
                states[task] = self.layers[task][name](states[task])
                if node is not None:
                    features[task, node] = states[task]
            for task in states if node is not None else ():
                sources = self.sources[task, node]
                drawn = [self.draw(task, node, i) for i in range(len(sources))]
                states[task] = self.fusions[task][str(node)](
                    features[task, node], [features[source] for source in sources], drawn
                )
            if name in self.levels:
                for task in states:
                    pyramids[task].append(states[task])
        del gates
        return {task: self.heads[task](pyramid, image.shape[-2:]) for task, pyramid in pyramids.items()}

    def draw(self, task: str, layer: int, source: int) -> Tensor:
        """One gate, drawn on its own."""
        return torch.sigmoid(self.logits[self.index[task, layer][source]])

    index: dict[tuple[str, int], list[int]]


def build() -> tuple[FusionSupernet, PlainSupernet]:
    """Both formulations, with the same weights."""
    torch.manual_seed(0)
    ours = FusionSupernet(TASKS, ms.backbones.load("vgg16"), init_w_ti=0.9)
    single = ours.single_task()
    backbones = {}
    for task in TASKS:
        backbone = ms.backbones.load("vgg16")
        prefix, infix = "lockstep.backbone.model.", f".copies.{task.name}."
        state = {
            f"model.{key.removeprefix(prefix).replace(infix, '.')}": value
            for key, value in single.state_dict().items()
            if key.startswith(prefix) and infix in key
        }
        backbone.load_state_dict(state)
        backbones[task.name] = backbone
    plain = PlainSupernet(ours, backbones)
    plain.index = ours.network._gates
    return ours, plain


def loss(predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    terms = [task.loss(predictions[task.name], targets[task.name]) for task in TASKS]
    return torch.stack([total / count for total, count in terms]).sum()


def median_times(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def fusion_memory() -> tuple[int, int]:
    """Bytes that the fusion of one layer keeps (64 channels, two sources, 161x161), ours and plain."""
    own, *sources = (torch.rand(BATCH, 64, 161, 161, requires_grad=True) for _ in range(3))
    fusion = Fusion(64, [64, 64], init_w_ti=0.9)
    plain = PlainFusion(fusion)
    gates = torch.rand(2, requires_grad=True)
    known = [own, *sources, gates, *fusion.parameters(), *plain.parameters()]
    return (
        saved_bytes(lambda: fusion(own, sources, gates), known),
        saved_bytes(lambda: plain(own, sources, list(gates)), known),
    )


def benchmark(repeats: int) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    ours, plain = build()
    ours.to(memory_format=torch.channels_last)
    image = torch.rand(BATCH, 3, SIZE, SIZE)
    targets = {
        "semantic": torch.randint(13, (BATCH, SIZE, SIZE)),
        "normals": F.normalize(torch.randn(BATCH, 3, SIZE, SIZE), dim=1),
    }
    ours.eval(), plain.eval()
    with torch.no_grad():
        a, b = ours(image), plain(image)
    difference = max((a[n] - b[n]).abs().max().item() for n in a)
    ours.train(), plain.train()
    plain_arch = list(plain.logits)
    plain_weights = [p for p in plain.parameters() if not any(p is q for q in plain_arch)]
    optimizers = {
        ("ours", "weights"): torch.optim.SGD(ours.weights(), lr=1e-5, momentum=0.9),
        ("ours", "arch"): torch.optim.Adam(ours.arch_parameters(), lr=1e-3),
        ("plain", "weights"): torch.optim.SGD(plain_weights, lr=1e-5, momentum=0.9),
        ("plain", "arch"): torch.optim.Adam(plain_arch, lr=1e-3),
    }

    def step_ours(group: str) -> None:
        parameters = ours.weights() if group == "weights" else ours.arch_parameters()
        with only(parameters, ours):
            if group == "arch":
                with frozen_statistics(ours):
                    loss(ours(image.contiguous(memory_format=torch.channels_last)), targets).backward()
            else:
                loss(ours(image.contiguous(memory_format=torch.channels_last)), targets).backward()
        optimizers["ours", group].step()
        optimizers["ours", group].zero_grad()

    def step_plain(group: str) -> None:
        loss(plain(image), targets).backward()
        optimizers["plain", group].step()
        plain.zero_grad()

    bare = copy.deepcopy(plain)
    bare.fusions = nn.ModuleDict()

    def step_bare() -> None:
        outputs = {}
        for task, model in bare.layers.items():
            outputs[task] = bare.heads[task](model(bare.normalize(image)), image.shape[-2:])
        loss(outputs, targets).backward()
        bare.zero_grad()

    seconds = median_times(
        {
            "ours weights": lambda: step_ours("weights"),
            "plain weights": lambda: step_plain("weights"),
            "ours arch": lambda: step_ours("arch"),
            "plain arch": lambda: step_plain("arch"),
            "bare": step_bare,
        },
        repeats,
    )
    total = {kind: seconds[f"{kind} weights"] + seconds[f"{kind} arch"] for kind in ("ours", "plain")}
    memory = fusion_memory()
    return [
        ratio("whole iteration", total["ours"], total["plain"], "s", at_most=0.72),
        ratio("arch step", seconds["ours arch"], seconds["plain arch"], "s", at_most=0.52),
        ratio("weight step", seconds["ours weights"], seconds["plain weights"], "s"),
        ratio("two passes of the bare backbones", 2 * seconds["bare"], total["plain"], "s"),
        ratio("activations kept by a fusion", memory[0] / 2**20, memory[1] / 2**20, "MiB", at_most=0.45),
        {"what": "largest difference of outputs", "ours": difference, "at most": 1e-4},
    ]


if __name__ == "__main__":
    main("MTL-NAS search iteration: VGG-16, 2 tasks, batch 2 at 129x129", benchmark)
