import copy
import json
import math
from functools import partial

import pytest
import torch

import mtlsearch as ms
from mtlsearch.architecture import Architecture
from mtlsearch.nn.gates import concrete
from mtlsearch.nn.policies import sharing, sparsity
from mtlsearch.report.delta import delta_m
from mtlsearch.searchers.policy import PolicyArchitecture
from mtlsearch.searchers.policy_supernet import PolicySupernet
from mtlsearch.testing import check_searcher
from tiny import SGD, TinyData, copy_state, differing, make_tasks, make_trainer

NAMES = ("semantic", "depth", "normals")
BACKBONE = "test_resnet"  # four blocks that can be skipped


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return ms.backbones.load(BACKBONE)


def make(backbone, tasks=None, **settings):
    tasks = tasks or make_tasks(*NAMES, plain=True)
    return ms.AdaShare(tasks, copy.deepcopy(backbone), **{"optimizer": SGD, **settings})


def data(**settings):
    return TinyData(make_tasks(*NAMES, plain=True), **{"batch_size": 4, "sizes": (8, 4, 2), **settings})


def fit(searcher, epochs=2, **settings):
    trainer = make_trainer(epochs, limit_val_batches=0)
    trainer.fit(searcher, datamodule=searcher.train_data(data(**settings)))
    return searcher


# The equations


def test_gumbel_softmax_of_two_classes_is_the_concrete_relaxation():
    """Eq. 2 with G = -log(-log U): the first of two numbers has the distribution of `concrete`."""
    torch.manual_seed(0)
    p, temperature = torch.tensor(0.3), torch.tensor(0.7)
    pi = torch.stack([1 - p, p]).log()
    gumbel = -(-torch.rand(200_000, 2).log()).log()
    soft = ((pi + gumbel) / temperature).softmax(-1)[:, 1]
    ours = concrete(p.logit().expand(200_000), temperature)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    assert torch.allclose(soft.quantile(levels), ours.quantile(levels), atol=0.01)
    assert abs((ours > 0.5).float().mean() - p) < 0.005


def test_sparsity_by_hand():
    p = torch.tensor([[0.5, 0.8], [0.25, 0.9]])
    by_hand = -(math.log(0.5) + math.log(0.2) + math.log(0.75) + math.log(0.1)) / 4
    assert sparsity(p, blocks=4).item() == pytest.approx(by_hand, rel=1e-5)  # two of four blocks are open
    by_hand = math.log(0.5) + math.log(0.8) + math.log(0.25) + math.log(0.9)
    assert sparsity(p, blocks=4, form="log").item() == pytest.approx(by_hand, rel=1e-5)


def test_the_bounded_form_lets_go_of_a_block_that_is_off_and_the_paper_s_does_not():
    pulls = {}
    for form in ("bounded", "log"):
        logit = torch.tensor([[-6.0]], requires_grad=True)
        sparsity(logit.sigmoid(), 1, form).backward()
        pulls[form] = logit.grad.item()
    assert 0 < pulls["bounded"] < 0.01
    assert pulls["log"] > 0.99


def test_sharing_by_hand():
    p = torch.tensor([[0.5, 0.8, 0.5], [0.2, 0.9, 0.3], [0.0, 1.0, 0.0]])
    first = 2 * (0.3 + 0.0 + 0.3) * 2 / 3  # l = 1 of 3, both orders of each pair
    second = 2 * (0.7 + 0.1 + 0.6) * 1 / 3
    assert sharing(p, blocks=3).item() == pytest.approx(first + second, rel=1e-5)  # the last weighs nothing
    assert sharing(p[1:], blocks=3).item() == pytest.approx(second, rel=1e-5)
    assert sharing(p[:, :1], blocks=3).item() == 0


def test_delta_m_by_hand():
    directions = {"a": {"iou": True, "error": False}, "b": {"angle": False}}
    reference = {"a": {"iou": 0.5, "error": 2.0, "loss": 1.0}, "b": {"angle": 20.0}}
    values = {"a": {"iou": 0.6, "error": 1.0}, "b": {"angle": 25.0}}
    assert delta_m(values, reference, directions) == pytest.approx({"a": 35.0, "b": -25.0, "all": 5.0})
    with pytest.raises(ValueError, match="no 'angle' of task 'b'"):
        delta_m({"a": values["a"]}, reference, directions)


