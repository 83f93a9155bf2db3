"""DEN: nested channels, a policy network and its gradient, and a run from the command line."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mtlsearch as ms
from mtlsearch import run as command
from mtlsearch.architecture import Architecture
from mtlsearch.baselines.den import ElasticSupernet
from mtlsearch.baselines.elastic import ElasticNetwork, elastic_architecture, widths_of
from mtlsearch.cost import cost
from mtlsearch.nn.elastic import hidden_channels
from mtlsearch.nn.reinforce import advantage
from mtlsearch.report import figures
from mtlsearch.report.channels import channel_map
from mtlsearch.testing import check_searcher
from tiny import SGD, TinyData, make_tasks, make_trainer

NAMES = ("semantic", "depth", "normals")
BACKBONES = ["test_resnet", "resnet26", "mobilenetv2_035", "test_convnext", "test_vit"]


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    made = {
        name: ms.backbones.load(name, **({"size": 32} if name == "test_vit" else {})) for name in BACKBONES
    }
    for backbone in made.values():
        for module in backbone.modules():  # a block whose last norm starts at 0 would hide what it does
            if isinstance(module, _BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
            if hasattr(module, "gamma") and isinstance(module.gamma, nn.Parameter):  # ConvNeXt's, of 1e-6
                nn.init.ones_(module.gamma)
    return made


def image(size=32, count=2, width=None):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, width or size, generator=generator)


def drawn(backbone, names=NAMES, seed=0):
    """Random channels by task, levels of a quarter, a half, all or none."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: [
            [0, c // 4, c // 2, c][torch.randint(4, (), generator=generator)]
            for c in hidden_channels(backbone)
        ]
        for name in names
    }


def masked(backbone, kept):
    """The backbone's levels with hidden channels set to zero before what reads them, and skipped blocks undone."""
    from mtlsearch.nn.elastic import elastic, hidden_layer
    from mtlsearch.nn.paths import Paths

    paths = Paths(copy.deepcopy(backbone))
    wanted = dict(zip([node.path for node in elastic(backbone)], kept))
    for index, path in enumerate(paths.blocks):
        if wanted.get(path):
            block = paths.block(index).block
            layer = hidden_layer(block)
            read = block.get_submodule(layer.last)
            with torch.no_grad():
                read.weight[:, wanted[path] :] = 0
    gates = [{"own": wanted.get(path, True) != 0} for path in paths.blocks]
    return lambda picture: paths.eval()(picture, ["own"], gates)["own"]


