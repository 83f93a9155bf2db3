"""How weights and arch parameters are trained: one at a time, on which data, the same after a resume."""

from functools import partial

import pytest
import torch

import mtlsearch as ms
from mtlsearch.namespace import pl
from mtlsearch.searcher import frozen_statistics, only
from tiny import (
    SGD,
    Killed,
    Stop,
    TinyData,
    ToyArchitecture,
    ToySearcher,
    copy_state,
    differing,
    make_tasks,
    make_trainer,
)

ARCH = "gates.logits"


def mtlnas(tasks=None, **arguments):
    tasks = tasks or make_tasks()
    space = {"single_task": False, "max_distance": 1, "within_stage": False, "fusion_bn_init": "standard"}
    return ms.MTLNAS(tasks, "test_resnet", **{**space, **arguments})


def one_update(searcher, group):
    """What changed in an update of one group."""
    states = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *_):
            states.append(copy_state(searcher.net))

    searcher.groups = lambda epoch: (group,)
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0, callbacks=[Watch()])
    trainer.fit(searcher, TinyData(searcher.tasks))
    return set(differing(states[0], copy_state(searcher.net)))


@pytest.mark.parametrize("make", [ToySearcher, mtlnas])
@pytest.mark.parametrize("relaxation", ["deterministic", "concrete"])
def test_an_arch_update_changes_arch_parameters_and_nothing_else(make, relaxation):
    assert one_update(make(relaxation=relaxation), "arch") == {ARCH}


def test_a_weight_update_leaves_the_arch_parameters():
    searcher = mtlnas()
    changed = one_update(searcher, "weights")
    assert ARCH not in changed
    trainable = {name for name, _ in searcher.net.named_parameters()} - {ARCH}
    assert len(changed & trainable) > 0.9 * len(trainable)
    assert any(name.endswith("running_mean") for name in changed)


def test_neither_update_pays_for_the_other_groups_gradients():
    searcher = ToySearcher()
    seen = {}

    def watch(update, group, batch, batch_index):
        seen[group] = {n for n, p in searcher.net.named_parameters() if p.requires_grad}
        update(group, batch, batch_index)

    searcher.update = partial(watch, searcher.update)
    make_trainer(limit_train_batches=1).fit(searcher, TinyData(searcher.tasks))
    names = {name for name, _ in searcher.net.named_parameters()}
    assert seen == {"weights": names - {ARCH}, "arch": {ARCH}}
    assert all(parameter.requires_grad for parameter in searcher.net.parameters())


def test_only_leaves_frozen_parameters_frozen():
    searcher = ToySearcher()
    searcher.net.network.stem.weight.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), only(searcher.net.arch_parameters(), searcher.net):
        raise ZeroDivisionError
    frozen = [name for name, p in searcher.net.named_parameters() if not p.requires_grad]
    assert frozen == ["network.stem.weight"]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_frozen_statistics_give_the_output_of_training_and_stay(momentum):
    norm = torch.nn.BatchNorm2d(3, momentum=momentum)
    image = torch.randn(4, 3, 5, 5) * 3 + 1
    expected = torch.nn.BatchNorm2d(3)(image)
    before = copy_state(norm)
    with frozen_statistics(norm):
        torch.testing.assert_close(norm(image), expected)
    assert not differing(before, copy_state(norm)) and norm.momentum == momentum
    norm(image)
    assert len(differing(before, copy_state(norm))) == 3


# Which images an update sees


def images_of_updates(searcher, datamodule, **trainer):
    """{group: the images of each update}."""
    seen = {"weights": [], "arch": []}

    def watch(update, group, batch, batch_index):
        seen[group].append(batch["image"].clone())
        update(group, batch, batch_index)

    searcher.update = partial(watch, searcher.update)
    make_trainer(**trainer).fit(searcher, datamodule)
    return seen


def as_set(images):
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("size, shares", [(4, (2, 2)), (5, (3, 2)), (2, (1, 1))])
def test_halves_of_a_plain_batch_are_disjoint_and_cover_it(size, shares):
    searcher = ToySearcher()
    data = TinyData(searcher.tasks, sizes=(size, 1, 1), batch_size=size)
    seen = images_of_updates(searcher, data)
    (weights,), (arch,) = seen["weights"], seen["arch"]
    assert (len(weights), len(arch)) == shares
    data.setup()
    assert as_set(weights) | as_set(arch) == as_set(next(iter(data.train_dataloader()))["image"])
    assert not as_set(weights) & as_set(arch)


def test_labels_go_with_their_images():
    searcher = ToySearcher()
    batch = {"image": torch.arange(5.0).view(5, 1, 1, 1), "depth": 10 * torch.arange(5.0)}
    for part in searcher._split(batch, ("weights", "arch")).values():
        assert torch.equal(part["depth"], 10 * part["image"].flatten())


def test_a_plain_batch_of_one_is_an_error():
    searcher = ToySearcher()
    with pytest.raises(ValueError, match=r"batch of one image cannot be halved.*Bilevel"):
        make_trainer().fit(searcher, TinyData(searcher.tasks, batch_size=1))


def test_a_batch_for_each_group_goes_to_its_group():
    searcher = ToySearcher()
    data = searcher.train_data(TinyData(searcher.tasks))
    seen = images_of_updates(searcher, data)
    assert [len(images) for images in seen["weights"] + seen["arch"]] == [4, 4]
    weights, arch = (as_set(torch.cat(seen[group])) for group in ("weights", "arch"))
    assert not weights & arch and len(weights | arch) == 8