# The schedule


def test_warm_up_curriculum_and_temperature_follow_the_progress(backbone):
    searcher = make(backbone, warmup=0.2, curriculum=0.5, temperature=5.0, temperature_end=0.05)
    seen = {}
    for progress in (0.0, 0.19, 0.2, 0.35, 0.6, 0.9, 1.0):
        searcher.anneal(progress)
        seen[progress] = (int(searcher.net.open), float(searcher.net.temperature))
    assert [opened for opened, _ in seen.values()] == [0, 0, 1, 2, 4, 4, 4]
    temperatures = [t for _, t in seen.values()]
    assert temperatures[:3] == pytest.approx([5, 5, 5])
    assert temperatures[4] == pytest.approx(0.5, rel=1e-3)  # half way by factors
    assert temperatures[-1] == pytest.approx(0.05, rel=1e-3)
    searcher.curriculum = 0.0
    searcher.anneal(0.2)
    assert int(searcher.net.open) == 4


def test_warm_up_trains_weights_alone_with_all_blocks_shared(backbone):
    searcher = make(backbone, warmup=0.5, sparsity_weight=1.0)
    trainer = make_trainer(2, limit_val_batches=0, limit_train_batches=1)
    before = copy_state(searcher.net.logits)
    groups = []
    update = searcher.update

    def watched(group, batch, batch_index):
        groups.append((searcher.current_epoch, group, int(searcher.net.open)))
        update(group, batch, batch_index)

    searcher.update = watched
    trainer.fit(searcher, datamodule=searcher.train_data(data()))
    assert groups == [(0, "weights", 0), (1, "weights", 1), (1, "arch", 1)]
    assert differing(before, copy_state(searcher.net.logits)) == ["3"]


def test_a_closed_block_is_not_pushed_by_losses_regularisers_or_decay(backbone):
    decay = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    searcher = make(
        backbone, warmup=0.0, curriculum=1.0, sparsity_weight=1.0, sharing_weight=1.0, entropy_weight=1.0,
        arch_optimizer=decay,
    )  # fmt: skip
    start = copy_state(searcher.net.logits)
    trainer = make_trainer(1, limit_val_batches=0, limit_train_batches=1)
    trainer.fit(searcher, datamodule=searcher.train_data(data()))
    assert differing(start, copy_state(searcher.net.logits)) == ["3"]
    assert searcher.net.derive().select["depth"][:3] == [True] * 3  # closed: run by all
    assert searcher.net.probabilities()[:3].eq(1).all()


def test_epochs_alternate(backbone):
    searcher = make(backbone, warmup=0.0, alternate="epoch")
    groups = []
    update = searcher.update
    searcher.update = lambda group, *rest: (
        groups.append((searcher.current_epoch, group)),
        update(group, *rest),
    )[1]
    make_trainer(2, limit_val_batches=0).fit(searcher, datamodule=searcher.train_data(data()))
    assert set(groups) == {(0, "weights"), (1, "arch")}


def test_policies_and_weights_keep_their_own_images(backbone):
    module = make(backbone).train_data(data())
    module.trainer = make_trainer(1)
    module.setup("fit")
    loaders = module.train_dataloader()
    epochs = []
    for epoch in range(2):
        drawn = {}
        for group, loader in loaders.items():
            loader.sampler.set_epoch(epoch)
            drawn[group] = set(loader.sampler)
        epochs.append(drawn)
    assert epochs[0] == epochs[1]
    assert not epochs[0]["weights"] & epochs[0]["arch"]


# Settings


def policy_after(backbone, **settings):
    torch.manual_seed(0)
    arch = partial(torch.optim.Adam, lr=0.2, betas=(0.5, 0.999))
    searcher = make(backbone, warmup=0.0, curriculum=0.0, arch_optimizer=arch, seed=1, **settings)
    return fit(searcher, epochs=4).net.probabilities()


