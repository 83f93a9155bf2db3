from functools import partial

import pytest
import torch
from torch import nn

import mtlsearch as ms
from mtlsearch.backbones import from_module, load
from mtlsearch.searchers.calibration import calibrate
from mtlsearch.searchers.fusion import Edge, FusionArchitecture, candidate_edges
from mtlsearch.searchers.mtlnas import FusionSupernet
from tiny import TinyData, copy_state, differing, make_tasks, make_trainer

TASKS = {
    "semantic": ms.tasks.segmentation("semantic", num_classes=5),
    "depth": ms.tasks.depth("depth"),
    "room": ms.tasks.classification("room", num_classes=4),
}
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tasks(k):
    return list(TASKS.values())[:k]


def supernet(k=2, backbone="test_resnet", **settings):
    torch.manual_seed(0)
    settings = {"init_w_ti": 0.7, "init_std": 1.0, **settings}
    net = FusionSupernet(tasks(k), load(backbone), **settings)
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


# The search space


@pytest.mark.parametrize(("name", "a_direction"), [("vgg16", 24), ("resnet50", 37)])
def test_the_papers_search_spaces(name, a_direction):
    edges = candidate_edges(["a", "b"], load(name).nodes)
    assert sum(edge.task == "a" for edge in edges) == a_direction
    assert len(edges) == 2 * a_direction


def test_the_rules_of_the_search_space():
    nodes = load("resnet18").nodes
    stages = [node.stage for node in nodes]
    for edge in candidate_edges(["a", "b", "c"], nodes):
        assert edge.task != edge.source_task
        assert 0 <= edge.layer - edge.source_layer <= 2
        assert stages[edge.layer] == stages[edge.source_layer]
    everything = candidate_edges(["a", "b"], nodes, within_stage=False, max_distance=None)
    n = len(nodes)
    assert len(everything) == n * (n + 1)  # Sect. 3.2: 2^(n (n + 1)) architectures
    assert all(edge.source_layer <= edge.layer for edge in everything)


def test_three_tasks_read_from_both_others_and_one_from_none():
    nodes = load("test_resnet").nodes
    assert len(candidate_edges(["a", "b", "c"], nodes)) == 3 * len(candidate_edges(["a", "b"], nodes))
    assert candidate_edges(["a"], nodes) == []


# Supernet and derived network


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("space", [{}, {"within_stage": False, "max_distance": 3}])
def test_the_derived_network_is_the_supernet_with_hard_gates(k, space):
    net = supernet(k, **space)
    architecture = net.sample(torch.Generator().manual_seed(1))
    assert k == 1 or 0 < len(architecture.edges) < len(architecture.candidates)
    expected, derived = net(IMAGE, gates=architecture), net.extract(architecture).eval()(IMAGE)
    assert list(derived) == [task.name for task in tasks(k)]
    for name, prediction in derived.items():
        assert torch.allclose(prediction, expected[name], atol=1e-5)


@pytest.mark.parametrize(("backbone", "settings"), [("test_vit", {"size": 32}), ("test_convnext", {})])
def test_other_families_derive_exactly_too(backbone, settings):
    torch.manual_seed(0)
    net = FusionSupernet(tasks(2), load(backbone, **settings), init_w_ti=0.7, init_std=1.0).eval()
    assert net.activation is None
    architecture = net.sample(torch.Generator().manual_seed(1))
    derived = net.extract(architecture).eval()(IMAGE)
    for name, prediction in net(IMAGE, gates=architecture).items():
        assert torch.allclose(derived[name], prediction, atol=1e-5)


def test_an_edge_that_is_off_is_not_in_the_network():
    net = supernet()
    empty = net.extract(net.architecture(torch.zeros(len(net.edges), dtype=torch.bool)))
    for fusions in empty.fusions.values():
        assert all(len(fusion.weights) == 1 for fusion in fusions.values())
    full = net.extract(net.architecture(torch.ones(len(net.edges), dtype=torch.bool)))
    assert sum(p.numel() for p in full.parameters()) > sum(p.numel() for p in empty.parameters())


def test_every_edge_carries_its_source_and_only_it():
    """With one gate open at a time, only its target changes, and only if its own source does."""
    net = supernet(init_w_ti=0.5)
    none = net.architecture(torch.zeros(len(net.edges), dtype=torch.bool))
    closed = net(IMAGE, gates=none)
    for i, edge in enumerate(net.edges):
        on = torch.zeros(len(net.edges), dtype=torch.bool)
        on[i] = True
        opened = net(IMAGE, gates=net.architecture(on))
        other = next(t for t in opened if t != edge.task)
        assert not torch.allclose(opened[edge.task], closed[edge.task])
        assert torch.allclose(opened[other], closed[other])


def test_sources_are_features_before_fusion():
    """Both fusions of a layer at once: neither sees what the other made."""
    net = supernet(init_w_ti=0.5)
    layer = net.edges[-1].layer
    pair = [e == Edge(e.task, layer, e.source_task, layer) for e in net.edges]
    both = net(IMAGE, gates=net.architecture(torch.tensor(pair)))
    for task in both:
        mine = torch.tensor([p and e.task == task for p, e in zip(pair, net.edges)])
        alone = net(IMAGE, gates=net.architecture(mine))
        assert torch.allclose(both[task], alone[task], atol=1e-6)


