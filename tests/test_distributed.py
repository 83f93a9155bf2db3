"""Two processes search as one would: the same arch parameters on both, and the same step as one process's.

Both processes are started once; each runs every case below and leaves what it ended with in a file.
"""

from __future__ import annotations

import os
import socket
from functools import partial

import pytest
import torch
from torch import multiprocessing, nn

import mtlsearch as ms
from mtlsearch.balancing import DynamicWeightAverage, ParetoMTL, Uncertainty, torchjd
from mtlsearch.data.sampling import processes
from mtlsearch.namespace import pl
from mtlsearch.nn.detection import priors
from mtlsearch.tasks.detection import assign
from mtlsearch.tasks.metrics import shared
from tiny import SGD, BoxData, TinyData, ToySearcher, make_tasks, make_trainer


class FrozenNorms(pl.Callback):
    """BatchNorm by its running statistics, which do not move, so that a batch may be cut in two."""

    def on_train_epoch_start(self, trainer, module):
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()


def toy(**arguments):
    return ToySearcher(**{"relaxation": "concrete", "arch_optimizer": partial(SGD, lr=1.0), **arguments})


def convnext(**arguments):
    tasks = make_tasks("semantic", "depth", "normals")
    space = {"within_stage": False, "max_distance": 1, "single_task": False, "init_w_ti": 0.7}
    optimizers = {"optimizer": SGD, "arch_optimizer": partial(SGD, lr=1.0)}
    return ms.MTLNAS(
        tasks, "test_convnext", relaxation="concrete", logits_std=0.5, **space, **optimizers, **arguments
    )


def policies(estimator="gumbel"):
    tasks = make_tasks("semantic", "depth", "normals")
    optimizers = {"optimizer": SGD, "arch_optimizer": partial(SGD, lr=1.0)}
    return ms.AdaShare(tasks, "test_convnext", warmup=0.0, curriculum=0.5, estimator=estimator, **optimizers)


def cells(**arguments):
    tasks = make_tasks()
    optimizers = {"optimizer": SGD, "arch_optimizer": partial(SGD, lr=1.0)}
    stack = {"channels": 4, "cells": 3, "reductions": [1]}
    return ms.MTNAS(tasks, relaxation="concrete", **stack, **optimizers, **arguments)


def sluice():
    tasks = make_tasks("semantic", "depth", "normals")
    slow = partial(SGD, lr=0.01)  # a cosine of small features is steep, and lets rounding grow
    return ms.Sluice(tasks, "test_convnext", orthogonality=0.01, single_task=False, optimizer=slow)


def channels(**arguments):
    tasks = make_tasks("semantic", "depth", "normals")
    optimizers = {"optimizer": SGD, "arch_optimizer": partial(SGD, lr=1.0)}
    return ms.DEN(tasks, "test_convnext", warmup=0.0, arch_fraction=0.5, **optimizers, **arguments)


def attention(**arguments):
    return ms.MTAN(make_tasks("semantic", "depth", "normals"), "test_resnet", optimizer=SGD, **arguments)


def triple(**arguments):
    names = ["floor", "wall", "dark", "light"]
    tasks = [
        ms.tasks.detection(num_classes=3, class_names=["dark", "light", "none"]),
        ms.tasks.segmentation("semantic", num_classes=4, class_names=names),
    ]
    return ms.TripleNet(tasks, "test_resnet", width=8, optimizer=SGD, **arguments)


def adam(**arguments):
    return ms.MTLNAS(make_tasks(), "test_resnet", relaxation="concrete", single_task=False, **arguments)


def lacking(batch):
    """The batch without the second rank's targets of depth."""
    rank, world = processes()
    if world == 1:
        batch["depth"][1::2] = torch.nan
    elif rank == 1:
        del batch["depth"]
    return batch


def one(tasks, batch_size, **missing):
    """A data set, less the labels of some training images."""
    return TinyData(tasks, batch_size=batch_size, missing=missing, sizes=(8, 5, 3))


