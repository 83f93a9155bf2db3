"""Which images a batch holds: order, disjoint batches, and what is there where a label is missing."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import mtlsearch as ms
from mtlsearch.data import Bilevel, Collate, sampling
from mtlsearch.data.sampling import InOrder, Shuffled
from mtlsearch.namespace import pl
from mtlsearch.testing import check_resume
from tiny import TinyData, ToySearcher, make_sample, make_tasks


@pytest.fixture
def world(monkeypatch):
    """`world(rank, size)` makes this process one of several."""

    def be(rank, size):
        monkeypatch.setattr(sampling, "processes", lambda: (rank, size))

    return be


class Items:
    """The numbers 0 to n - 1 as a data set."""

    def __init__(self, n):
        self.n = n
        self.epochs = []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return index

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class Numbers(pl.LightningDataModule):
    def __init__(self, n, batch_size):
        super().__init__()
        self.items, self.batch_size = Items(n), batch_size

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(Items(3))


def epochs(sampler, count):
    orders = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert len(orders[-1]) == len(sampler)
    return orders


# Sampling


def test_order_depends_on_seed_and_epoch_only():
    def orders(seed):
        return epochs(Shuffled(Items(12), seed=seed, batch_size=4), 3)

    first = orders(0)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    assert orders(0) == first != orders(1)
    assert all(sorted(order) == list(range(12)) for order in first)
    assert first[0] != first[1] != first[2]
    sampler = Shuffled(Items(12), seed=0, batch_size=4)
    sampler.set_epoch(2)
    assert list(sampler) == first[2]


def test_what_does_not_fill_a_batch_waits_for_another_epoch():
    orders = epochs(Shuffled(Items(10), seed=0, batch_size=4), 20)
    assert {len(order) for order in orders} == {8}
    assert set().union(*orders) == set(range(10))


def test_a_set_smaller_than_a_batch_is_one_batch():
    assert [sorted(order) for order in epochs(Shuffled(Items(3), seed=0, batch_size=8), 2)] == [[0, 1, 2]] * 2


def test_the_data_set_learns_the_epoch():
    items = Items(4)
    epochs(Shuffled(items, seed=0, batch_size=2), 3)
    assert items.epochs == [0, 1, 2]
    Shuffled(range(4), seed=0, batch_size=2).set_epoch(1)


@pytest.mark.parametrize("part", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("n", [16, 19, 7])
def test_processes_share_the_step_that_one_would_take(world, n, part):
    whole = epochs(Shuffled(Items(n), seed=3, batch_size=4, part=part), 2)
    shares = []
    for rank in range(2):
        world(rank, 2)
        shares.append(epochs(Shuffled(Items(n), seed=3, batch_size=2, part=part), 2))
    for epoch in range(2):
        one, two = shares[0][epoch], shares[1][epoch]
        assert len(one) == len(two) and not set(one) & set(two)
        steps = [set(one[i : i + 2] + two[i : i + 2]) for i in range(0, len(one), 2)]
        if n >= 4 * part[1]:
            assert steps == [set(whole[epoch][i : i + 4]) for i in range(0, len(whole[epoch]), 4)]


def test_too_few_images_are_an_error_that_says_so(world):
    with pytest.raises(ValueError, match="1 training images are too few for 2 disjoint batches"):
        Shuffled(Items(1), seed=0, batch_size=4, part=(0, 2))
    world(0, 2)
    with pytest.raises(ValueError, match="too few for 1 disjoint batches in 2 process"):
        Shuffled(Items(1), seed=0, batch_size=4)


@pytest.mark.parametrize("n", [1, 5, 6])
def test_evaluation_takes_every_image_once_on_any_number_of_processes(world, n):
    for size in (1, 2, 3):
        seen = []
        for rank in range(size):
            world(rank, size)
            sampler = InOrder(Items(n))
            seen += list(sampler)
            assert len(list(sampler)) == len(sampler)
        assert sorted(seen) == list(range(n))


def test_lightning_keeps_the_samplers():
    # It puts a DistributedSampler of its own, which pads and forgets the parts, in the place of others.
    for sampler in (Shuffled(Items(4), seed=0, batch_size=2), InOrder(Items(4))):
        assert isinstance(sampler, torch.utils.data.distributed.DistributedSampler)


# Bilevel


def bilevel_epochs(datamodule, count):
    """[epoch][step] = (images for the weights, images for the arch parameters)."""
    loaders = datamodule.train_dataloader()
    result = []
    for epoch in range(count):
        for loader in loaders.values():
            loader.sampler.set_epoch(epoch)
        steps = zip(loaders["weights"], loaders["arch"])
        result.append([(set(w.tolist()), set(a.tolist())) for w, a in steps])
    return result


def test_redrawn_batches_are_disjoint_and_cover_everything_in_an_epoch():
    orders = bilevel_epochs(Bilevel(Numbers(24, 3), redraw=True), 3)
    for steps in orders:
        assert len(steps) == 4
        assert not any(weights & arch for weights, arch in steps)
        assert set().union(*(weights | arch for weights, arch in steps)) == set(range(24))
    for group in range(2):  # over the epochs every image is for both
        assert len(set().union(*(step[group] for steps in orders for step in steps))) > 12


def test_redrawn_batches_cover_what_does_not_divide_over_the_epochs():
    orders = bilevel_epochs(Bilevel(Numbers(7, 2), redraw=True), 12)
    assert set().union(*(w | a for steps in orders for w, a in steps)) == set(range(7))


@pytest.mark.parametrize("fraction, sizes", [(0.5, (10, 10)), (0.2, (16, 4))])
def test_fixed_parts_stay_apart_for_the_whole_search(fraction, sizes):
    orders = bilevel_epochs(Bilevel(Numbers(20, 2), arch_fraction=fraction), 3)
    loaders = Bilevel(Numbers(20, 2), arch_fraction=fraction).train_dataloader()
    parts = [set(loaders[group].sampler.indices.tolist()) for group in ("weights", "arch")]
    assert tuple(map(len, parts)) == sizes and not parts[0] & parts[1]
    for steps in orders:
        for step in steps:
            assert step[0] <= parts[0] and step[1] <= parts[1]
    assert orders[0] != orders[1]


def test_the_split_depends_on_the_seed():
    assert bilevel_epochs(Bilevel(Numbers(20, 2)), 2) == bilevel_epochs(Bilevel(Numbers(20, 2)), 2)
    assert bilevel_epochs(Bilevel(Numbers(20, 2)), 2) != bilevel_epochs(Bilevel(Numbers(20, 2), seed=1), 2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, 2])
def test_a_part_must_be_a_part(fraction):
    with pytest.raises(ValueError, match="arch_fraction must lie between 0 and 1"):
        Bilevel(Numbers(4, 2), arch_fraction=fraction)


def test_bilevel_says_what_it_needs():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(4)

    numbers = Numbers(4, 2)
    for loader in (DataLoader(Stream()), [1, 2], DataLoader(Items(4), batch_size=None)):
        numbers.train_dataloader = lambda loader=loader: loader
        with pytest.raises(ValueError, match="Bilevel needs a DataLoader with a batch_size over a data set"):
            Bilevel(numbers).train_dataloader()


def test_bilevel_hands_on_the_rest():
    numbers = Numbers(4, 2)
    assert list(Bilevel(numbers).val_dataloader()) == [0, 1, 2]


# Samples and batches


def test_a_missing_label_is_an_unlabelled_one():
    tasks = make_tasks("semantic", "depth", "normals")
    samples = [make_sample([i]) for i in range(3)]
    samples[1]["depth"] = None
    del samples[2]["semantic"]
    batch = Collate({task.name: task.target for task in tasks})(samples)
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "image": (3, 3, 32, 32),
        "semantic": (3, 32, 32),
        "depth": (3, 1, 32, 32),
        "normals": (3, 3, 32, 32),
    }
    assert batch["depth"][1].isnan().all() and (batch["semantic"][2] == 255).all()
    np.testing.assert_array_equal(batch["normals"][1], samples[1]["normals"])


def test_a_task_that_no_image_is_labelled_for_is_there():
    (task,) = make_tasks("depth")
    batch = Collate({"depth": task.target})([{"image": make_sample([0])["image"]}])
    assert batch["depth"].shape == (1, 1, 32, 32) and batch["depth"].isnan().all()


def test_images_are_floats_from_0_to_1_in_rgb():
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 1] = (255, 51, 0)
    batch = Collate({})([{"image": image}])["image"]
    assert batch.shape == (1, 3, 2, 2) and batch.dtype == torch.float32
    torch.testing.assert_close(batch[0, :, 0, 1], torch.tensor([1.0, 0.2, 0.0]))
    assert batch.sum() == pytest.approx(1.2)


def test_images_of_different_sizes_are_an_error_that_says_so():
    samples = [make_sample([0], size=32), make_sample([0], size=16)]
    with pytest.raises(ValueError, match=r"differ in size: \[\(16, 16\), \(32, 32\)\]"):
        Collate({})(samples)


def batches(datamodule, epoch):
    datamodule.setup()
    loader = datamodule.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return torch.cat([batch["image"] for batch in loader])


def test_augmentation_depends_on_seed_epoch_and_image_only():
    def images(epoch, **settings):
        return batches(TinyData(augment=ms.data.Augment(flip=0.5), **settings), epoch)

    first = images(1)
    np.random.seed(3)  # noqa: NPY002
    assert torch.equal(first, images(1))
    assert torch.equal(first, images(1, num_workers=1))
    assert not torch.equal(first, images(2)) and not torch.equal(first, images(1, seed=1))
    data = TinyData(augment=ms.data.Augment(flip=0.5))
    data.setup()
    versions = set()
    for epoch in range(8):
        data.train_dataset.set_epoch(epoch)
        versions.add(data.train_dataset[0]["image"].tobytes())
    assert len(versions) == 2


def test_validation_and_test_are_whole_in_order_and_as_they_are():
    data = TinyData(augment=ms.data.Augment(flip=1.0), batch_size=2)
    data.setup()
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        images = torch.cat([batch["image"] for batch in loader])
        expected = Collate({})(data.samples(split))["image"]
        assert torch.equal(images, expected)


def test_setting_up_twice_reads_once():
    data = TinyData()
    data.setup("fit")
    dataset = data.train_dataset
    data.setup("validate")
    assert data.train_dataset is dataset


def test_a_batch_has_at_least_one_image():
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        TinyData(batch_size=0)


class Whole(ToySearcher):
    """Halves every batch, in place of the data set."""

    def train_data(self, datamodule):
        return datamodule


@pytest.mark.parametrize("searcher", [ToySearcher, Whole])
def test_a_resume_with_worker_processes_ends_the_same(searcher):
    # They start, with the order and the augmentation of some epoch, before Lightning tells a sampler of it.
    data = TinyData(num_workers=1, augment=ms.data.Augment(flip=0.5), sizes=(24, 2, 2))
    check_resume(searcher, data.tasks, data)
