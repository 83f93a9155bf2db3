"""TripleNet: its modules, its three supervisions in training only, and a run from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch.architecture import Architecture
from mtlsearch.baselines.triplenet import object_classes, triple_loss
from mtlsearch.nn.triple import InnerConnection, MultiscaleFusion, SkipFusion, Supervised
from mtlsearch.tasks.segmentation import cross_entropy
from tiny import BoxData, copy_state, differing, make_tasks, make_trainer

NAMES = ["floor", "wall", "dark", "light"]


def tasks(detection_first=True):
    pair = [
        ms.tasks.detection(num_classes=2, class_names=["dark", "light"]),
        ms.tasks.segmentation("semantic", num_classes=4, class_names=NAMES),
    ]
    return pair if detection_first else pair[::-1]


def make(backbone="test_resnet", **arguments):
    return ms.TripleNet(tasks(), backbone, width=8, **arguments)


def image(height=33, width=47, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "mobilenetv2_035", "resnet18"])
@pytest.mark.parametrize("extra", [0, 1])
def test_both_are_predicted_at_odd_sizes(backbone, extra):
    network = make(backbone, extra=extra).net.eval()
    both = network(image())
    assert list(both) == ["detection", "semantic"]
    assert both["semantic"].shape == (2, 4, 33, 47)
    levels = len([stride for stride in network.backbone.strides if stride >= 4]) + extra
    assert len(network.levels(image())) == levels
    assert both["detection"].shape[::2] == (2, 11)
    for name, prediction in both.items():
        assert torch.equal(network(image(), [name])[name], prediction)


def test_the_levels_are_supervised_while_training_only():
    searcher = make()
    network = searcher.net
    prediction = network(image())["semantic"]
    assert isinstance(prediction, Supervised)
    sizes = [level.shape[-2:] for level in network.levels(image())]
    assert [logits.shape for logits in prediction.aware] == [(2, 4, *size) for size in sizes]
    assert [logits.shape for logits in prediction.agnostic] == [(2, 1, *size) for size in sizes]
    assert list(network(image(), ["detection"])) == ["detection"]
    network.eval()
    assert isinstance(network(image())["semantic"], Tensor)
    finished = searcher.network()
    own = {name for name in network.state_dict() if name.startswith("supervision.")}
    assert own and network.state_dict().keys() - finished.state_dict().keys() == own
    for name, prediction in finished(image()).items():
        assert torch.equal(prediction, network(image())[name])
    assert isinstance(finished.train()(image())["semantic"], Tensor)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 0.0), (0.0, 2.0)])
def test_the_loss_by_hand(weights):
    """Two pixels of three are labelled, one with an object; two levels of the labels' size."""
    target = torch.tensor([[[0, 2, 255]]])
    logits = torch.zeros(1, 4, 1, 3)
    prediction = Supervised(logits, [logits, 2 * logits], [torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3)])
    total, count = triple_loss(prediction, target, loss=cross_entropy, objects=[2, 3], weights=weights)
    classes = 2 * math.log(4)
    even, sure = 2 * math.log(2), math.log1p(math.exp(1)) + math.log1p(math.exp(-1))
    assert count == 2
    expected = classes + weights[0] * classes + weights[1] * (even + sure) / 2
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert triple_loss(logits, target, loss=cross_entropy, objects=[2], weights=weights)[0] == pytest.approx(
        classes
    )


def test_every_supervision_reaches_its_level_and_the_unlabelled_none():
    searcher = make()
    segmentation = searcher.tasks[1]
    target = torch.full((2, 33, 47), 255)
    target[0, :9, :9] = 2
    total, count = segmentation.loss(searcher.net(image())["semantic"], target)
    total.backward()
    assert count == 81
    for layer in searcher.net.supervision:
        assert layer.aware.weight.grad.abs().sum() > 0 and layer.agnostic.weight.grad.abs().sum() > 0
    total, count = segmentation.loss(searcher.net(image())["semantic"], torch.full((2, 33, 47), 255))
    assert total == 0 and count == 0 and total.requires_grad


def test_without_weights_the_auxiliary_losses_teach_nothing():
    searcher = make(aware_weight=0.0, agnostic_weight=0.0)
    target = torch.zeros(2, 33, 47, dtype=torch.long)
    prediction = searcher.net(image())["semantic"]
    total, _ = searcher.tasks[1].loss(prediction, target)
    assert total == cross_entropy(prediction.final, target)[0]


def test_objects_are_what_both_tasks_know():
    detection, segmentation = tasks()
    assert object_classes(detection, segmentation, None) == [2, 3]
    assert object_classes(detection, segmentation, ["wall"]) == [1]
    with pytest.raises(ValueError, match="no class 'roof' of 'semantic'"):
        object_classes(detection, segmentation, ["roof"])
    other = ms.tasks.detection(num_classes=1, class_names=["car"])
    with pytest.raises(ValueError, match=r"objects=\[\.\.\.\]"):
        ms.TripleNet([other, segmentation], "test_resnet")


def test_other_tasks_are_refused_in_one_line():
    detection, segmentation = tasks()
    for wrong in ([detection], [segmentation], [detection, segmentation, *make_tasks("depth")], make_tasks()):
        with pytest.raises(ValueError, match="one task of detection and one of segmentation") as error:
            ms.TripleNet(wrong, "test_resnet")
        assert "\n" not in str(error.value)
    swapped = ms.TripleNet(tasks(detection_first=False), "test_resnet", width=8).net.eval()
    assert list(swapped(image())) == ["semantic", "detection"]