def test_more_sparsity_means_fewer_blocks_and_more_sharing_more_agreement(backbone):
    free = policy_after(backbone, sparsity_weight=0.0, sharing_weight=0.0)
    sparse = policy_after(backbone, sparsity_weight=5.0, sharing_weight=0.0)
    shared = policy_after(backbone, sparsity_weight=0.0, sharing_weight=5.0)
    assert sparse.mean() < free.mean() - 0.1

    def distance(p):
        return sharing(p, len(p)).item()

    assert distance(shared) < 0.5 * distance(free)


def test_the_entropy_term_decides_the_policies(backbone):
    kept = policy_after(backbone, sparsity_weight=0.0, sharing_weight=0.0)
    decided = policy_after(backbone, sparsity_weight=0.0, sharing_weight=0.0, entropy_weight=20.0)
    assert (decided - 0.5).abs().mean() > (kept - 0.5).abs().mean() + 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"relaxation": "deterministic"},
        {"straight_through": True},
        {"estimator": "reinforce"},
        {"instance": True},
        {"estimator": "reinforce", "instance": True},
        {"sparsity_form": "log"},
    ],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()),
)
def test_every_setting_moves_the_policy_and_leaves_the_weights_to_the_weights(backbone, settings):
    searcher = make(backbone, warmup=0.0, curriculum=0.0, **settings)
    before = searcher.net.probabilities()
    parameters = [p.detach().clone() for p in searcher.net.arch_parameters()]
    fit(searcher)
    assert any(not torch.equal(a, b) for a, b in zip(parameters, searcher.net.arch_parameters()))
    assert not torch.equal(before, searcher.net.probabilities())


def test_what_gates_are_while_training(backbone):
    def drawn(**settings):
        net = make(backbone, **settings).net.train()
        net.temperature.fill_(0.5)
        net(torch.rand(2, 3, 32, 32))
        return torch.cat([gate.detach().flatten() for gate in net._drawn[-1]])

    assert drawn().unique().numel() > 10  # noise on every gate
    flat = drawn(relaxation="deterministic")
    assert (flat - 0.7).abs().max() < 0.02
    for hard in (drawn(straight_through=True), drawn(estimator="reinforce")):
        assert set(hard.tolist()) <= {0.0, 1.0}
    assert len(drawn(instance=True)) == 4 * 3 * 2  # of every image


def test_reinforce_goes_by_the_loss_alone(backbone):
    """The expected gradient of log p times the gain raises what lowers the loss."""
    net = make(backbone, estimator="reinforce").net.train()
    torch.manual_seed(0)
    total = torch.zeros(4, 3)
    for _ in range(400):
        net._gates(torch.rand(1, 3, 32, 32))
        loss = net._drawn[-1][0][0]  # running the first block for the first task costs 1
        grads = torch.autograd.grad((loss - 0.7) * net.log_probability(), list(net.logits))
        total += torch.stack(grads)
    assert total[0, 0] / 400 == pytest.approx(0.7 * 0.3, abs=0.03)  # d E[loss] / d logit
    assert total.flatten()[1:].abs().max() / 400 < 0.1


# What it ends in


def test_the_run_draws_trains_and_chooses(backbone, tmp_path):
    searcher = make(backbone, warmup=0.0, samples=3)
    trained = []

    def trainer(stage):
        trained.append(stage)
        return make_trainer(1)

    result = ms.search(searcher, data(), trainer=trainer, dir=tmp_path)
    assert trained == ["search", "retrain_1", "retrain_2", "retrain_3", "evaluate"]
    tried = result.metrics["retrained"]
    assert len({json.dumps(entry["select"]) for entry in tried}) == 3
    losses = [entry["val"]["loss"] for entry in tried]
    assert result.metrics["chosen"] == losses.index(min(losses))
    assert result.architecture.select == tried[result.metrics["chosen"]]["select"]
    assert result.metrics["val"] == tried[result.metrics["chosen"]]["val"]
    whole = sum(p.numel() for p in backbone.parameters())
    assert result.metrics["cost"]["single_task_backbone_params"] == 3 * whole
    image = torch.rand(2, 3, 32, 32)
    loaded = ms.load(tmp_path, searcher.tasks)(image)
    for name, prediction in result.network(image).items():
        assert torch.allclose(prediction, loaded[name], atol=1e-6)


