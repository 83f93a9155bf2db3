"""A data set for each task: which images a step takes, what it descends on, and what is measured."""

from itertools import pairwise

import pytest
import torch
from torch.utils.data import DataLoader

import mtlsearch as ms
from mtlsearch.data import Bilevel, PerTask, sampling
from mtlsearch.namespace import pl
from mtlsearch.testing import check_resume
from tiny import (
    SGD,
    TinyData,
    ToyNetwork,
    ToySearcher,
    copy_state,
    differing,
    make_tasks,
    make_trainer,
)

TASKS = ("semantic", "depth", "normals")


@pytest.fixture
def world(monkeypatch):
    """`world(rank, size)` makes this process one of several."""

    def be(rank, size):
        monkeypatch.setattr(sampling, "processes", lambda: (rank, size))

    return be


class Numbers(pl.LightningDataModule):
    """The numbers from `start` on; a batch is the list of them."""

    def __init__(self, task, start, count, batch_size, **loader):
        super().__init__()
        self.tasks = make_tasks(task)
        self.loader = DataLoader(
            range(start, start + count), batch_size=batch_size, collate_fn=list, **loader
        )

    def train_dataloader(self):
        return self.loader

    val_dataloader = test_dataloader = train_dataloader


class Given(pl.LightningDataModule):
    """This batch, to train and to validate on."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return DataLoader([self.batch], batch_size=None)

    val_dataloader = train_dataloader


def numbers(*sizes, batch_sizes=(2, 2, 2), **arguments):
    """Data sets of these sizes, whose numbers start at 0, 100, 200."""
    parts = enumerate(zip(TASKS, sizes, batch_sizes))
    datasets = {f"set{i}": Numbers(task, 100 * i, n, batch) for i, (task, n, batch) in parts}
    return PerTask(datasets, **arguments)


def owner(batch):
    """The data set that a batch is from, which is one."""
    (number,) = {value // 100 for value in batch}
    return number


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def flat(batches):
    return [value for batch in batches for value in batch]


def pair(**arguments):
    """Semantic segmentation of one tiny data set and depth in another one, which is smaller."""
    semantic, depth = make_tasks(plain=True)
    settings = {"batch_size": 4, "augment": arguments.pop("augment", None)}
    settings["num_workers"] = arguments.pop("num_workers", 0)
    datasets = {
        "classes": TinyData([semantic], sizes=(16, 5, 3), **settings),
        "metres": TinyData([depth], sizes=(8, 3, 2), **settings),
    }
    return PerTask(datasets, **arguments)


def module_of(data, **training):
    torch.manual_seed(0)
    network = ToyNetwork(data.tasks, [task.name for task in data.tasks])
    return ms.MultiTask(network, data.tasks, **{"optimizer": SGD, **training})


# One data set after another


def test_batches_never_mix_and_hold_every_image_once_an_epoch():
    loader = numbers(12, 4, 9, batch_sizes=(2, 4, 3)).train_dataloader()
    epochs = [epoch_of(loader, epoch) for epoch in range(3)]
    for batches in epochs:
        sizes = [(owner(batch), len(batch)) for batch in batches]
        assert sorted(sizes) == [(0, 2)] * 6 + [(1, 4)] + [(2, 3)] * 3
        assert sorted(flat(batches)) == [*range(12), *range(100, 104), *range(200, 209)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_of_a_data_set_are_spread_evenly():
    for seed in range(5):
        batches = epoch_of(numbers(12, 4, seed=seed).train_dataloader(), seed)
        owners = [owner(batch) for batch in batches]
        assert sorted(owners[:4]) == sorted(owners[4:]) == [0, 0, 0, 1]


def test_the_order_depends_on_seed_and_epoch_only():
    def orders(seed):
        loader = numbers(8, 8, seed=seed).train_dataloader()
        return [epoch_of(loader, epoch) for epoch in range(4)]

    first = orders(0)
    torch.manual_seed(5)
    assert orders(0) == first != orders(1)
    assert epoch_of(numbers(8, 8).train_dataloader(), 3) == first[3]


def test_processes_share_every_step(world):
    for together in (False, True):
        whole = numbers(16, 7, batch_sizes=(4, 4), together=together).train_dataloader()
        shares = []
        for rank in range(2):
            world(rank, 2)
            shares.append(numbers(16, 7, batch_sizes=(2, 2), together=together).train_dataloader())
        for epoch in range(2):
            one, two = ([*map(steps_of, epoch_of_rank(world, shares, rank, epoch))] for rank in range(2))
            world(0, 1)
            expected = [*map(steps_of, epoch_of(whole, epoch))]
            assert len(one) == len(two) == len(expected)
            for a, b, both in zip(one, two, expected):
                assert [owner(part) for part in a] == [owner(part) for part in b]
                assert not set(flat(a)) & set(flat(b))
                assert [{*x, *y} for x, y in zip(a, b)] == [set(part) for part in both]


def epoch_of_rank(world, shares, rank, epoch):
    world(rank, 2)
    return epoch_of(shares[rank], epoch)


def steps_of(batch):
    return batch["parts"] if isinstance(batch, dict) else [batch]


@pytest.mark.parametrize("hook", ["val_dataloader", "test_dataloader"])
def test_evaluation_takes_every_image_once_and_in_order(world, hook):
    for together in (False, True):
        for size in (1, 2, 3):
            seen = []
            for rank in range(size):
                world(rank, size)
                loader = getattr(numbers(5, 1, 4, batch_sizes=(2, 2, 3), together=together), hook)()
                batches = list(loader)
                assert len(batches) == len(loader)
                assert [owner(batch) for batch in batches] == sorted(map(owner, batches))
                seen += flat(batches)
            assert sorted(seen) == [*range(5), 100, *range(200, 204)]


def test_worker_processes_give_the_same_batches():
    settings = {"augment": ms.data.Augment(flip=0.5), "together": True}
    data = [pair(num_workers=workers, **settings) for workers in (0, 1)]
    epochs = []
    for one in data:
        one.setup()
        loader = one.train_dataloader()
        epochs.append(torch.cat([part["image"] for batch in epoch_of(loader, 2) for part in batch["parts"]]))
    assert loader.num_workers == 1
    assert torch.equal(*epochs)
    data[0].train_dataloader().sampler.set_epoch(3)
    assert [part.train_dataset.epoch for part in data[0].datasets.values()] == [3, 3]


# All together


def test_together_a_step_has_a_batch_of_each_and_smaller_sets_start_over():
    loader = numbers(12, 4, batch_sizes=(2, 2), together=True).train_dataloader()
    for epoch in range(2):
        steps = [batch["parts"] for batch in epoch_of(loader, epoch)]
        assert len(steps) == 6 and all([owner(part) for part in step] == [0, 1] for step in steps)
        assert sorted(flat(step[0] for step in steps)) == list(range(12))
        rounds = [flat(step[1] for step in steps[i : i + 2]) for i in (0, 2, 4)]
        assert all(sorted(found) == list(range(100, 104)) for found in rounds)
        assert any(one != other for one, other in pairwise(rounds))


def test_together_the_gradient_is_the_sum_of_the_parts():
    semantic, depth = make_tasks(plain=True, semantic=0.5, depth=3.0)
    data = pair(together=True)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    module = module_of(data, schedule=lambda progress: 1.0)
    module.tasks = [semantic, depth]
    before = [parameter.detach().clone() for parameter in module.net.parameters()]
    total = 0.0
    for task, part in zip(module.tasks, batch["parts"]):
        prediction = module.net(part["image"], [task.name])[task.name]
        amount, count = task.loss(prediction, part[task.name])
        total = total + task.weight * amount / count
    grads = torch.autograd.grad(total, list(module.net.parameters()))
    make_trainer(limit_val_batches=0).fit(module, Given(batch))
    for parameter, old, grad in zip(module.net.parameters(), before, grads):
        torch.testing.assert_close(parameter.detach(), old - 0.1 * grad)


def test_a_batch_that_both_groups_share_is_halved_part_by_part():
    class Watch(ToySearcher):
        def update(self, group, batch, batch_index):
            seen.append((group, [(len(part["image"]), set(part) - {"image"}) for part in batch["parts"]]))
            super().update(group, batch, batch_index)

        def train_data(self, datamodule):
            return datamodule

    seen = []
    data = pair(together=True)
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(Watch(data.tasks), data)
    halves = [(2, {"semantic"}), (2, {"depth"})]
    assert seen == [("weights", halves), ("arch", halves)]


# Weights and arch parameters on different images


def halves_of(data, epochs=3):
    """[group][epoch][step] of lists of batches."""
    loaders = data.train_dataloader()
    groups = (loaders["weights"], loaders["arch"])
    return [[[*map(steps_of, epoch_of(loader, epoch))] for epoch in range(epochs)] for loader in groups]


@pytest.mark.parametrize("together", [False, True])
def test_fixed_halves_of_each_data_set_stay_apart(together):
    weights, arch = halves_of(Bilevel(numbers(20, 8, together=together), arch_fraction=0.25))
    assert weights[0] != weights[1]
    parts = [{v for steps in group for step in steps for v in flat(step)} for group in (weights, arch)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == {*range(20), *range(100, 108)}
    assert (len(parts[1] & set(range(20))), len(parts[1] & set(range(100, 108)))) == (5, 2)
    again = halves_of(Bilevel(numbers(20, 8, together=together), arch_fraction=0.25))
    assert [weights, arch] == again


@pytest.mark.parametrize("together", [False, True])
def test_redrawn_halves_are_disjoint_in_every_step_and_of_the_same_data_sets(together):
    weights, arch = halves_of(Bilevel(numbers(16, 8, together=together), redraw=True))
    for epoch in zip(weights, arch):
        assert [len(steps) for steps in epoch] == [4, 4] if together else [6, 6]
        for one, other in zip(*epoch):
            assert [owner(part) for part in one] == [owner(part) for part in other]
            assert not set(flat(one)) & set(flat(other))
        assert {v for steps in epoch for step in steps for v in flat(step)} == {*range(16), *range(100, 108)}


# Trained and measured


def test_every_data_sets_tasks_are_trained_and_measured_by_their_own_images():
    data = pair()
    module = module_of(data)
    before = copy_state(module.net)
    make_trainer(limit_val_batches=0).fit(module, data)
    assert set(differing(before, copy_state(module.net))) == set(before)
    values = make_trainer().validate(module, data, verbose=False)[0]
    total = 0.0
    for part in data.datasets.values():
        (task,) = part.tasks
        alone = ms.MultiTask(module.net, [task])
        expected = make_trainer().validate(alone, part, verbose=False)[0]
        total += task.weight * expected.pop("val/loss")
        assert expected == {name: values.pop(name) for name in expected}
    assert values.keys() == {"val/loss"} and values["val/loss"] == pytest.approx(total)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("together", [False, True])
def test_a_resumed_search_ends_the_same(together, workers):
    data = pair(together=together, augment=ms.data.Augment(flip=0.5), num_workers=workers)
    check_resume(lambda tasks: ToySearcher(tasks, norm=True, dropout=0.2), data.tasks, data)


@pytest.mark.parametrize("together", [False, True])
def test_single_task_networks_are_trained_in_a_run(together, tmp_path):
    data = pair(together=together)
    baseline = ms.SingleTask(data.tasks, "test_resnet")
    result = ms.search(baseline, data, trainer=lambda stage: make_trainer(2), dir=tmp_path)
    for split in ("val", "test"):
        assert {"semantic", "depth", "loss"} == set(result.metrics[split])
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert {"train/weights/semantic", "train/weights/depth"} <= set(rows[0].split(","))


class Turns(ms.MultiTask):
    """One task's loss a step."""

    def active_tasks(self, labelled, batch_index):
        return [self.tasks[batch_index % 2]]