def boxes(**arguments):
    return toy(tasks=[ms.tasks.detection(num_classes=3), *make_tasks("depth", plain=True)], **arguments)


def boxed(tasks, batch_size, **missing):
    """A data set with boxes; every third image has none."""
    return BoxData(tasks, batch_size=batch_size, missing=missing, sizes=(8, 5, 3))


def two(tasks, batch_size, together):
    """A data set a task; the second rank has no image of the last one to validate on."""
    parts = [
        TinyData([task], batch_size=batch_size, sizes=sizes)
        for task, sizes in zip(tasks, ((16, 5, 3), (8, 1, 1)))
    ]
    return ms.data.PerTask({task.name: part for task, part in zip(tasks, parts)}, together=together)


# By case: the searcher and the data. Each rank sees two images a step, so one labelled image means that in every
# step a rank, or both, has none.
CASES = {
    "all labelled": (toy, one),
    "a rank without labels": (toy, partial(one, depth=(0, 1, 2, 3, 4, 5, 6))),
    "a rank without a target": (partial(toy, unpack=lacking), one),
    "accumulated and clipped": (partial(toy, accumulate=2, clip=0.05), partial(one, semantic=(1, 2, 5))),
    "a backbone": (convnext, partial(one, depth=(0, 3, 4, 7), normals=(1, 2, 3, 4, 5, 6, 7))),
    "calibrated norms": (partial(convnext, fusion_bn_init="identity"), one),
    "policies": (policies, partial(one, depth=(0, 3, 4, 7))),
    "policies by policy gradients": (partial(policies, "reinforce"), partial(one, depth=(0, 3, 4, 7))),
    "cells": (cells, partial(one, depth=(0, 3, 4, 7))),
    "cells, second order": (partial(cells, second_order=True), one),
    "channels by policy gradients": (channels, partial(one, depth=(0, 3, 4, 7))),
    "attention": (attention, partial(one, depth=(0, 3, 4, 7), normals=(1, 2, 3, 4, 5, 6, 7))),
    "three supervisions": (triple, partial(boxed, detection=(1, 2, 5, 6), semantic=(0, 1, 2, 4, 5, 6, 7))),
    "norms at work, Adam": (adam, partial(one, depth=(0, 1, 2, 3, 4, 5, 6))),
    "uncertainty": (
        partial(toy, balancing=Uncertainty(lr_factor=10)),
        partial(one, depth=(0, 1, 2, 3, 4, 5, 6)),
    ),
    "dynamic weights": (partial(toy, balancing=DynamicWeightAverage()), partial(one, depth=(0, 3, 4, 7))),
    "gradients": (partial(toy, balancing=torchjd("UPGrad"), unpack=lacking), one),
    "gradients, accumulated": (
        partial(toy, balancing=torchjd("NashMTL"), accumulate=2, clip=0.05),
        partial(one, depth=(0, 1, 2, 3, 4, 5, 6)),
    ),
    "gradients by chance": (
        partial(convnext, balancing=torchjd("GradDrop")),
        partial(one, depth=(0, 3, 4, 7), normals=(1, 2, 3, 4, 5, 6, 7)),
    ),
    "a preference": (partial(toy, balancing=ParetoMTL((1, 3))), partial(one, semantic=(0, 1, 2, 3, 4, 5, 7))),
    "units between networks": (sluice, partial(one, depth=(0, 3, 4, 7), normals=(1, 2, 3, 4, 5, 6, 7))),
    "boxes": (boxes, partial(boxed, detection=(1, 2, 5, 6))),
    "a data set a task": (toy, partial(two, together=False)),
    "a data set a task, together": (toy, partial(two, together=True)),
}