def test_retraining_starts_from_scratch_and_takes_all_images(backbone):
    searcher = fit(make(backbone, warmup=0.0, samples=2), epochs=1)
    stage = searcher.next_stage(searcher)
    again = searcher.next_stage(searcher)
    assert stage.stage == "retrain_1"
    assert stage.train_data(module := data()) is module
    for a, b in zip(stage.net.heads.parameters(), again.net.heads.parameters()):
        assert torch.equal(a, b)
    searched = dict(searcher.net.network.heads.named_parameters())
    fresh = dict(stage.net.heads.named_parameters())
    assert all(not torch.equal(searched[name], fresh[name]) for name in fresh)


def test_without_retraining_the_searched_weights_are_kept_with_new_statistics(backbone, tmp_path):
    searcher = make(backbone, warmup=0.0, retrain=False, samples=2, entropy_weight=5.0)
    result = ms.search(searcher, data(), trainer=lambda stage: make_trainer(2), dir=tmp_path)
    assert "retrained" not in result.metrics
    assert len(result.metrics["samples"]) == 2
    own, searched = dict(result.network.named_parameters()), dict(searcher.net.network.named_parameters())
    assert own and all(torch.equal(value, searched[name]) for name, value in own.items())
    name = "paths.backbone.model.bn1.norm.running_mean"
    before, after = searcher.net.network.state_dict()[name], result.network.state_dict()[name]
    assert not torch.equal(before, after)


def test_no_block_selected_is_warned_of(backbone):
    searcher = make(backbone, samples=0)
    with torch.no_grad():
        for logits in searcher.net.logits:
            logits[1] = -5
    with pytest.warns(UserWarning, match="Task 'depth' skips every block"):
        (architecture,) = searcher.candidates()
    assert architecture.select["depth"] == [False] * 4


def test_a_decided_policy_gives_fewer_architectures_and_says_so(backbone, caplog):
    searcher = make(backbone, samples=4)
    with torch.no_grad():
        for logits in searcher.net.logits:
            logits.fill_(50.0)
    with caplog.at_level("INFO"):
        assert len(searcher.candidates()) == 1
    assert "80 draws gave 1 different architectures, not 4" in caplog.text


def test_instance_keeps_its_predictor_and_decides_by_image(backbone, tmp_path):
    searcher = make(backbone, warmup=0.0, instance=True)
    result = ms.search(searcher, data(), trainer=lambda stage: make_trainer(2), dir=tmp_path)
    assert result.architecture.instance
    trained, kept = searcher.net.network.predictor, result.network.predictor
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), kept.parameters()))
    loaded = ms.load(tmp_path, searcher.tasks)
    image = torch.rand(3, 3, 32, 32)
    for name, value in loaded(image).items():
        for i in range(3):
            assert torch.allclose(loaded(image[i : i + 1])[name], value[i : i + 1], atol=1e-4)


def test_the_supernet_is_hard_sharing_while_nothing_is_open(backbone):
    net = PolicySupernet(make_tasks(*NAMES, plain=True), backbone).eval()
    net.open.fill_(0)
    image = torch.rand(2, 3, 32, 32)
    everything = net.architecture(torch.ones(4, 3, dtype=torch.bool))
    for name, value in net(image, gates=everything).items():
        assert torch.equal(value, net(image)[name])


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("blocks", [], "blocks must be"),
        ("stages", [0], "stages must be 4"),
        ("select", {"semantic": [True] * 4}, "select must have an entry"),
        ("select", {n: [1] * 4 for n in NAMES}, "must be 4 of bool"),
        ("probabilities", {n: [2.0] * 4 for n in NAMES}, r"\[0, 1\]"),
        ("instance", "yes", "instance must be"),
        ("blocks", ["a", "b", "c", "d"], "another model"),
    ],
)
def test_a_wrong_file_is_refused(backbone, field, value, message):
    content = json.loads(make(backbone).derive().to_json())
    content[field] = value
    with pytest.raises(ValueError, match=message):
        Architecture.from_json(json.dumps(content)).build(make_tasks(*NAMES, plain=True))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"warmup": 1.0}, "warmup must be below 1"),
        ({"curriculum": 1.5}, "curriculum must be in"),
        ({"sparsity_weight": -1}, "sparsity_weight must be at least 0"),
        ({"temperature_end": 0.0}, "temperatures must fall"),
        ({"estimator": "sgd"}, "gumbel, reinforce"),
        ({"relaxation": "soft"}, "concrete"),
        ({"samples": -1}, "samples must be"),
    ],
)
def test_wrong_settings_are_refused(backbone, settings, message):
    with pytest.raises(ValueError, match=message):
        make(backbone, **settings)