def test_a_task_alone_gives_the_same_and_runs_only_what_it_needs():
    net = supernet(3, within_stage=False)
    on = torch.tensor([edge.task == "semantic" and edge.source_task == "depth" for edge in net.edges])
    network = net.extract(net.architecture(on)).eval()
    together = network(IMAGE)
    assert set(network.last_layers(["semantic"])) == {"semantic", "depth"}
    assert set(network.last_layers(["depth"])) == {"depth"}
    for name in TASKS:
        assert torch.allclose(network(IMAGE, [name])[name], together[name], atol=1e-6)
    costs = ms.cost(network, IMAGE[:1], list(TASKS), repeats=1)["per_task"]
    assert costs["depth"]["macs"] < costs["semantic"]["macs"]


def test_one_task_is_the_single_task_network():
    net = supernet(1)
    assert net.arch_parameters() == [] and net.edges == []
    assert torch.allclose(net(IMAGE)["semantic"], net.single_task().eval()(IMAGE)["semantic"], atol=1e-6)


def test_with_w_ti_one_the_search_starts_from_the_single_task_networks():
    """Up to the fusion's norm, which with fresh statistics is almost the identity."""
    torch.manual_seed(0)
    net = FusionSupernet(tasks(2), load("test_resnet"), init_w_ti=1.0).eval()
    single = net.single_task().eval()
    for name, prediction in net(IMAGE).items():
        assert torch.allclose(prediction, single(IMAGE)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_calibrated_norms_let_features_pass(backbone):
    size = 64 if backbone == "test_vit" else 32
    torch.manual_seed(0)
    net = FusionSupernet(tasks(2), load(backbone, **({"size": 64} if size == 64 else {})), init_w_ti=1.0)
    image = torch.rand(4, 3, size, size)
    single = net.single_task().train()
    before = copy_state(net)
    calibrate(net.network, image, net.gates.probabilities())
    changed = differing(before, copy_state(net))
    assert changed and all(".norm." in name and name.startswith("network.fusions") for name in changed)
    expected = single(image)
    for name, prediction in net(image).items():
        torch.testing.assert_close(prediction, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [ms.MTLNAS, ms.NDDR, ms.MTLNASSupernet])
def test_norms_are_calibrated_once_where_that_is_wanted(make, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "mtlsearch.searchers.calibration.calibrate", lambda _, image, gates: seen.append(len(image))
    )
    for init, calls in (("standard", 0), ("identity", 1)):
        seen.clear()
        s = make(make_tasks(), "test_resnet", fusion_bn_init=init, single_task=False)
        data = TinyData(s.tasks)
        trainer = make_trainer(1, limit_val_batches=0)
        trainer.fit(s, datamodule=s.train_data(data))
        assert len(seen) == calls
        make_trainer(1, limit_val_batches=0).fit(s, datamodule=s.train_data(data))  # trained norms stay
        assert len(seen) == calls
        trainer.save_checkpoint(tmp_path / f"{init}.ckpt")
        seen.clear()
        resumed = make(make_tasks(), "test_resnet", fusion_bn_init=init, single_task=False)
        given = {"ckpt_path": tmp_path / f"{init}.ckpt", "weights_only": True}
        make_trainer(2, limit_val_batches=0).fit(resumed, datamodule=resumed.train_data(data), **given)
        assert not seen


def test_discretisations():
    net = supernet()
    probabilities = net.gates.probabilities()
    assert len(net.derive().edges) == int((probabilities > 0.5).sum())
    net.discretization = "stochastic"
    net.gates.logits.data.fill_(0.0)
    assert net.derive() == net.derive()
    assert 0 < len(net.derive().edges) < len(net.edges)


def test_a_backbone_of_ones_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x):
            return [self.two(self.one(x).relu()).relu()]

    searcher = ms.MTLNAS(tasks(2), backbone=from_module(Two(), ["one", "two"], size=(32, 32)))
    architecture = searcher.derive()
    assert architecture.backbone is None
    assert searcher.network().eval()(IMAGE)["depth"].shape == (2, 1, 32, 32)
    with pytest.raises(ValueError, match="backbone="):
        architecture.build()
    again = architecture.build(tasks(2), from_module(Two(), ["one", "two"], size=(32, 32)))
    again.load_state_dict(searcher.network().state_dict())


# Architectures as data


