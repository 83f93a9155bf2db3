"""Costs that can be counted by hand."""

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch import backbones
from mtlsearch.searchers.fusion import Edge, FusionNetwork
from tiny import ToyNetwork, make_tasks

IMAGE = torch.rand(1, 3, 8, 8)


class TwoHeads(nn.Module):
    """A convolution used twice and reachable by two names, and a head for each task."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.heads = nn.ModuleDict({"a": nn.Conv2d(3, 2, 1), "b": nn.Linear(3, 5)})
        self.scale = nn.Parameter(torch.ones(7))

    def forward(self, image, tasks):
        features = self.again(self.first(image)) if "b" in tasks else self.first(image)
        maps = {"a": self.heads["a"](features), "b": self.heads["b"](features.mean(dim=(2, 3)))}
        return {task: maps[task] for task in tasks}


def test_parameters_are_counted_once_and_macs_by_hand():
    result = ms.cost(TwoHeads(), IMAGE, ["a", "b"])
    conv, head_a, head_b = 3 * 3 * 9 + 3, 3 * 2 + 2, 3 * 5 + 5
    assert result["params"] == conv + head_a + head_b + 7
    conv_macs, a_macs, b_macs = 3 * 3 * 9 * 64, 3 * 2 * 64, 3 * 5
    assert result["macs"] == 2 * conv_macs + a_macs + b_macs
    assert result["per_task"]["a"] == {"params": conv + head_a, "macs": conv_macs + a_macs + b_macs}
    assert result["per_task"]["b"] == {"params": conv + head_b, "macs": 2 * conv_macs + a_macs + b_macs}


def test_stride_and_groups_count():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False)

        def forward(self, image, tasks):
            return {"a": self.conv(image)}

    result = ms.cost(One(), torch.rand(1, 4, 8, 8), ["a"])
    assert result["macs"] == 4 // 2 * 9 * 8 * 16 and result["params"] == 4 // 2 * 9 * 8


@pytest.mark.parametrize("name, arguments", [("test_resnet", {}), ("test_vit", {"size": 32})])
def test_the_products_of_a_fusion_layer_are_counted(name, arguments):
    """A fusion layer is a 1x1 convolution: its weights times the places where it is applied."""
    tasks = make_tasks()
    backbone = backbones.load(name, **arguments)
    edge = Edge("semantic", 1, "depth", 0)
    image = torch.rand(1, 3, 32, 32)
    names = ["semantic", "depth"]
    fused = FusionNetwork(tasks, backbone, [edge], [edge], activation=None)
    alone = FusionNetwork(tasks, backbone, [], [], activation=None)
    places = {"test_resnet": 8 * 8, "test_vit": 2 * 2 + 1}[name]
    source, target = (node.channels for node in backbone.nodes[:2])
    weights = target * (target + source)
    assert ms.cost(fused, image, names)["macs"] - ms.cost(alone, image, names)["macs"] == weights * places


def test_a_task_alone_pays_for_what_it_needs():
    tasks = make_tasks()
    network = FusionNetwork(tasks, backbones.load("test_resnet"), [], [], activation=None)
    result = ms.cost(network, torch.rand(1, 3, 32, 32), ["semantic", "depth"])
    for measure in ("params", "macs"):
        parts = [result["per_task"][task][measure] for task in ("semantic", "depth")]
        assert sum(parts) == result[measure] and parts[0] > parts[1] > 0


def test_the_network_is_left_as_it_was():
    network = ToyNetwork(make_tasks(plain=True), [], norm=True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = ms.cost(network, IMAGE, ["semantic", "depth"], repeats=2)
    assert network.training and result["latency_ms"] > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    ms.cost(network.eval(), IMAGE, ["semantic"])
    assert not network.training
