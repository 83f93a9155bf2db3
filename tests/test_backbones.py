from collections import Counter

import pytest
import torch
from torch import nn

from mtlsearch.backbones import from_module, load
from mtlsearch.nn.lockstep import Lockstep

TINY = [
    ("test_resnet", {}),
    ("test_vit", {"size": 64}),
    ("test_convnext", {}),
    ("test_efficientnet", {}),
    ("mobilenetv3_small_050", {}),
]


@pytest.mark.parametrize(
    ("name", "count", "stages"),
    [
        ("vgg16", 13, [2, 2, 3, 3, 3]),
        ("vgg16_bn", 13, [2, 2, 3, 3, 3]),
        ("resnet18", 9, [1, 2, 2, 2, 2]),
        ("resnet50", 17, [1, 3, 4, 6, 3]),
        ("test_vit", 6, [6]),
    ],
)
def test_nodes_and_stages(name, count, stages):
    nodes = load(name).nodes
    assert len(nodes) == count
    assert [n for _, n in sorted(Counter(node.stage for node in nodes).items())] == stages


def test_vgg_nodes_are_what_the_convolutions_end_in():
    backbone = load("vgg16_bn")
    modules = dict(backbone.model.named_modules())
    assert all(isinstance(modules[node.path], nn.ReLU) for node in backbone.nodes)
    assert not any(node.signed for node in backbone.nodes)


def test_signed_outputs_are_seen():
    assert all(node.signed for node in load("test_convnext").nodes)
    assert not any(node.signed for node in load("test_resnet").nodes)


@pytest.mark.parametrize(("name", "settings"), TINY)
def test_the_pyramid_is_as_announced(name, settings):
    backbone = load(name, **settings).eval()
    features = backbone(torch.rand(2, 3, 64, 64))
    assert [f.shape[1] for f in features] == backbone.channels
    assert [64 // f.shape[2] for f in features] == backbone.strides


@pytest.mark.parametrize("name", ["vgg16", "test_resnet"])
def test_output_stride_is_kept_by_dilation(name):
    backbone = load(name, output_stride=8)
    assert max(backbone.strides) == 8
    assert any(m.dilation == (2, 2) for m in backbone.modules() if isinstance(m, nn.Conv2d))


def test_dilation_leaves_the_stages_alone():
    assert [n.stage for n in load("vgg16", output_stride=8).nodes] == [n.stage for n in load("vgg16").nodes]


def test_images_are_normalised():
    backbone = load("test_resnet")
    grey = backbone.mean.expand(1, 3, 4, 4)
    assert torch.allclose(backbone.normalize(grey), torch.zeros(1, 3, 4, 4), atol=1e-6)
    ids = torch.ones(1, 5, dtype=torch.long)
    assert backbone.normalize(ids) is ids


def test_unknown_names_answer_with_the_nearest():
    with pytest.raises(ValueError, match="resnet50"):
        load("resnet5O")
    with pytest.raises(ValueError, match=r"layer1\.0"):
        load("test_resnet", blocks=["layer1.O"])


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(inplace=True))
        self.c = nn.Conv2d(4, 8, 3, 2, 1)

    def forward(self, x):
        a = self.b(self.a(x))
        return [a, self.c(a)]


def test_a_module_of_ones_own():
    backbone = from_module(Plain(), ["a", "b", "c"], size=(32, 32))
    assert [node.stage for node in backbone.nodes] == [0, 0, 1]
    assert (backbone.channels, backbone.strides) == ([4, 8], [2, 4])
    assert backbone.spec is None
    with pytest.raises(ValueError, match="no module 'd'"):
        from_module(Plain(), ["a", "d"])


@pytest.mark.parametrize(("name", "settings"), TINY)
def test_lockstep_computes_what_separate_backbones_do(name, settings):
    torch.manual_seed(0)
    backbones = {task: load(name, **settings).double() for task in ("a", "b", "c")}
    image = torch.rand(2, 3, 64, 64, dtype=torch.double)
    if "vit" in name:  # what the root holds, position embeddings, is shared in lockstep
        for backbone in list(backbones.values())[1:]:
            backbone.model.model.pos_embed.data = backbones["a"].model.model.pos_embed.data
            backbone.model.model.cls_token.data = backbones["a"].model.model.cls_token.data
    expected = {task: backbone.train()(image) for task, backbone in backbones.items()}
    for (
        backbone
    ) in backbones.values():  # training mode moved the running statistics; lockstep reads the batch's
        backbone.train()
    together = Lockstep(backbones).train()(image, ["a", "b", "c"])
    for task, features in expected.items():
        for one, other in zip(features, together[task]):
            assert torch.allclose(one, other, atol=1e-10)


def test_lockstep_parameters_are_separate_and_all_there():
    alone = sum(p.numel() for p in load("test_resnet").parameters())
    lockstep = Lockstep({task: load("test_resnet") for task in "ab"})
    assert sum(p.numel() for p in lockstep.parameters()) == 2 * alone


def test_exchange_sees_every_layer_and_what_it_gives_goes_on():
    backbones = {task: load("test_resnet") for task in "ab"}
    layers = len(backbones["a"].nodes)
    lockstep = Lockstep(backbones).eval()
    image, seen = torch.rand(1, 3, 64, 64), []

    def swap(layer, outputs):
        seen.append(layer)
        return {"a": outputs["b"], "b": outputs["a"]} if layer == layers - 1 else outputs

    plain, swapped = lockstep(image, ["a", "b"]), lockstep(image, ["a", "b"], swap)
    assert seen == list(range(layers))
    assert torch.allclose(plain["a"][-1], swapped["b"][-1]) and torch.allclose(
        plain["b"][-1], swapped["a"][-1]
    )


def test_a_task_that_exchange_leaves_out_is_not_computed_further():
    lockstep = Lockstep({task: load("test_resnet") for task in "ab"}).eval()
    calls = []
    last = lockstep.backbone.nodes[-1].path
    for task in "ab":
        module = lockstep.backbone.model.get_submodule(last).copies[task]
        module.register_forward_hook(lambda *_, task=task: calls.append(task))
    image = torch.rand(1, 3, 64, 64)
    alone = lockstep(image, ["a", "b"], lambda layer, outputs: {"a": outputs["a"]} if layer == 1 else outputs)
    assert calls == ["a"] and list(alone) == ["a"]
    assert torch.allclose(alone["a"][-1], lockstep(image, ["a"])["a"][-1], atol=1e-6)
