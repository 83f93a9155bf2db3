"""VD-CNN: the paper's layers, as a backbone that whatever takes a backbone takes."""

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.architecture import Architecture
from mtlsearch.backbones import from_module, load, vdcnn
from mtlsearch.nn.lockstep import Lockstep
from mtlsearch.nn.paths import skippable

IDS = torch.randint(69, (2, 64), generator=torch.Generator().manual_seed(0))


def parameters(blocks):
    """How many a VD-CNN has, by hand."""
    count = 69 * 16 + (3 * 16 * 64 + 64)
    before = 64
    for after, number in zip((64, 128, 256, 512), blocks):
        if before != after:
            count += before * after + 2 * after  # the shortcut and its norm
        for _ in range(number):
            count += 3 * before * after + 3 * after * after + 2 * 2 * after
            before = after
    return count


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(9, (1, 1, 1, 1)), (17, (2, 2, 2, 2)), (29, (5, 5, 2, 2)), (49, (8, 8, 5, 3))],
)
def test_layers_and_parameters(depth, blocks):
    backbone = vdcnn(depth)
    kernels = [m.kernel_size for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert (kernels.count((1, 3)), kernels.count((1, 1))) == (depth, 3)
    assert sum(p.numel() for p in backbone.parameters()) == parameters(blocks)
    assert [node.stage for node in backbone.nodes] == [0] + [
        i for i, n in enumerate(blocks) for _ in range(n)
    ]


@pytest.mark.parametrize("length", [64, 50, 8])
def test_features_are_halved_in_length_and_doubled_in_channels(length):
    backbone = vdcnn()
    features = backbone(torch.randint(69, (2, length)))
    assert (backbone.channels, backbone.strides) == ([64, 128, 256, 512], [1, 2, 4, 8])
    lengths = [-(-length // stride) for stride in backbone.strides]
    assert [tuple(f.shape) for f in features] == [
        (2, channels, 1, n) for channels, n in zip(backbone.channels, lengths)
    ]


def test_padding_is_embedded_as_nothing():
    embed = vdcnn().model.embed
    assert not embed(torch.zeros(1, dtype=torch.long)).any() and embed(IDS).any()


def test_a_convolution_sees_one_character_either_way():
    stem = vdcnn().model.stem
    x = torch.zeros(1, 16, 1, 9, requires_grad=True)
    stem(x)[..., 4].sum().backward()
    assert x.grad.abs().sum((0, 1, 2)).nonzero().flatten().tolist() == [3, 4, 5]


def test_every_block_can_be_skipped_and_the_first_of_a_level_keeps_its_shortcut():
    backbone = vdcnn(17)
    nodes = skippable(backbone)
    assert [node.path for node in nodes] == [f"levels.{i}.{j}" for i in range(4) for j in range(2)]
    shortcuts = [backbone.model.get_submodule(node.path).downsample is not None for node in nodes]
    assert shortcuts == [False, False, True, False, True, False, True, False]
    assert [node.keeps_shape for node in nodes] == [not shortcut for shortcut in shortcuts]
    x = torch.rand(1, 64, 1, 8)
    block = backbone.model.get_submodule("levels.0.0").eval()
    torch.testing.assert_close(block(x), (block.layers(x) + x).relu())


def test_the_spec_builds_it_again():
    backbone = vdcnn(17)
    assert backbone.spec == {"name": "vdcnn", "arguments": {"depth": 17, "tokens": 69}}
    again = load(backbone.spec["name"], **backbone.spec["arguments"], pretrained=False, checkpoint_path=None)
    again.load_state_dict(backbone.state_dict())
    for one, other in zip(backbone.eval()(IDS), again.eval()(IDS)):
        assert torch.equal(one, other)
    assert backbone.again().spec == backbone.spec


def test_what_it_cannot_be_is_said():
    with pytest.raises(ValueError, match="depth of 9, 17, 29, 49, not 10"):
        load("vdcnn", depth=10)
    with pytest.raises(ValueError, match=r"'vdcnn' cannot be made .*'pretrained'"):
        load("vdcnn", pretrained=True)
    with pytest.raises(ValueError, match="tokens must be at least 2"):
        vdcnn(tokens=1)


def test_networks_of_one_structure_run_in_lockstep():
    backbones = {task: vdcnn().eval() for task in "ab"}
    expected = {task: backbone(IDS) for task, backbone in backbones.items()}
    together = Lockstep(backbones).eval()(IDS, ["a", "b"])
    for task, features in expected.items():
        for one, other in zip(features, together[task]):
            torch.testing.assert_close(one, other)


def test_an_architecture_on_it_comes_back_from_json():
    tasks = [ms.tasks.classification(name, num_classes=3) for name in ("news", "reviews")]
    baseline = ms.SingleTask(tasks, vdcnn())
    network = Architecture.from_json(baseline.derive().to_json()).build().eval()
    network.load_state_dict(baseline.network().state_dict())
    baseline.eval()
    for name, prediction in network(IDS).items():
        assert prediction.shape == (2, 3)
        torch.testing.assert_close(prediction, baseline.network()(IDS)[name])


def test_a_text_model_of_ones_own():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.layer = nn.Conv2d(4, 6, (1, 3), stride=(1, 2), padding=(0, 1))

        def forward(self, ids):
            return [self.layer(self.embed(ids).transpose(1, 2).unsqueeze(2))]

    backbone = from_module(Words(), ["layer"], size=(1, 32), tokens=10)
    assert (backbone.channels, backbone.strides, backbone.nodes[0].axis) == ([6], [2], 1)