def test_conformance(backbone):
    tasks = TinyData(make_tasks(*NAMES, plain=True), batch_size=4, sizes=(8, 2, 1))
    check_searcher(lambda chosen: make(backbone, chosen, warmup=0.0, curriculum=0.0), tasks)


# Its baselines


def test_hard_sharing_is_one_backbone(backbone, tmp_path):
    result = ms.search(
        ms.HardSharing(make_tasks(*NAMES, plain=True), backbone, optimizer=SGD), data(),
        trainer=lambda stage: make_trainer(1), dir=tmp_path,
    )  # fmt: skip
    assert isinstance(result.architecture, PolicyArchitecture)
    assert result.metrics["cost"]["backbone_params"] == sum(p.numel() for p in backbone.parameters())


def test_stochastic_depth_skips_while_training_with_the_right_mean(backbone):
    baseline = ms.StochasticDepth(make_tasks(*NAMES, plain=True), backbone, survival=0.4)
    network = baseline.net.train()
    torch.manual_seed(0)
    draws = [network.gates(torch.rand(1, 3, 32, 32)) for _ in range(2000)]
    for index, kept in ((0, 1 - 0.6 / 4), (3, 0.4)):
        values = torch.tensor([float(gates[index]["depth"]) for gates in draws])
        assert (values > 0).float().mean() == pytest.approx(kept, abs=0.04)
        assert values.mean() == pytest.approx(1.0, abs=0.08)  # what a block adds is right on average
    assert all(
        gate is True for row in network.eval().gates(torch.rand(1, 3, 32, 32)) for gate in row.values()
    )


def test_random_policies_have_the_skips_of_a_run(backbone, tmp_path):
    tasks = make_tasks(*NAMES, plain=True)
    searcher = make(backbone)
    select = {"semantic": [True] * 4, "depth": [True] * 2 + [False] * 2, "normals": [False] + [True] * 3}
    chosen = searcher.net.architecture(torch.tensor(list(select.values())).T)
    (tmp_path / "architecture.json").write_text(chosen.to_json())
    each = ms.RandomPolicy(tasks, backbone, like=tmp_path, samples=4)
    for architecture, _ in each.finalists():
        assert [on.count(False) for on in architecture.select.values()] == [0, 2, 1]
    total = ms.RandomPolicy(tasks, backbone, like=tmp_path, per_task=False, samples=4)
    counts = [[on.count(False) for on in a.select.values()] for a, _ in total.finalists()]
    assert all(sum(skips) == 3 for skips in counts)
    assert len({tuple(skips) for skips in counts}) > 1
    assert len(ms.RandomPolicy(tasks, backbone, skips=0, samples=4).finalists()) == 1
    for wrong, message in (
        ({}, "skips="), ({"skips": 13}, "from 0 to 12"), ({"skips": {"depth": 1}}, "must name the tasks"),
        ({"like": tmp_path / "x"}, "not there"), ({"skips": 1, "samples": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ms.RandomPolicy(tasks, backbone, **wrong)


def test_a_random_policy_run_trains_every_sample(backbone, tmp_path):
    stages = []
    baseline = ms.RandomPolicy(make_tasks(*NAMES, plain=True), backbone, skips=4, samples=2, optimizer=SGD)
    result = ms.search(
        baseline, data(), trainer=lambda stage: (stages.append(stage), make_trainer(1))[1], dir=tmp_path
    )
    assert stages == ["train_1", "train_2", "evaluate"]
    assert len(result.metrics["retrained"]) == 2
