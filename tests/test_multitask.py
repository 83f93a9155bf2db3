"""Training and evaluating a network: what a step minimises, by how much it moves, what is counted."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import mtlsearch as ms
from mtlsearch.namespace import pl
from mtlsearch.optimizers import poly
from tiny import SGD, Point, TinyData, ToyNetwork, copy_state, differing, make_tasks, make_trainer, point

ONE_STEP = {"limit_train_batches": 1, "limit_val_batches": 0}


def make_module(tasks=None, **training):
    tasks = tasks or make_tasks(plain=True)
    torch.manual_seed(0)
    network = ToyNetwork(tasks, [task.name for task in tasks])
    return ms.MultiTask(network, tasks, **{"optimizer": SGD, "schedule": lambda progress: 1.0, **training})


def first_batch(datamodule):
    datamodule.setup()
    return next(iter(datamodule.train_dataloader()))


def gradients(module, batch, weights):
    """Of the weighted sum of the tasks' means, by autograd alone."""
    predictions = module.net(batch["image"])
    total = 0.0
    for task, weight in zip(module.tasks, weights):
        amount, count = task.loss(predictions[task.name], batch[task.name])
        total = total + weight * amount / count
    return torch.autograd.grad(total, list(module.net.parameters()))


class Loader(pl.LightningDataModule):
    """Batches as they are given."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(list(self.batches), batch_size=None)

    def val_dataloader(self):
        return self.train_dataloader()


# Steps


def test_a_step_descends_on_the_weighted_means_over_labelled_pixels():
    module = make_module(make_tasks(plain=True, semantic=0.5, depth=2.0))
    batch = first_batch(TinyData(module.tasks))
    before = [p.detach().clone() for p in module.net.parameters()]
    expected = gradients(module, batch, [0.5, 2.0])
    make_trainer(**ONE_STEP).fit(module, Loader(batch))
    for parameter, old, grad in zip(module.net.parameters(), before, expected):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * grad)


def test_factors_on_the_learning_rate_reach_their_parameters_alone():
    tasks = make_tasks("depth", plain=True)
    module = make_module(tasks)
    module.net.heads["depth"].classify.lr_factors = {"weight": 10.0, "bias": 20.0}
    batch = first_batch(TinyData(tasks))
    before = copy_state(module.net)
    grads = dict(zip(before, gradients(module, batch, [1.0])))
    make_trainer(**ONE_STEP).fit(module, Loader(batch))
    factors = {"heads.depth.classify.weight": 10.0, "heads.depth.classify.bias": 20.0}
    for name, after in module.net.state_dict().items():
        torch.testing.assert_close(after, before[name] - factors.get(name, 1.0) * 0.1 * grads[name])


def test_the_schedule_falls_with_progress_and_keeps_the_factors():
    module = make_module(schedule=poly)
    module.net.stem.lr_factors = {"weight": 10.0}
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates = {group["lr_factor"]: group["lr"] for group in trainer.optimizers[0].param_groups}
            seen.append((rates[1.0], rates[10.0]))

    make_trainer(2, callbacks=[Watch()]).fit(module, TinyData(module.tasks))
    expected = [0.1 * (1 - done) ** 0.9 for done in (0.0, 0.25, 0.5, 0.75)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([(rate, 10 * rate) for rate in expected]))


def test_progress_follows_steps_where_no_epochs_are_given():
    module, seen = make_module(), []
    module.schedule = lambda progress: seen.append(progress) or 1.0
    make_trainer(-1, max_steps=4).fit(module, TinyData(module.tasks))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_a_trainer_without_an_end_is_refused():
    module = make_module()
    with pytest.raises(ValueError, match=r"max_epochs.*max_steps"):
        make_trainer(-1, max_time="00:00:00:03").fit(module, TinyData(module.tasks))


def test_clipping_bounds_the_norm_of_the_whole_gradient():
    norms = []
    for clip in (0.0, 0.01):
        module = make_module(clip=clip)
        batch = first_batch(TinyData(module.tasks))
        before = [p.detach().clone() for p in module.net.parameters()]
        make_trainer(**ONE_STEP).fit(module, Loader(batch))
        moves = [(p - old) / 0.1 for p, old in zip(module.net.parameters(), before)]
        norms.append(torch.cat([move.flatten() for move in moves]).norm().item())
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_accumulated_batches_equal_the_big_one():
    batch = first_batch(TinyData(batch_size=8))
    batch["semantic"][batch["semantic"] == 255] = 0  # as many labels in each part
    batch["depth"] = batch["depth"].nan_to_num(1.0)
    parts = [{key: value[i : i + 2] for key, value in batch.items()} for i in range(0, 8, 2)]
    whole, split = make_module(), make_module(accumulate=4)
    make_trainer(limit_val_batches=0).fit(whole, Loader(batch))
    make_trainer(limit_val_batches=0).fit(split, Loader(*parts))
    for a, b in zip(whole.net.parameters(), split.net.parameters()):
        torch.testing.assert_close(a, b)
    assert split.trainer.global_step == whole.trainer.global_step == 1


def test_what_is_left_of_an_accumulation_is_a_step_at_the_end_of_the_epoch():
    module = make_module(accumulate=3)
    make_trainer().fit(module, TinyData(module.tasks, sizes=(16, 1, 1)))  # 4 batches
    assert module.trainer.global_step == 2


def test_dropout_depends_on_seed_epoch_and_batch_only():
    def trained(seed, noise):
        tasks = make_tasks(plain=True)
        torch.manual_seed(0)
        module = ms.MultiTask(ToyNetwork(tasks, [], dropout=0.5), tasks, optimizer=SGD, seed=seed)
        torch.manual_seed(noise)
        make_trainer().fit(module, TinyData(tasks))
        return copy_state(module.net)

    assert not differing(trained(0, noise=1), trained(0, noise=2))
    assert differing(trained(0, noise=1), trained(1, noise=1))


# Partial labels


def test_a_task_that_a_batch_lacks_is_skipped():
    module = make_module()
    both = first_batch(TinyData(module.tasks))
    without = {key: value for key, value in both.items() if key != "depth"}
    unlabelled = {**both, "depth": torch.full_like(both["depth"], torch.nan)}
    states = [copy_state(module.net)]

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_):
            states.append(copy_state(module.net))

    make_trainer(limit_val_batches=0, callbacks=[Watch()]).fit(module, Loader(without, unlabelled, both))
    heads = {"heads.depth.classify.weight", "heads.depth.classify.bias"}
    for before, after in pairwise(states[:3]):
        assert {"stem.weight", "extra.weight"} <= set(differing(before, after)) <= set(before) - heads
    assert heads <= set(differing(states[2], states[3]))


def test_a_task_without_a_label_in_an_epoch_is_an_error():
    module = make_module()
    data = TinyData(module.tasks, missing={"depth": range(8)})
    with pytest.raises(ValueError, match="Task 'depth' had no label in the whole of epoch 0"):
        make_trainer().fit(module, data)


def test_one_labelled_image_is_enough():
    module = make_module()
    make_trainer().fit(module, TinyData(module.tasks, missing={"depth": range(7)}))


@pytest.mark.parametrize(
    "batch, message",
    [
        (
            lambda b: {"image": b["image"], "depths": b["depth"]},
            r"tasks \['semantic', 'depth'\], keys .*depths",
        ),
        (lambda b: {"picture": b["image"]}, "'image'.*unpack="),
        (lambda b: (b["image"], b["depth"]), "'image'.*not list.*unpack="),
    ],
)
def test_a_batch_of_another_form_is_an_error_that_says_so(batch, message):
    module = make_module()
    with pytest.raises(ValueError, match=message):
        make_trainer().fit(module, Loader(batch(first_batch(TinyData(module.tasks)))))


def test_unpack_adapts_a_foreign_format():
    plain = make_module()
    batch = first_batch(TinyData(plain.tasks))
    foreign = make_module(unpack=lambda b: {"image": b[0], "semantic": b[1], "depth": b[2]})
    make_trainer().fit(plain, Loader(batch))
    make_trainer().fit(foreign, Loader((batch["image"], batch["semantic"], batch["depth"])))
    assert not differing(copy_state(plain.net), copy_state(foreign.net))
    assert plain.trainer.callback_metrics["val/loss"] == foreign.trainer.callback_metrics["val/loss"]


# Losses that are not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(value):
    module = make_module(schedule=poly)
    good = first_batch(TinyData(module.tasks))
    bad = {**good, "image": good["image"].clone()}
    bad["image"][0, 0, -1, -1] = value
    after_good = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, *_):
            after_good.append(copy_state(module.net))

    message = "'semantic' is (nan|inf).*'depth' is (nan|inf).*epoch 0, batch 1, in the update of the weights"
    with pytest.raises(ValueError, match=message):
        make_trainer(callbacks=[Watch()]).fit(module, Loader(good, bad))
    assert not differing(after_good[0], copy_state(module.net))


def test_weights_that_are_not_finite_are_an_error_at_the_end_of_the_epoch():
    module = make_module()
    batch = first_batch(TinyData(module.tasks))
    batch["image"][0, 0, 0, 0] = torch.nan  # not labelled: the loss is finite, the gradient is not
    with pytest.raises(ValueError, match=r"'.*' is no longer finite at the end of epoch 0"):
        make_trainer(limit_val_batches=0).fit(module, Loader(batch))


# Evaluation


def mean_loss(module, datamodule):
    """The validation loss of every task, image by image."""
    totals = {}
    with torch.no_grad():
        for sample in datamodule.val_dataset:
            batch = datamodule.collate([sample])
            predictions = module.net(batch["image"])
            for task in module.tasks:
                amount, count = task.loss(predictions[task.name], batch[task.name])
                total = totals.setdefault(task.name, [0.0, 0])
                total[0] += amount.item()
                total[1] += count.item()
    return {name: amount / count for name, (amount, count) in totals.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_validation_counts_each_image_once(batch_size):
    module = make_module(make_tasks(plain=True, semantic=1.0, depth=3.0))
    data = TinyData(module.tasks, batch_size=batch_size)
    logged = make_trainer().validate(module, data, verbose=False)[0]
    losses = mean_loss(module, data)
    assert logged["val/depth/absolute_error"] == pytest.approx(losses["depth"], rel=1e-5)
    assert logged["val/loss"] == pytest.approx(losses["semantic"] + 3 * losses["depth"], rel=1e-5)


def test_metrics_start_anew_every_time():
    module = make_module()
    data, trainer = TinyData(module.tasks), make_trainer()
    once, twice = (trainer.validate(module, data, verbose=False)[0] for _ in range(2))
    assert once == twice


def test_a_task_that_validation_lacks_is_left_out_of_the_loss():
    module = make_module()
    batch = first_batch(TinyData(module.tasks))
    without = {**batch, "depth": torch.full_like(batch["depth"], torch.nan)}
    logged = make_trainer().validate(module, Loader(without), verbose=False)[0]
    assert not [name for name in logged if "depth" in name]
    amount, count = module.tasks[0].loss(module.net(batch["image"])["semantic"], batch["semantic"])
    assert logged["val/loss"] == pytest.approx((amount / count).item(), rel=1e-5)
    absent = {key: value for key, value in batch.items() if key != "depth"}
    assert make_trainer().validate(module, Loader(absent), verbose=False)[0] == logged


def test_evaluation_leaves_the_network_as_it_is():
    tasks = make_tasks(plain=True)
    module = ms.MultiTask(ToyNetwork(tasks, [], norm=True), tasks)
    before = copy_state(module.net)
    make_trainer().validate(module, TinyData(tasks), verbose=False)
    assert not differing(before, copy_state(module.net))


def test_trains_any_network_on_any_number_of_tasks():
    class Wide(nn.Module):
        def __init__(self, tasks):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3, padding=1)
            self.heads = nn.ModuleDict({task.name: task.head([8], [1]) for task in tasks})

        def forward(self, image, tasks):
            features = [self.layer(image).relu()]
            return {name: self.heads[name](features, image.shape[-2:]) for name in tasks}

    for names in (["depth"], ["semantic", "depth", "normals"]):
        tasks = make_tasks(*names, plain=True)
        module = ms.MultiTask(Wide(tasks), tasks, optimizer=partial(torch.optim.Adam, lr=0.03))
        data = TinyData(tasks)
        before = make_trainer().validate(module, data, verbose=False)[0]["val/loss"]
        make_trainer(8).fit(module, data)
        assert make_trainer().validate(module, data, verbose=False)[0]["val/loss"] < 0.8 * before


def test_poly():
    assert [poly(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 0.5**0.9, 0.0]


def test_the_tiny_head_is_a_head():
    assert isinstance(point(3)([4, 8], [1, 2]), Point)