@pytest.mark.parametrize("name", BACKBONES)
def test_narrow_blocks_are_masked_ones(backbones, name):
    backbone = backbones[name]
    kept = drawn(backbone)
    network = ElasticNetwork(make_tasks(*NAMES), backbone).eval()
    picture = image()
    with torch.no_grad():
        found = network.paths(picture, list(NAMES), widths_of(kept))
        for task in NAMES:
            for level, expected in zip(found[task], masked(backbone, kept[task])(picture)):
                assert torch.allclose(level, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_reduced_network_predicts_the_same_and_holds_no_more_than_is_used(backbones, name):
    backbone = backbones[name]
    kept = drawn(backbone, NAMES[:2])
    network = ElasticNetwork(make_tasks(*NAMES[:2]), backbone).eval()
    reduced = network.reduced(kept)
    built = ElasticNetwork(make_tasks(*NAMES[:2]), backbone, kept).eval()
    built.load_state_dict(reduced.state_dict())
    picture = image()
    with torch.no_grad():
        expected = network(picture, widths=widths_of(kept))
        for task in NAMES[:2]:
            for other in (reduced, built):
                assert torch.allclose(other(picture)[task], expected[task], rtol=1e-4, atol=1e-4)
                assert torch.allclose(other(picture, [task])[task], expected[task], rtol=1e-4, atol=1e-4)
    most = [max(row.values()) for row in widths_of(kept)]
    for index, channels in enumerate(most):
        block = reduced.paths.block(index)
        assert (block.block is None) == (channels == 0)
        assert not channels or block.hidden.channels == channels
    if most != hidden_channels(backbone):
        with pytest.raises(ValueError, match="hidden channels in this network"):
            reduced(picture, widths=widths_of(network.kept))


def test_channels_that_a_task_leaves_out_do_not_touch_it(backbones):
    backbone = backbones["test_resnet"]
    kept = {"semantic": hidden_channels(backbone), "depth": [c // 2 for c in hidden_channels(backbone)]}
    network = ElasticNetwork(make_tasks("semantic", "depth"), backbone, kept).eval()
    before = network(image())
    for index, channels in enumerate(kept["depth"]):
        block = network.paths.block(index).block
        with torch.no_grad():
            block.conv1.weight[channels:] += 1
            block.bn1.norm.bias[channels:] += 1
            block.bn1.norm.running_mean[1, channels:] = 7
            block.conv2.weight[:, channels:] += 1
    after = network(image())
    assert torch.equal(after["depth"], before["depth"])
    assert not torch.allclose(after["semantic"], before["semantic"])
    network.train()(image(count=4))["depth"].sum().backward()
    for index, channels in enumerate(kept["depth"]):
        grad = network.paths.block(index).block.conv1.weight.grad
        assert not grad[channels:].any() and grad[:channels].any()


def test_cost_falls_with_fewer_channels(backbones):
    backbone, tasks = backbones["test_resnet"], make_tasks("semantic", "depth")
    whole = hidden_channels(backbone)
    found = []
    for parts in (1, 2, 4, None):
        kept = {"semantic": [c // parts if parts else 0 for c in whole]}
        kept["depth"] = kept["semantic"]
        found.append(
            cost(ElasticNetwork(tasks, backbone, kept), image(64, 1), ["semantic", "depth"], repeats=1)
        )
    for key in ("params", "backbone_params", "macs"):
        values = [one[key] for one in found]
        assert values == sorted(values, reverse=True) and len(set(values)) == 4
    hard = ms.HardSharing(tasks, copy.deepcopy(backbone)).net
    plain = cost(hard, image(64, 1), ["semantic", "depth"], repeats=1)
    assert {key: found[0][key] for key in ("params", "macs")} == {
        key: plain[key] for key in ("params", "macs")
    }
    # What makes and what reads half of the channels, by hand: in and out times the kernel, and the places of each.
    layers = [
        (9 * 32, 9 * 32, 256, 256),
        (9 * 32, 9 * 48, 64, 64),
        (48, 9 * 48, 64, 16),
        (9 * 192, 9 * 96, 4, 4),
    ]
    saved = sum(h // 2 * (i * m + o * n) for h, (i, o, m, n) in zip(whole, layers))
    assert found[0]["macs"] - found[1]["macs"] == saved


def test_what_tasks_share_is_computed_once(backbones):
    backbone, tasks = backbones["test_resnet"], make_tasks("semantic", "depth")
    whole = hidden_channels(backbone)
    kept = {"semantic": whole, "depth": [*whole[:3], whole[3] // 2]}
    network = ElasticNetwork(tasks, backbone, kept).eval()
    both = cost(network, image(64, 1), ["semantic", "depth"], repeats=1)
    heads = both["per_task"]["depth"]["macs"]
    assert both["macs"] < both["per_task"]["semantic"]["macs"] + heads
    assert network.paths.block(3).block.bn1.norm.running_mean.shape == (2, 96)
    assert network.paths.block(2).block.bn1.norm.running_mean.shape == (48,)


def supernet(names=NAMES, backbone="test_resnet", **arguments):
    torch.manual_seed(0)
    return ElasticSupernet(make_tasks(*names), ms.backbones.load(backbone), **arguments)


def test_levels_are_nested_halves():
    net = supernet(levels=3)
    assert net.choices == [[0, 8, 16, 32], [0, 12, 24, 48], [0, 12, 24, 48], [0, 24, 48, 96]]
    assert supernet(levels=1).choices[0] == [0, 32]
    density = net.density(torch.tensor([[3, 3, 3, 3], [0, 0, 0, 0], [2, 1, 0, 3]]))
    assert density.tolist() == [1.0, 0.0, (0.5 + 0.25 + 0 + 1) / 4]


def test_the_selection_is_discrete_and_what_is_drawn_has_its_probabilities():
    net = supernet(("depth",), init_probability=0.4)
    p = net.probabilities()
    assert p.shape == (1, 4, 4)
    assert torch.allclose(p[..., 3], torch.full((1, 4), 0.4), atol=0.05)
    derived = net.derive()
    assert derived.kept == {"depth": derived.channels}
    assert all(type(value) is int for value in derived.kept["depth"])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([net.draw(p, generator) for _ in range(2000)])
    for level in range(4):
        assert torch.allclose((draws == level).float().mean(0), p[..., level], atol=0.05)
    assert net.sample(generator).kept["depth"][0] in net.choices[0]


def test_exploration_mixes_equal_chances_in():
    net = supernet(("depth",), init_probability=0.7)
    net.exploration.fill_(0.5)
    assert torch.allclose(net.behaviour(), net.probabilities() / 2 + 1 / 8)
    net.exploration.fill_(1.0)
    levels = torch.tensor([[0, 1, 2, 3]])
    assert net.log_probability(levels).item() == pytest.approx(4 * torch.tensor(0.25).log().item())


def test_the_advantage_by_hand():
    means = torch.tensor([torch.nan, 2.0])
    assert advantage(torch.tensor([5.0, 3.0]), means).tolist() == [0.0, 1.0]
    assert means.tolist() == pytest.approx([5.0, 2.1])
    assert advantage(torch.tensor([4.0, 2.1]), means).tolist() == pytest.approx([-1.0, 0.0])


def test_the_policy_gradient_by_hand():
    """One task with a loss of 1, half of the channels, a mean of 3: the gradient of a block's logits is
    (1 + 0.8 / 4 - 3) * (one hot - softmax)."""
    searcher = ms.DEN(make_tasks("depth", plain=True), "test_resnet", cost_weight=0.8, warmup=0.0).double()
    searcher.means.fill_(3.0)
    levels = torch.tensor([[2, 2, 2, 2]])
    searcher.net.draw = lambda p, generator=None: levels
    searcher.log = lambda *arguments, **others: None
    searcher.progress = lambda batch_index: 0.5
    searcher.net.exploration.fill_(0.0)
    seen = {}

    def network(picture, tasks):
        seen["drawn"] = searcher.net.drawn
        return {"depth": torch.full((2, 1, 4, 4), 2.0, dtype=torch.double)}

    searcher.net.forward = network
    batch = {"image": image().double(), "depth": torch.ones(2, 1, 4, 4, dtype=torch.double)}
    terms = searcher.terms("arch", batch, 0)
    assert list(terms) == ["policy"] and torch.equal(seen["drawn"], levels)
    terms["policy"].backward()
    price = 1.0 + 0.8 * 0.25 - 3.0
    offset = searcher.net.selector.level_offset
    p = searcher.net.probabilities().detach()[0]
    expected = price * (nn.functional.one_hot(levels[0], 4) - p)
    assert torch.allclose(offset.grad.view(4, 4), expected)
    assert searcher.means.item() == pytest.approx(3.0 + 0.1 * price, rel=1e-6)
    assert searcher.net.drawn is None


def test_the_gradient_points_where_the_expected_cost_falls():
    """The mean of the estimate over all draws is the gradient of the expectation, in fp64 and with exploration."""
    net = supernet(("depth",), levels=1).double()
    net.exploration.fill_(0.3)
    prices = torch.arange(16, dtype=torch.double).sin()
    every = torch.cartesian_prod(*[torch.arange(2)] * 4)
    expected = sum(net.log_probability(d[None]).exp().squeeze() * v for d, v in zip(every, prices))
    parameters = net.arch_parameters()
    wanted = torch.autograd.grad(expected, parameters)
    chances = [net.log_probability(d[None]).exp().item() for d in every]
    estimate = sum(w * v * net.log_probability(d[None]).squeeze() for w, d, v in zip(chances, every, prices))
    for a, b in zip(torch.autograd.grad(estimate, parameters), wanted):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_task_learns_what_helps_it():
    """Only level 1 of the first block is cheap for one task, whose policy finds it; nothing is for the other."""
    searcher = ms.DEN(make_tasks("semantic", "depth"), "test_resnet", exploration=0.2, init_probability=0.25)
    net, means = searcher.net, torch.full((2,), torch.nan)
    optimizer = torch.optim.Adam(net.arch_parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        levels = net.draw(net.behaviour(), generator)
        costs = torch.stack([(levels[0, 0] != 1).float(), torch.tensor(1.0)])
        (advantage(costs, means) * net.log_probability(levels)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    p = net.probabilities()
    assert p[0, 0, 1] > 0.9
    assert net.derive().kept["semantic"][0] == 8


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_it_keeps_the_promises_of_a_searcher(backbone):
    data = TinyData(make_tasks(*NAMES), batch_size=4, sizes=(10, 2, 1))
    check_searcher(lambda tasks: ms.DEN(tasks, backbone, warmup=0.0, arch_fraction=0.5), data)


def train(stage, epochs=2):
    return make_trainer(epochs)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_is_loaded_as_it_was(tmp_path, count):
    tasks = make_tasks(*NAMES[:count])
    data = TinyData(tasks, sizes=(10, 3, 3), batch_size=2)
    searcher = ms.DEN(tasks, "test_resnet", arch_optimizer=partial(SGD, lr=50.0))
    result = ms.search(searcher, data, trainer=train, dir=tmp_path)
    result.network.eval()
    loaded = ms.load(tmp_path)
    for name, prediction in loaded(image(33, width=47)).items():
        assert torch.equal(prediction, result.network(image(33, width=47))[name])
    assert loaded.kept == result.architecture.kept
    found = result.metrics
    assert found["cost"]["params"] == sum(p.numel() for p in result.network.parameters())
    assert "supernet" in found and not searcher.means.isnan().any()


def test_the_warm_up_leaves_the_selector_alone():
    data = TinyData(make_tasks(*NAMES), sizes=(10, 3, 3), batch_size=2)
    searcher = ms.DEN(data.tasks, "test_resnet", warmup=0.5)
    levels = []
    original = searcher._levels

    def look(group):
        levels.append((searcher.current_epoch, group, original(group)))
        return levels[-1][2]

    searcher._levels = look
    before = [p.detach().clone() for p in searcher.net.arch_parameters()]
    make_trainer(4, limit_val_batches=0).fit(searcher, searcher.train_data(data))
    assert {group for epoch, group, _ in levels if epoch < 2} == {"weights"}
    assert {group for epoch, group, _ in levels if epoch >= 2} == {"weights", "arch"}
    alone = [drawn for epoch, _, drawn in levels if epoch < 2]
    whole = [bool((drawn == 3).all()) for drawn in alone]
    assert any(whole) and sum(whole) >= len(whole) / 2
    assert any((a != b).any() for a, b in zip(before, searcher.net.arch_parameters()))


def test_json_and_settings_are_checked():
    backbone = ms.backbones.load("test_resnet")
    architecture = elastic_architecture(make_tasks("depth"), backbone, {"depth": [0, 12, 24, 96]})
    assert Architecture.from_json(architecture.to_json()) == architecture
    content = json.loads(architecture.to_json())
    for wrong, message in (
        ({"blocks": []}, "list of module paths"),
        ({"channels": [1, 2]}, "channels must be 4 whole numbers"),
        ({"kept": {"other": [0, 0, 0, 0]}}, "an entry for each of"),
        ({"kept": {"depth": [0, True, 0, 0]}}, "must be 4 whole numbers"),
        ({"kept": {"depth": [0, 0, 0, 97]}}, "must be from 0 to"),
    ):
        with pytest.raises(ValueError, match=message):
            Architecture.from_json(json.dumps(content | wrong))
    with pytest.raises(ValueError, match="another version of timm"):
        Architecture.from_json(json.dumps(content | {"channels": [32, 48, 48, 97]})).build()
    for wrong in (
        {"warmup": 1},
        {"init_probability": 0},
        {"levels": 0},
        {"cost_weight": -1},
        {"exploration": 2},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ms.DEN(make_tasks("depth"), "test_resnet", **wrong)
    for other in ("vgg11_bn", "regnetx_002"):
        with pytest.raises(ValueError, match="den needs residual blocks"):
            ms.DEN(make_tasks("depth"), other)


def test_the_figure_shows_every_blocks_channels(tmp_path):
    kept = {"semantic": [0, 12, 24, 96], "depth": [8, 0, 0, 0]}
    architecture = elastic_architecture(make_tasks(), ms.backbones.load("test_resnet"), kept)
    (tmp_path / "architecture.json").write_text(architecture.to_json())
    assert [path.stem for path in figures.write(tmp_path)] == ["channels"]
    content = json.loads(architecture.to_json())
    (image,) = channel_map(content).axes[0].images
    whole = torch.tensor(content["channels"])
    shown = torch.as_tensor(image.get_array().data).float()
    assert torch.allclose(shown, torch.tensor(list(kept.values())) / whole)


@pytest.mark.usefixtures("folder")
def test_the_command_line():
    arguments = ["searcher=den", "backbone=timm", "backbone.name=test_resnet", "dataset.size=32"]
    arguments += ["dataset.train=10", "dataset.val=2", "dataset.test=2", "dataset.batch_size=2"]
    assert command.main([*arguments, "epochs=2", "trainer.accelerator=cpu", "hydra.run.dir=a"]) == 0
    assert Path("a/report.html").exists()
    assert set(ms.load("a").kept) == {"semantic", "normals", "depth"}