def test_a_step_may_take_one_tasks_loss():
    data = pair(together=True)
    torch.manual_seed(0)
    module = Turns(ToyNetwork(data.tasks, []), data.tasks, optimizer=SGD)
    before = copy_state(module.net)
    with pytest.raises(ValueError, match=r"Task 'depth' had no label in the whole of epoch 0.*more batches"):
        make_trainer(limit_train_batches=1, limit_val_batches=0).fit(module, data)
    assert not [name for name in differing(before, copy_state(module.net)) if "depth" in name]
    make_trainer(limit_val_batches=0).fit(Turns(ToyNetwork(data.tasks, []), data.tasks), data)


def test_a_step_without_a_target_of_its_tasks_says_so():
    data = pair()
    module = Turns(ToyNetwork(data.tasks, []), data.tasks)
    with pytest.raises(ValueError, match=r"takes the losses of \['(depth|semantic)'\].*together=True"):
        make_trainer(limit_val_batches=0).fit(module, data)


def test_a_loss_that_is_not_finite_names_its_task():
    data = pair(together=True)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    batch["parts"][1]["image"][:] = torch.nan
    with pytest.raises(ValueError, match="The loss of 'depth' is nan at epoch 0, batch 0"):
        make_trainer(limit_val_batches=0).fit(module_of(data), Given(batch))


