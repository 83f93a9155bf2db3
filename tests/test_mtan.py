"""MTAN: masks, which tasks' losses reach which attention, and a run from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch.architecture import Architecture
from mtlsearch.baselines.mtan import AttentionArchitecture, looked_at
from mtlsearch.nn.attention import Handover
from tiny import TinyData, copy_state, differing, make_tasks, make_trainer

NAMES = ("semantic", "depth", "normals")
BACKBONES = ["test_resnet", "test_convnext", "mobilenetv2_035", "resnet18"]


def make(*names, backbone="test_resnet", **arguments):
    return ms.MTAN(make_tasks(*(names or NAMES)), backbone, **arguments)


def image(height=32, width=32, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def masks_of(network, picture):
    levels, inner = network.shared(picture)
    return {name: network.attend(name, levels, inner)[1] for name in network.heads}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("training", [True, False])
def test_masks_lie_in_zero_to_one_and_differ_by_task(backbone, training):
    network = make(backbone=backbone).net.train(training)
    masks = masks_of(network, image(33, 47, count=3))
    strides = [stride for stride in network.backbone.strides if stride >= 4]
    for of_task in masks.values():
        assert len(of_task) == len(strides)
        assert all(mask.min() >= 0 and mask.max() <= 1 for mask in of_task)
        assert of_task[0].std() > 0
    assert not torch.equal(masks["semantic"][-1], masks["depth"][-1])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_masks_of_one_a_task_sees_the_shared_features(backbone):
    network = make(backbone=backbone).net.eval()
    for of_task in network.masks.values():
        for mask in of_task:
            nn.init.zeros_(mask[-1].weight)
            nn.init.constant_(mask[-1].bias, 100.0)  # whose sigmoid is 1
    picture = image(33, 47)
    levels = network.backbone(picture)
    for name, prediction in network(picture).items():
        assert torch.equal(prediction, network.heads[name](levels, (33, 47)))


def test_a_mask_of_zero_hides_its_level_from_its_task_alone():
    network = make("semantic", "depth").net.eval()
    before = network(image())
    for mask in network.masks["depth"]:
        nn.init.zeros_(mask[-1].weight)
        nn.init.constant_(mask[-1].bias, -200.0)
    after = network(image())
    assert torch.equal(after["semantic"], before["semantic"])
    hidden = [torch.zeros_like(level) for level in network.backbone(image())]
    assert torch.equal(after["depth"], network.heads["depth"](hidden, (32, 32)))


def test_a_mask_by_hand():
    """One level of two channels, a mask from it alone: sigmoid of BatchNorm's scale and shift after a ReLU."""
    from mtlsearch.nn.attention import Mask

    mask = Mask(2, 1, 2).eval()
    with torch.no_grad():
        mask[0].weight.copy_(torch.tensor([[1.0, -1.0]])[..., None, None])
        mask[3].weight.copy_(torch.tensor([[2.0], [-1.0]])[..., None, None])
    for norm in (mask[1], mask[4]):
        norm.eps = 0.0
    features = torch.tensor([[3.0, 1.0], [2.0, 5.0]])[..., None, None]
    expected = torch.tensor([[4.0, -2.0], [0.0, 0.0]]).sigmoid()
    assert torch.allclose(mask(features).flatten(1), expected)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES])
def test_a_loss_reaches_its_own_attention_and_the_backbone(names):
    network = make(*names).net
    network(image(count=4))["semantic"].square().mean().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    reached = {name for name, grad in grads.items() if grad is not None and grad.abs().sum() > 0}
    assert any(name.startswith("backbone.model.layer1") for name in reached)
    assert all(any(name.startswith(f"masks.semantic.{i}.") for name in reached) for i in range(4))
    assert any(name.startswith("handovers.0.layers") for name in reached)
    others = [name for name in grads for task in names[1:] if f".{task}." in name]
    assert others and not reached & set(others)


def test_stages_of_odd_sizes_are_handed_over():
    handover = Handover(["a"], 4, 2, 6)
    assert handover(torch.rand(2, 4, 9, 7), "a", (5, 4)).shape == (2, 6, 5, 4)
    assert handover(torch.rand(2, 4, 9, 7), "a", (9, 7)).shape == (2, 6, 9, 7)
    network = make(backbone="resnet18").net
    assert {p.shape for p in network(image(33, 47))["depth"]} == {(1, 33, 47)}


