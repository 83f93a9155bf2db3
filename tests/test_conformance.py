"""Every searcher keeps its promises, and the battery notices one that does not."""

import json

import pytest
import torch

import mtlsearch as ms
from mtlsearch.testing import check_searcher
from tiny import TinyData, ToyArchitecture, ToySearcher, ToySupernet, make_tasks

NAMES = ("semantic", "depth", "normals")


@pytest.mark.parametrize(
    "names, backbone, settings",
    [
        (NAMES, "test_resnet", {"relaxation": "concrete", "max_distance": 1}),
        (NAMES[:2], "test_vit", {"discretization": "stochastic", "init_w_ti": 0.5}),
        (NAMES[:2], "test_convnext", {"within_stage": False, "max_distance": 1}),
    ],
    ids=["concrete", "stochastic", "across stages"],
)
def test_mtlnas(names, backbone, settings):
    backbone = ms.backbones.load(backbone, **({"size": 32} if backbone == "test_vit" else {}))
    data = TinyData(make_tasks(*names), batch_size=4, sizes=(8, 2, 1))
    check_searcher(lambda tasks: ms.MTLNAS(tasks, backbone, single_task=False, **settings), data)


def test_a_toy():
    check_searcher(ToySearcher, TinyData(make_tasks(*NAMES, plain=True)))


class Net(ToySupernet):
    """A toy whose class a test breaks."""


class Leaks(ToySearcher):
    """An arch update that moves the weights."""

    def arch_step(self, batch, batch_index):
        super().arch_step(batch, batch_index)
        with torch.no_grad():
            self.net.network.stem.weight.add_(1e-6)


class Spoils(ToySearcher):
    """An update of the weights that moves the arch parameters."""

    def update(self, group, batch, batch_index):
        super().update(group, batch, batch_index)
        with torch.no_grad():
            self.net.gates.logits.mul_(0.999)


class Moves(ToySearcher):
    """An arch update that moves BatchNorm's statistics."""

    def __init__(self, tasks):
        super().__init__(tasks, norm=True)

    def arch_step(self, batch, batch_index):
        self.net.network.norm.momentum = 0.1
        super().arch_step(batch, batch_index)


class Forgets(ToySearcher):
    """State that is not in the checkpoint."""

    steps = 0

    def anneal(self, progress):
        self.steps += 1
        self.net.gates.temperature.fill_(1 / self.steps)


class Frozen(ToySearcher):
    """Arch parameters that are never updated."""

    def groups(self, epoch):
        return ("weights",)


class Varies(ToySearcher):
    """Another start every time."""

    def __init__(self, tasks):
        super().__init__(tasks, seed=torch.seed() % 1000)


def drawn(self, generator):
    self.flip = not getattr(self, "flip", False)
    return self.architecture(torch.full((len(self.tasks),), self.flip))


def noisy(self, generator):
    torch.rand(1)
    return ToySupernet.sample(self, generator)


def unordered(self):
    self.flip = not getattr(self, "flip", False)
    parts = [self.gates.logits, self.network.stem.bias]
    return parts if self.flip else parts[::-1]


def forgetful(self, architecture):
    return architecture.build(self.tasks)


def shared(self, architecture):
    network = ToySupernet.extract(self, architecture)
    network.stem = self.network.stem
    return network


def gated(self, architecture):
    network = ToySupernet.extract(self, architecture)
    network.logits = torch.nn.Parameter(self.gates.logits.detach().clone())
    return network


@pytest.mark.parametrize(
    "broken, promise",
    [
        (Leaks, "an update of the arch changes the .*weights"),
        (Spoils, "an update of the weights changes the .*arch"),
        (Moves, "an update of the arch changes the .*norms"),
        (Forgets, "a resumed search ends with other values"),
        (Frozen, "two epochs do not change the arch parameters"),
        (Varies, "other initial values"),
        ({"sample": drawn}, "the same generator"),
        ({"sample": noisy}, "draws from another generator"),
        ({"arch_parameters": unordered}, "another order"),
        ({"extract": forgetful}, "not the supernet under hard gates"),
        ({"extract": shared}, "shares parameters"),
        ({"extract": gated}, "keeps arch parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_promise_is_named(broken, promise, monkeypatch):
    if isinstance(broken, dict):
        for name, method in broken.items():
            monkeypatch.setattr(Net, name, method, raising=False)

        def make(tasks):
            searcher = ToySearcher(tasks)
            searcher.net.__class__ = Net
            return searcher
    else:
        make = broken
    with pytest.raises(AssertionError, match=promise):
        check_searcher(make, TinyData(make_tasks(*NAMES[:2], plain=True)))


def test_an_architecture_that_json_changes_is_noticed(monkeypatch):
    def lossy(self):
        return json.dumps({"kind": "toy", "version": 1, "tasks": self.tasks, "on": [True] * len(self.on)})

    monkeypatch.setattr(ToyArchitecture, "to_json", lossy)
    with pytest.raises(AssertionError, match="changes on its way through JSON"):
        check_searcher(ToySearcher, TinyData(make_tasks(*NAMES, plain=True)))