def test_a_skip_is_weighed_by_the_coarser_level():
    torch.manual_seed(0)
    fuse = SkipFusion(3, 8).eval()
    coarse, skip = torch.rand(2, 8, 3, 4), torch.rand(2, 3, 6, 7)
    fused = fuse(coarse, skip)
    assert fused.shape == (2, 8, 6, 7)
    nn.init.constant_(fuse.attention[3].bias, -200.0)  # a weight of 0 hides the skip
    hidden = fuse(coarse, skip)
    assert torch.equal(hidden, fuse(coarse, torch.rand(2, 3, 6, 7)))
    assert not torch.equal(hidden, fused)
    nn.init.constant_(fuse.attention[3].bias, 200.0)  # a weight of 1 leaves it as it is
    both = torch.cat(
        [nn.functional.interpolate(fuse.coarse(coarse), (6, 7), mode="bilinear"), fuse.skip(skip)], 1
    )
    assert torch.equal(fuse(coarse, skip), (fuse.shortcut(both) + fuse.residual(both)).relu())


def test_detection_reads_what_segmentation_sees_and_not_the_other_way_round():
    inner = InnerConnection(8)
    refined, own = inner(torch.rand(2, 8, 4, 4))
    refined.sum().backward()
    assert inner.segmentation[0].weight.grad.abs().sum() > 0
    inner.zero_grad()
    inner(torch.rand(2, 8, 4, 4))[1].sum().backward()
    assert inner.detection[0].weight.grad is None
    assert (refined.shape[1], own.shape[1]) == (8, 4)


def test_levels_are_fused_as_a_convolution_of_their_concatenation():
    fusion = MultiscaleFusion(3, 4).double().eval()
    levels = [torch.rand(2, 4, 9 // n, 12 // n, dtype=torch.double) for n in (1, 2, 3)]
    raised = [nn.functional.interpolate(x, (9, 12), mode="bilinear") for x in levels]
    kernel = torch.cat([layer.weight for layer in fusion.layers], dim=1)
    expected = fusion.norm(nn.functional.conv2d(torch.cat(raised, 1), kernel)).relu()
    assert torch.allclose(fusion(levels), expected)


def test_a_run_is_loaded_as_it_was(tmp_path):
    data = BoxData(tasks(), missing={"detection": range(0, 8, 2), "semantic": range(1, 8, 2)})
    searcher = ms.TripleNet(data.tasks, "test_resnet", width=8)
    result = ms.search(searcher, data, trainer=lambda stage: make_trainer(1), dir=tmp_path)
    loaded = ms.load(tmp_path)
    result.network.eval()
    for name, prediction in loaded(image()).items():
        assert torch.equal(prediction, result.network(image())[name])
    costs = result.metrics["cost"]
    trained = sum(p.numel() for p in searcher.net.parameters())
    supervision = sum(p.numel() for p in searcher.net.supervision.parameters())
    assert costs["params"] == trained - supervision
    backbone = sum(p.numel() for p in searcher.net.backbone.parameters())
    assert costs["single_task_backbone_params"] == 2 * backbone
    alone = costs["per_task"]
    assert alone["semantic"]["macs"] < costs["macs"] and alone["detection"]["macs"] < costs["macs"]
    inner = sum(p.numel() for p in searcher.net.inner.parameters())
    heads = {name: sum(p.numel() for p in head.parameters()) for name, head in searcher.net.heads.items()}
    assert alone["semantic"]["params"] == costs["params"] - inner - heads["detection"]
    assert "map" in result.metrics["val"]["detection"] and result.metrics["val"]["semantic"]["miou"] >= 0


def test_a_resume_changes_nothing(tmp_path):
    class Save(ms.namespace.pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    fresh, whole, resumed = copy_state(make().net), make(), make()
    quick = {"limit_val_batches": 0}
    make_trainer(2, callbacks=[Save()], **quick).fit(whole, BoxData(tasks()))
    torch.manual_seed(5)
    make_trainer(2, **quick).fit(
        resumed, BoxData(tasks()), ckpt_path=tmp_path / "one.ckpt", weights_only=True
    )
    assert not differing(copy_state(whole.net), copy_state(resumed.net))
    assert {name for name in fresh if "supervision" in name} <= set(differing(fresh, copy_state(whole.net)))


def test_json_is_checked():
    architecture = make().derive()
    assert Architecture.from_json(architecture.to_json()) == architecture
    content = json.loads(architecture.to_json())
    for wrong, message in (
        ({"channels": []}, "channels must be"),
        ({"channels": [32, "a"]}, "channels must be"),
        ({"width": 3}, "width must be a whole number from 4 up"),
        ({"extra": -1}, "extra must be a whole number from 0 up"),
        ({"backbone": "resnet"}, "backbone must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Architecture.from_json(json.dumps(content | wrong))
    with pytest.raises(ValueError, match="another version of timm"):
        Architecture.from_json(json.dumps(content | {"channels": [8, 8]})).build()
    with pytest.raises(ValueError, match="agnostic_weight must be at least 0"):
        make(agnostic_weight=-1.0)


@pytest.mark.usefixtures("folder")
def test_the_command_line_on_scenes(refused):
    arguments = ["searcher=triplenet", "backbone=timm", "backbone.name=test_resnet", "dataset.size=32"]
    arguments += [f"dataset.{key}=4" for key in ("train", "val", "test", "batch_size")]
    arguments += ["epochs=1", "trainer.accelerator=cpu", "hydra.run.dir=a"]
    assert "one of segmentation" in refused(*arguments[:-1], "tasks=[semantic,depth]")
    assert command.main([*arguments, "searcher.width=8"]) == 0
    assert Path("a/report.html").exists()
    assert set(ms.load("a")(image())) == {"detection", "semantic"}