def test_an_architecture_survives_json_and_builds_the_network_it_describes():
    net = supernet(3)
    architecture = net.sample(torch.Generator().manual_seed(1))
    again = ms.Architecture.from_json(architecture.to_json())
    assert again == architecture
    network = again.build()
    network.load_state_dict(net.extract(architecture).state_dict())
    assert torch.allclose(network.eval()(IMAGE)["depth"], net(IMAGE, gates=architecture)["depth"], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "fusoin"}, "Unknown kind"),
        ({"version": 99}, "version 99"),
        ({"colour": "red"}, "colour"),
        ({"activation": "exec"}, "activation"),
        ({"backbone": "resnet18"}, "backbone"),
        ({"nodes": [{"path": "layer1.0"}]}, "node"),
        (
            {"edges": [{"task": "semantic", "layer": 0, "source_task": "depth", "source_layer": 1}]},
            "later layer",
        ),
        (
            {"edges": [{"task": "semantic", "layer": 4, "source_task": "depth", "source_layer": 0}]},
            "candidates",
        ),
        (
            {"edges": [{"task": "semantic", "layer": "0", "source_task": "depth", "source_layer": 0}]},
            "no such",
        ),
        ({"edges": [{"task": "semantic"}]}, "must have"),
        ({"tasks": []}, "tasks"),
        ({"candidates": 3}, "candidates"),
    ],
)
def test_a_wrong_file_is_refused_by_name(change, message):
    import json

    content = json.loads(supernet().derive().to_json()) | change
    with pytest.raises(ValueError, match=message):
        ms.Architecture.from_json(json.dumps(content))


def test_an_architecture_refuses_another_backbone():
    architecture = supernet().derive()
    with pytest.raises(ValueError, match="another model"):
        architecture.build(backbone=load("test_convnext"))
    with pytest.raises(ValueError, match="for tasks"):
        architecture.build(tasks=tasks(1))


# The searcher


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_weight": -1.0}, "entropy_weight"),
        ({"l1_weight": -1.0}, "l1_weight"),
        ({"init_w_ti": 1.5}, "init_w_ti"),
        ({"init_w_ti": "diagonal"}, "init_w_ti"),
        ({"entropy_warmup": 2.0}, "entropy_warmup"),
        ({"init_probability": 1.0}, "init_probability must be neither"),
        ({"relaxation": "soft"}, "relaxation"),
        ({"discretization": "hard"}, "discretization"),
        ({"backbone": "resnet5O"}, "resnet50"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ms.MTLNAS(tasks(2), **{"backbone": "test_resnet", **settings})


def searcher(**settings):
    return ms.MTLNAS(tasks(2), backbone="test_resnet", **settings)


def test_regularisers_weigh_and_ramp():
    s = searcher(entropy_weight=10.0, entropy_warmup=0.5, l1_weight=2.0)
    s.log = lambda *args, **kwargs: None
    entropy, probabilities = s.net.gates.entropy(), s.net.gates.probabilities()
    assert torch.isclose(s.regularization(0.25)["entropy"], 5 * entropy)
    assert torch.isclose(s.regularization(0.9)["entropy"], 10 * entropy)
    assert torch.isclose(s.regularization(0.9)["l1"], 2 * probabilities.mean())
    plain = searcher(entropy_weight=0.0)
    plain.log = s.log
    assert plain.regularization(0.5) == {}


def test_edges_start_at_the_probability_that_is_given():
    for probability in (0.5, 0.9):
        found = searcher(init_probability=probability).net.gates.probabilities()
        assert (found - probability).abs().max() < 0.02


def test_the_temperature_falls_with_its_power():
    s = searcher(temperature=2.0, temperature_power=2.0)
    s.anneal(0.5)
    assert s.net.gates.temperature.item() == pytest.approx(0.5)
    s.anneal(1.0)
    assert s.net.gates.temperature.item() == 0


def test_single_task_weights_are_taken_over():
    s = searcher()
    assert s.first_stage().stage == "single_task"
    trained = s.first_stage()
    for parameter in trained.network().parameters():
        parameter.data.add_(0.1)
    assert s.next_stage(trained) is s
    for name, value in trained.network().state_dict().items():
        assert torch.equal(s.net.network.state_dict()[name], value), name
    assert s.next_stage(s) is None
    given = searcher(init=trained.network())
    assert given.first_stage() is given
    with pytest.raises(ValueError, match="do not fit"):
        ms.MTLNAS(tasks(2), backbone="test_convnext", init=trained.network())


def test_single_task_networks_share_nothing():
    single = ms.SingleTask(tasks(2), backbone="test_resnet").network().eval()
    before = single(IMAGE)
    for name, parameter in single.named_parameters():
        if "semantic" in name:
            parameter.data.add_(0.5)
    after = single(IMAGE)
    assert torch.equal(before["depth"], after["depth"])
    assert not torch.allclose(before["semantic"], after["semantic"])
    assert isinstance(ms.SingleTask(tasks(1), backbone="test_resnet").derive(), FusionArchitecture)


def test_the_seed_decides_the_start():
    def weights(seed):
        return torch.cat([p.flatten() for p in searcher(seed=seed).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_the_entropy_polarises_gates_in_a_search_of_arch_steps_alone():
    """The product of learning rate and steps is 15: enough from a start within 0.01 of one half."""
    net = supernet(init_std=0.01)
    optimizer = partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.999))(net.arch_parameters())
    for _ in range(150):
        optimizer.zero_grad()
        (10.0 * net.gates.entropy()).backward()
        optimizer.step()
    p = net.gates.probabilities()
    assert ((p < 0.05) | (p > 0.95)).all()