def train(case, batch_size, **trainer):
    make, make_data = CASES[case]
    searcher = make()
    data = make_data(searcher.tasks, batch_size)
    callbacks = [] if make is adam else [FrozenNorms()]
    trainer = make_trainer(2, callbacks=callbacks, **trainer)
    trainer.fit(searcher, searcher.train_data(data))
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    state = searcher.net.state_dict() | searcher.balancing.state_dict()
    return {
        "state": state,
        "metrics": values,
        "derived": searcher.derive().to_json(),
        "images": searcher.images.by_group,
    }


def average_precision(shares, rank):
    """Of five images' boxes by rank, with wrong predictions among them."""
    data = BoxData([ms.tasks.detection(num_classes=2)], sizes=(1, 5, 1))
    data.setup()
    target = data.collate(data.samples("val"))["detection"]
    places = priors((32, 32), torch.zeros(1, 1, 16, 16), [(0.3, 0.3)])
    codes, classes = zip(*(assign(label, places) for label in target))
    exact = torch.cat([torch.stack(codes), 2 * torch.nn.functional.one_hot(torch.stack(classes), 3)], dim=2)
    wrong = exact + torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    prediction = torch.cat([wrong[..., :4], places.expand(5, -1, 4), wrong[..., 4:]], dim=2)
    metrics = [make() for make in data.tasks[0].metrics.values()]
    for metric in shared(metrics):
        for i in shares[rank]:
            metric.update(prediction[i : i + 1], target[i : i + 1])
        metric._update_count = 1  # no warning where a rank has none
    return torch.stack([metric.compute() for metric in metrics])


SHARES = {"uneven": ([0, 2, 3], [1, 4]), "all on one": ([0, 1, 2, 3, 4], [])}


def work(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    ddp = {"strategy": "ddp_find_unused_parameters_true", "devices": 2}
    for case in CASES:
        torch.manual_seed(rank)
        torch.save(train(case, 2, **ddp), folder / f"{case}-{rank}.pt")
    torch.save(
        [average_precision(shares, rank) for shares in SHARES.values()], folder / f"precision-{rank}.pt"
    )
    searcher = toy()
    result = ms.search(
        searcher,
        TinyData(searcher.tasks, batch_size=2),
        trainer=lambda stage: make_trainer(1, **ddp),
        dir=folder / "run",
    )
    torch.save(result.metrics, folder / f"run-{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of what two processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, folder), nprocs=2)
    return folder


def ended(folder, case):
    return [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_end_with_the_same_arch_parameters_weights_and_statistics(both, case):
    one, two = ended(both, case)
    own = ("logits", "alpha", "level_offset", "masks")
    assert any(part in name for name in one["state"] for part in own)
    for name in one["state"]:
        assert torch.equal(one["state"][name], two["state"][name]), name
    assert all(one[name] == two[name] for name in ("derived", "metrics", "images"))


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] is not adam])
def test_two_processes_equal_one_with_the_same_global_batch(both, case):
    two, one = ended(both, case)[0], train(case, 4)
    assert two["images"] == one["images"] and any(one["images"]["weights"].values())
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, atol=1e-5, rtol=1e-5, msg=name)
    # Average precision jumps where two scores change places.
    assert two["metrics"] == pytest.approx(one["metrics"], abs=0.01 if case == "boxes" else 1e-4)


def test_average_precision_is_over_the_images_of_both(both):
    alone = average_precision([[0, 1, 2, 3, 4]], 0)
    assert 0.05 < alone[0] < alone[1] < 0.999
    for rank in range(2):
        for found in torch.load(both / f"precision-{rank}.pt", weights_only=True):
            torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)


def test_the_first_of_two_processes_writes_the_run(both):
    first, second = (torch.load(both / f"run-{rank}.pt", weights_only=True) for rank in range(2))
    assert first["val"] == second["val"] and "cost" in first
    files = {path.name for path in (both / "run").iterdir()}
    assert files == {"architecture.json", "model.safetensors", "metrics.json", "metrics.csv", "search"}
