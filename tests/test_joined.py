"""Baselines that join single-task networks: cross-stitch, sluice, NDDR and the supernets."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.backbones import from_module, load
from tiny import Killed, Stop, TinyData, copy_state, differing, make_tasks, make_trainer

SYSTEMS = {
    "cross_stitch": ms.CrossStitch,
    "sluice": ms.Sluice,
    "nddr": ms.NDDR,
    "nddr_supernet": partial(ms.NDDR, after="layer"),
    "mtlnas_supernet": ms.MTLNASSupernet,
}
NAMES = ("semantic", "depth", "normals")
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
each = pytest.mark.parametrize("system", SYSTEMS)


def make(system, k=2, backbone="test_resnet", **settings):
    if backbone == "test_vit":
        backbone = load(backbone, size=32)
    return SYSTEMS[system](make_tasks(*NAMES[:k]), backbone, **settings)


def identity(network):
    """Units and mixtures that hand on a task's own features."""
    for name, parameter in network.named_parameters():
        if name.endswith("alpha"):
            eye = torch.eye(len(parameter))
            parameter.data.copy_(eye if parameter.ndim == 2 else eye[..., None].expand_as(parameter))
        elif name.endswith("beta"):
            parameter.data.zero_()[0] = 1.0


# What each is


@pytest.mark.parametrize("after", ["stage", "layer"])
@pytest.mark.parametrize("system", ["cross_stitch", "sluice"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_identity_units_make_single_tasks_exactly(system, backbone, after):
    network = make(system, 3, backbone, after=after).net.eval()
    assert len(network.units)
    before, single = network(IMAGE), network.single_task().eval()(IMAGE)
    assert not torch.allclose(before["depth"], single["depth"], atol=1e-4)
    identity(network)
    for name, prediction in network(IMAGE).items():
        assert torch.equal(prediction, single[name])


@each
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_one_task_is_the_single_task_network(system, backbone):
    network = make(system, 1, backbone).net.eval()
    assert torch.equal(network(IMAGE)["semantic"], network.single_task().eval()(IMAGE)["semantic"])
    assert network.state_dict().keys() == network.single_task().state_dict().keys()


@pytest.mark.parametrize("system", ["nddr", "nddr_supernet", "mtlnas_supernet"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_with_w_ti_one_fused_networks_start_as_single_tasks_up_to_their_norms(system, backbone):
    network = make(system, 3, backbone, init_w_ti=1.0).net.eval()
    single = network.single_task().eval()(IMAGE)
    for name, prediction in network(IMAGE).items():
        assert torch.allclose(prediction, single[name], rtol=1e-3, atol=1e-3)


def test_nddr_starts_at_the_papers_diagonals():
    fusion = make("nddr").net.fusions["depth"]["0"]
    own, other = (weight.detach() for weight in fusion.weights)
    assert torch.allclose(own, 0.9 * torch.eye(len(own))) and torch.allclose(other, 0.1 * torch.eye(len(own)))
    assert make("nddr", fusion_lr_factor=100.0).net.fusions["depth"]["0"].weights.lr_factors["1"] == 100.0


@pytest.mark.parametrize("k", [2, 3])
def test_nddr_fuses_all_tasks_at_equal_layers(k):
    """ResNet-18: its stem, and four stages of two blocks."""
    backbone = load("resnet18")
    for after, layers in {"stage": [0, 2, 4, 6, 8], "layer": list(range(9))}.items():
        edges = make("nddr", k, backbone, after=after).derive().chosen()
        assert all(edge.layer == edge.source_layer for edge in edges)
        assert sorted({edge.layer for edge in edges}) == layers
        assert len(edges) == k * (k - 1) * len(layers)
    assert make("nddr_supernet", k, backbone).derive().chosen() == edges


def test_units_are_after_each_stage_or_each_layer():
    backbone = load("test_convnext")
    for system in ("cross_stitch", "sluice"):
        assert make(system, backbone=backbone).derive().units == [0, 2, 6, 8]
        assert make(system, backbone=backbone, after="layer").derive().units == list(range(9))
    assert make("cross_stitch", backbone="test_vit").derive().units == [5]


def test_the_supernet_of_mtlnas_has_every_edge_of_its_space():
    backbone = load("test_convnext")
    space = ms.MTLNAS(make_tasks(), backbone, max_distance=1).net
    architecture = make("mtlnas_supernet", backbone=backbone, max_distance=1).derive()
    assert architecture.chosen() == space.edges
    assert [dict(edge) for edge in architecture.candidates] == architecture.edges


def test_sluice_mixes_into_a_level_the_earlier_layers_of_its_shape():
    def levels(name, **settings):
        return make("sluice", backbone=load(name, **settings)).derive().levels

    assert levels("resnet18") == [[], [1], [3], [5], [7]]
    assert levels("mobilenetv2_100") == [[], [1], [3, 4], [10, 11], []]
    assert levels("test_convnext") == [[], [1], [3, 4, 5], [7]]
    assert levels("test_vit", size=32) == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit"])
def test_a_level_of_a_sluice_network_is_the_mixture_of_its_layers(backbone):
    """With identity units and all weight on the first layer that is mixed in, heads read that layer."""
    network = make("sluice", backbone=backbone).net.eval()
    identity(network)
    number, level = next((i, level) for i, level in enumerate(network.levels) if level)
    for mixtures in network.mixtures.values():
        mixtures[str(number)].beta.data.zero_()[1] = 1.0
    seen = {}
    copies = network.lockstep.backbone.model.get_submodule(network.nodes[level[0]].path)
    copies.copies["depth"].register_forward_hook(lambda module, given, output: seen.update(depth=output))
    found = network.pyramids(IMAGE, ["depth"])["depth"][number]
    expected = seen["depth"]
    if expected.ndim == 3:
        expected = expected[:, 1:].mT.unflatten(2, found.shape[2:])
    assert torch.equal(found, expected)


@each
def test_a_task_alone_gives_the_same(system):
    network = make(system, 3).network().eval()
    together = network(IMAGE)
    for name in NAMES:
        assert torch.allclose(network(IMAGE, [name])[name], together[name], atol=1e-6)


def test_what_no_unit_reads_is_not_computed():
    """The units end in the middle: from there on the other tasks have nothing to do."""
    architecture = make("cross_stitch", 3, "test_convnext").derive()
    content = json.loads(architecture.to_json()) | {"units": [0]}
    network = ms.Architecture.from_json(json.dumps(content)).build().eval()
    assert network.last_layers(["depth"]) == {"depth": 9, "semantic": 0, "normals": 0}
    costs = ms.cost(network, IMAGE[:1], list(NAMES), repeats=1)
    assert costs["per_task"]["depth"]["macs"] < costs["macs"] / 2
    assert torch.allclose(network(IMAGE, ["depth"])["depth"], network(IMAGE)["depth"], atol=1e-6)


def test_every_task_is_trained_through_every_other():
    for system in SYSTEMS:
        start = {"init_w_ti": 0.9} if system == "mtlnas_supernet" else {}
        network = make(system, 3, **start).net
        network(IMAGE, ["depth"])["depth"].sum().backward()
        moved = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()]
        assert any("semantic" in name for name in moved) and any("normals" in name for name in moved), system


# The penalty of sluice networks


def test_the_penalty_is_the_overlap_at_every_unit():
    searcher = make("sluice", orthogonality=0.5)
    searcher.log = lambda *args, **kwargs: None
    batch = next(iter(prepared(TinyData(searcher.tasks)).train_dataloader()))
    seen = {}
    hooks = [
        unit.register_forward_pre_hook(lambda unit, given, layer=layer: seen.update({layer: given[0]}))
        for layer, unit in searcher.net.units.items()
    ]
    terms = searcher.terms("weights", batch, 0)
    assert set(terms) == {"semantic", "depth", "orthogonality"}
    expected = sum(searcher.net.units[layer].overlap(features) for layer, features in seen.items())
    assert len(seen) == 5 and torch.isclose(terms["orthogonality"], 0.5 * expected)
    parts = searcher.terms("weights", {"parts": [{**batch}, {**batch}]}, 0)
    assert torch.isclose(parts["orthogonality"], terms["orthogonality"], rtol=1e-4)
    for hook in hooks:
        hook.remove()
    assert not any(unit._forward_pre_hooks for unit in searcher.net.units.values())
    searcher.orthogonality = 0.0
    assert set(searcher.terms("weights", batch, 0)) == {"semantic", "depth"}


def prepared(data):
    data.prepare_data()
    data.setup("fit")
    return data


def test_the_penalty_drives_subspaces_apart():
    def end(orthogonality):
        adam = partial(torch.optim.Adam, lr=0.01)
        searcher = make("sluice", orthogonality=orthogonality, single_task=False, optimizer=adam)
        trainer = make_trainer(6)
        trainer.fit(searcher, TinyData(searcher.tasks))
        return trainer.callback_metrics["train/overlap"].item()

    assert end(30.0) < 0.9 * end(1e-9)


# Architectures as data


@each
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_an_architecture_survives_json_and_builds_the_network(system, backbone):
    searcher = make(system, 3, backbone)
    for parameter in searcher.net.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    again = ms.Architecture.from_json(searcher.derive().to_json())
    assert again == searcher.derive()
    network = again.build()
    network.load_state_dict(searcher.network().state_dict())
    for name, prediction in searcher.network().eval()(IMAGE).items():
        assert torch.equal(network.eval()(IMAGE)[name], prediction)


@pytest.mark.parametrize(
    ("system", "change", "message"),
    [
        ("cross_stitch", {"units": 3}, "units"),
        ("cross_stitch", {"units": [5]}, "units"),
        ("cross_stitch", {"units": [-1]}, "units"),
        ("cross_stitch", {"units": [True]}, "units"),
        ("cross_stitch", {"units": [1, 0]}, "units"),
        ("cross_stitch", {"units": ["0"]}, "units"),
        ("cross_stitch", {"tasks": {"depth": None}}, "one task"),
        ("cross_stitch", {"nodes": [{"path": "layer1.0"}]}, "node"),
        ("cross_stitch", {"backbone": "resnet18"}, "backbone"),
        ("cross_stitch", {"subspaces": 2}, "subspaces"),
        ("sluice", {"subspaces": 0}, "subspaces"),
        ("sluice", {"subspaces": 2.0}, "subspaces"),
        ("sluice", {"levels": [[9]]}, "levels"),
        ("sluice", {"levels": {"0": []}}, "levels"),
    ],
)
def test_a_wrong_file_is_refused_by_name(system, change, message):
    content = json.loads(make(system).derive().to_json()) | change
    with pytest.raises(ValueError, match=message):
        ms.Architecture.from_json(json.dumps(content))


@pytest.mark.parametrize("levels", [[[], [0], [], [], []], [[]]])
def test_layers_that_cannot_be_mixed_are_refused(levels):
    content = json.loads(make("sluice").derive().to_json()) | {"levels": levels}
    with pytest.raises(ValueError, match="can be mixed"):
        ms.Architecture.from_json(json.dumps(content)).build()


def test_an_architecture_refuses_another_backbone():
    with pytest.raises(ValueError, match="another model"):
        make("cross_stitch").derive().build(backbone=load("test_convnext"))


@each
def test_a_backbone_of_ones_own(system):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x):
            return [self.two(self.one(x).relu())]

    backbone = from_module(Two(), ["one", "two"], size=(32, 32))
    searcher = make(system, 2, backbone)
    again = searcher.derive().build(make_tasks(), backbone)
    again.load_state_dict(searcher.network().state_dict())
    with pytest.raises(ValueError, match="backbone="):
        searcher.derive().build(make_tasks())


# Settings


@pytest.mark.parametrize(
    ("system", "settings", "message"),
    [
        ("cross_stitch", {"alpha_self": 1.5}, "alpha_self"),
        ("cross_stitch", {"after": "block"}, "after must be one of stage, layer"),
        ("cross_stitch", {"init": "nowhere"}, "nowhere"),
        ("sluice", {"alpha_self": -0.1}, "alpha_self"),
        ("sluice", {"beta_self": 2.0}, "beta_self"),
        ("sluice", {"orthogonality": -1.0}, "orthogonality"),
        ("sluice", {"subspaces": 0}, "subspaces"),
        ("sluice", {"subspaces": 5}, "32 channels of 'act1'"),
        ("nddr", {"after": "block"}, "after"),
        ("nddr", {"init_w_ti": 1.5}, "init_w_ti"),
        ("nddr", {"activation": "gelu"}, "activation"),
        ("mtlnas_supernet", {"init_w_ti": "diagonal"}, "init_w_ti"),
    ],
)
def test_wrong_settings_are_refused(system, settings, message):
    with pytest.raises(ValueError, match=message):
        make(system, **settings)


@each
def test_the_seed_decides_the_start(system):
    assert not differing(copy_state(make(system).net), copy_state(make(system).net))
    assert differing(copy_state(make(system).net), copy_state(make(system, seed=1).net))


# Runs


@each
def test_trained_single_task_networks_are_where_the_training_starts(system, tmp_path):
    searcher = make(system)
    first = searcher.first_stage()
    assert (first.stage, searcher.stage) == ("single_task", "train")
    make_trainer().fit(first, TinyData(first.tasks))
    trained = copy_state(first.network())
    assert searcher.next_stage(first) is searcher and searcher.next_stage(searcher) is None
    own = searcher.net.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trained.items())
    given = make(system, init=first.network())
    assert given.first_stage() is given
    assert make(system, single_task=False).first_stage().stage == "train"
    with pytest.raises(ValueError, match="do not fit"):
        make(system, backbone="test_convnext", init=first.network())


@pytest.mark.parametrize(
    ("system", "backbone", "killed"),
    [
        ("cross_stitch", "test_vit", "single_task"),
        ("sluice", "test_resnet", "train"),
        ("nddr_supernet", "mobilenetv3_small_050", "train"),
    ],
)
def test_a_resumed_run_is_one_that_was_not_stopped(system, backbone, killed, tmp_path):
    def run(folder, stopped=None):
        torch.manual_seed(0)  # of a backbone that is made here
        searcher = make(system, backbone=backbone)

        def trainer(stage):
            return make_trainer(2, callbacks=[Stop(1)] if stage == stopped else [])

        return ms.search(searcher, TinyData(searcher.tasks), trainer=trainer, dir=tmp_path / folder)

    with pytest.raises(Killed):
        run("a", killed)
    resumed, whole = run("a"), run("b")
    assert not differing(copy_state(resumed.network), copy_state(whole.network))
    assert list(whole.metrics["seconds"]) == ["single_task", "train"] == whole.metrics["carried"]
    loaded = ms.load(tmp_path / "b")
    for name, prediction in whole.network.eval()(IMAGE).items():
        assert torch.equal(loaded(IMAGE)[name], prediction)


def test_a_run_of_single_task_networks_gives_the_start(tmp_path):
    single = ms.SingleTask(make_tasks(), "test_resnet")
    ms.search(single, TinyData(single.tasks), trainer=lambda stage: make_trainer(), dir=tmp_path)
    searcher = make("cross_stitch", init=tmp_path)
    assert searcher.first_stage() is searcher
    own, given = searcher.net.state_dict(), ms.load(tmp_path).state_dict()
    assert all(torch.equal(own[name], value) for name, value in given.items())