def test_unpack_adapts_every_part():
    data = pair(together=True)
    unpacked = []

    def unpack(batch):
        unpacked.append(set(batch) - {"image"})
        return batch

    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(module_of(data, unpack=unpack), data)
    assert unpacked == [{"semantic"}, {"depth"}]


# What it is made of


def test_tasks_are_the_union_in_order_or_those_that_are_named():
    assert [task.name for task in numbers(4, 4, 4).tasks] == ["semantic", "depth", "normals"]
    some = numbers(4, 4, 4, tasks=["normals", "semantic"])
    assert [task.name for task in some.tasks] == ["normals", "semantic"]
    assert list(some.datasets) == ["set0", "set2"]
    assert {owner(batch) for batch in some.train_dataloader()} == {0, 2}


def test_samples_are_those_of_all():
    data = pair()
    labels = [set(sample) & {"semantic", "depth"} for sample in map(dict, data.samples("val"))]
    assert len(labels) == 5 + 3


def test_what_is_wrong_is_said_with_the_data_sets_names():
    same = {"photos": Numbers("depth", 0, 4, 2), "sketches": Numbers("depth", 100, 4, 2)}
    with pytest.raises(ValueError, match="'photos' and 'sketches' both label a task 'depth': rename"):
        PerTask(same)
    with pytest.raises(ValueError, match="No data set labels a task 'dept': there are semantic, depth"):
        numbers(4, 4, tasks=["dept"])
    with pytest.raises(ValueError, match="at least one data set"):
        PerTask({})
    with pytest.raises(ValueError, match="Data set 'set1': 1 training images are too few"):
        Bilevel(numbers(4, 1), redraw=True).train_dataloader()
    stream = PerTask({"stream": Numbers("depth", 0, 4, None)})
    with pytest.raises(ValueError, match="Data set 'stream': PerTask needs a DataLoader with a batch_size"):
        stream.train_dataloader()


def test_one_data_set_is_enough():
    data = PerTask({"classes": TinyData(make_tasks("semantic"))})
    module = module_of(data)
    make_trainer().fit(module, data)
    assert "val/semantic/miou" in module.trainer.callback_metrics