def test_phases_choose_groups_and_take_whole_batches():
    searcher = ToySearcher()
    searcher.groups = lambda epoch: ("weights",) if epoch == 0 else ("arch",)
    states = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, *_):
            states.append(copy_state(searcher.net))

    seen = images_of_updates(searcher, TinyData(searcher.tasks), max_epochs=2, callbacks=[Watch()])
    assert [len(images) for images in seen["weights"] + seen["arch"]] == [4] * 4
    assert ARCH not in differing(states[0], states[1])
    assert differing(states[1], copy_state(searcher.net)) == [ARCH, "gates.temperature"]


def test_a_batch_that_lacks_an_epochs_group_is_an_error():
    searcher = ToySearcher()
    data = TinyData(searcher.tasks)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    with pytest.raises(ValueError, match=r"updates \('weights', 'arch'\), but .* for \['weights'\]"):
        searcher._split({"weights": batch}, ("weights", "arch"))


# What an arch update minimises


def test_the_regularization_is_the_arch_updates_alone():
    def trained(gamma):
        searcher = ToySearcher(arch_optimizer=SGD)
        if gamma:
            searcher.regularization = lambda progress: {"sum": gamma * searcher.net.gates.logits.sum()}
        make_trainer(limit_train_batches=1, limit_val_batches=0).fit(searcher, TinyData(searcher.tasks))
        return copy_state(searcher.net)

    plain, pulled = trained(0.0), trained(2.0)
    assert differing(plain, pulled) == [ARCH]
    torch.testing.assert_close(pulled[ARCH], plain[ARCH] - 0.1 * 2.0)


def test_a_regularization_that_is_not_finite_is_named():
    searcher = ToySearcher()
    searcher.regularization = lambda progress: {"entropy": searcher.net.gates.logits.sum() * torch.nan}
    with pytest.raises(ValueError, match=r"'entropy' is nan.*batch 0, in the update of the arch"):
        make_trainer().fit(searcher, TinyData(searcher.tasks))


def test_schedule_and_clipping_are_the_weights_alone():
    def changes(**training):
        searcher = ToySearcher(**training)
        before = copy_state(searcher.net)
        make_trainer(limit_train_batches=1, limit_val_batches=0).fit(searcher, TinyData(searcher.tasks))
        return differing(before, copy_state(searcher.net)), copy_state(searcher.net)[ARCH]

    changed, arch = changes(schedule=lambda progress: 0.0)
    assert changed == [ARCH]
    assert torch.equal(arch, changes(schedule=lambda progress: 0.0, clip=1e-9)[1])


def test_arch_gradients_are_accumulated_like_the_others():
    searcher = ToySearcher(accumulate=2)
    data = TinyData(searcher.tasks, sizes=(16, 1, 1))  # 4 plain batches
    make_trainer(limit_val_batches=0).fit(searcher, data)
    assert searcher.trainer.global_step == 4


def test_annealing_follows_the_progress():
    searcher, seen = ToySearcher(), []
    searcher.anneal = seen.append
    make_trainer(2).fit(searcher, TinyData(searcher.tasks))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_weights_are_all_that_is_not_arch():
    net = mtlnas().net
    arch, weights = net.arch_parameters(), net.weights()
    assert [id(p) for p in net.parameters() if id(p) != id(arch[0])] == [id(p) for p in weights]
    optimizers = mtlnas().configure_optimizers()
    counts = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in optimizers]
    assert counts == [len(weights), 1]


# Resume


SETTINGS = {
    "toy": lambda: ToySearcher(),
    "toy, concrete, dropout, accumulated": lambda: ToySearcher(
        relaxation="concrete",
        dropout=0.3,
        norm=True,
        accumulate=2,
        optimizer=partial(torch.optim.AdamW, lr=0.01),
    ),
    "mtlnas, concrete": lambda: mtlnas(relaxation="concrete", entropy_warmup=0.5),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_search_that_was_stopped_ends_like_one_that_was_not(setting, tmp_path):
    def data(searcher):
        augment = ms.data.Augment(flip=0.5)
        return searcher.train_data(TinyData(searcher.tasks, sizes=(16, 2, 1), augment=augment))

    whole = SETTINGS[setting]()
    make_trainer(3).fit(whole, data(whole))

    killed = SETTINGS[setting]()
    trainer = make_trainer(3, callbacks=[Stop(2)])
    with pytest.raises(Killed):
        trainer.fit(killed, data(killed))
    assert differing(copy_state(whole), copy_state(killed))

    stopped = SETTINGS[setting]()
    trainer = make_trainer(3, callbacks=[Saver(tmp_path / "last.ckpt"), Stop(2)])
    with pytest.raises(Killed):
        trainer.fit(stopped, data(stopped))
    torch.manual_seed(99)
    resumed = SETTINGS[setting]()
    make_trainer(3).fit(resumed, data(resumed), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert not differing(copy_state(whole), copy_state(resumed))


class Saver(pl.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.path)


# What it ends in


def test_the_network_is_the_derived_one():
    searcher = ToySearcher()
    with torch.no_grad():
        searcher.net.gates.logits.copy_(torch.tensor([3.0, -3.0]))
    assert searcher.derive() == ToyArchitecture({"semantic": None, "depth": None}, [True, False])
    network = searcher.network().eval()
    image = torch.rand(2, 3, 32, 32)
    hard = searcher.net.eval()(image, gates=searcher.derive())
    for task, prediction in network(image).items():
        torch.testing.assert_close(prediction, hard[task])


def test_the_last_stage_is_the_searcher():
    searcher = ToySearcher()
    assert searcher.first_stage() is searcher and searcher.next_stage(searcher) is None
    assert searcher.next_stage(ms.MultiTask(searcher.net, searcher.tasks)) is searcher