def test_masks_are_made_from_the_last_block_but_one():
    assert looked_at(ms.backbones.load("resnet18")) == [None, "layer1.0", "layer2.0", "layer3.0", "layer4.0"]
    assert looked_at(ms.backbones.load("resnet34"))[2:] == ["layer2.2", "layer3.4", "layer4.1"]
    assert looked_at(ms.backbones.load("test_resnet")) == [None] * 5
    assert looked_at(ms.backbones.load("resnet18", output_stride=8))[-1] == "layer4.0"


def test_fewer_levels_of_attention():
    coarse, fine = make(finest=16), make(finest=1)
    assert (coarse.architecture.first, fine.architecture.first) == (3, 0)
    assert len(coarse.net.masks["depth"]) == 2 and len(fine.net.masks["depth"]) == 5
    assert make(finest=64).architecture.first == 4
    narrow = make(reduction=8).net.masks["depth"][0][0].out_channels
    assert narrow == 4 and make(reduction=1000).net.masks["depth"][0][0].out_channels == 1


def test_swin_is_taken_and_a_vit_is_refused():
    swin = ms.backbones.load("swin_tiny_patch4_window7_224", size=64, window_size=2)
    network = ms.MTAN(make_tasks("depth"), swin).net.eval()
    assert network(image(64, 64, 1))["depth"].shape == (1, 1, 64, 64)
    with pytest.raises(ValueError, match=r"stages of feature maps .* gives .*1, 5, 64.* Swin"):
        ms.MTAN(make_tasks(), ms.backbones.load("test_vit", size=32))
    with pytest.raises(ValueError, match="reduction must be at least 1"):
        make(reduction=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_is_loaded_as_it_was(tmp_path, count):
    tasks = make_tasks(*NAMES[:count])
    result = ms.search(ms.MTAN(tasks, "test_resnet"), TinyData(tasks), trainer=train, dir=tmp_path)
    result.network.eval()
    loaded = ms.load(tmp_path)
    for name, prediction in loaded(image(33, 47)).items():
        assert torch.equal(prediction, result.network(image(33, 47))[name])
        assert torch.equal(prediction, loaded(image(33, 47), [name])[name])
    costs = result.metrics["cost"]
    assert costs["params"] == sum(p.numel() for p in result.network.parameters())
    backbone = sum(p.numel() for p in result.network.backbone.parameters())
    assert costs["single_task_backbone_params"] == count * backbone < count * costs["backbone_params"]
    if count > 1:  # the backbone runs once
        assert costs["macs"] < sum(own["macs"] for own in costs["per_task"].values())


def train(stage):
    return make_trainer(1)


def test_the_attention_is_trained_and_a_resume_changes_nothing(tmp_path):
    def fit(searcher, **options):
        trainer = make_trainer(2)
        trainer.fit(searcher, TinyData(make_tasks(*NAMES)), weights_only=True, **options)
        return searcher

    class Save(ms.namespace.pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    fresh, whole = copy_state(make().net), make()
    make_trainer(2, callbacks=[Save()]).fit(whole, TinyData(make_tasks(*NAMES)))
    resumed = fit(make(), ckpt_path=tmp_path / "one.ckpt")
    assert not differing(copy_state(whole.net), copy_state(resumed.net))
    moved = differing(fresh, copy_state(whole.net))
    assert {name for name in fresh if name.startswith(("masks", "handovers"))} <= set(moved)


def test_json_is_checked():
    architecture = make("depth").derive()
    assert Architecture.from_json(architecture.to_json()) == architecture
    content = json.loads(architecture.to_json())
    for wrong, message in (
        ({"layers": []}, "an entry for each level"),
        ({"layers": [1, 2, 3, 4, 5]}, "module paths or null"),
        ({"first": 5}, "first must be the number of one of 5 levels"),
        ({"first": True}, "first must be"),
        ({"reduction": 0}, "reduction must be"),
        ({"backbone": "resnet"}, "backbone must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Architecture.from_json(json.dumps(content | wrong))
    other = AttentionArchitecture(**{**vars(architecture), "layers": ["layer1.0", *architecture.layers[1:]]})
    with pytest.raises(ValueError, match="another version of timm"):
        other.build()


@pytest.mark.usefixtures("folder")
def test_the_command_line():
    arguments = ["searcher=mtan", "backbone=timm", "backbone.name=test_resnet", "dataset.size=32"]
    arguments += [f"dataset.{key}=4" for key in ("train", "val", "test", "batch_size")]
    assert command.main([*arguments, "epochs=1", "trainer.accelerator=cpu", "hydra.run.dir=a"]) == 0
    assert Path("a/report.html").exists()
    assert set(ms.load("a")(image())) == {"semantic", "normals", "depth"}
