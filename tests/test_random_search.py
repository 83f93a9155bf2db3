"""Random search draws evenly from any space, trains all alike, and chooses without the test data."""

import pytest
import torch

import mtlsearch as ms
from mtlsearch.baselines.random_search import uniform
from mtlsearch.nn.cells import check_pairs
from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.searchers.calibration import calibrate
from tiny import SGD, TinyData, ToySearcher, make_tasks, make_trainer

LAYOUT = {"channels": 4, "cells": 3, "reductions": [1], "detection_cells": 1}
SPACES = {
    "mtlnas": ("test_resnet", {}),
    "adashare": ("test_resnet", {}),
    "mtnas": (None, LAYOUT),
}


def make(space, tasks=None, **settings):
    backbone, arguments = SPACES[space]
    return ms.RandomSearch(
        tasks or make_tasks(),
        backbone,
        space=space,
        **{"arguments": arguments, "samples": 2, "optimizer": SGD, **settings},
    )


class OtherTest(TinyData):
    """The same training and validation images, other ones for the test."""

    def samples(self, split):
        return super().samples("another" if split == "test" else split)

    def __init__(self, *args, **others):
        super().__init__(*args, **others)
        self.sizes["another"] = self.sizes["test"]


@pytest.mark.parametrize("space", SPACES)
def test_every_sample_is_trained_and_the_best_on_validation_data_is_the_result(space, tmp_path):
    searcher = make(space, seed=1)
    result = ms.search(
        searcher, TinyData(searcher.tasks), trainer=lambda stage: make_trainer(1), dir=tmp_path
    )
    trained, chosen = result.metrics["retrained"], result.metrics["chosen"]
    before = ["single_task"] if space == "mtlnas" else []
    assert list(result.metrics["seconds"]) == [*before, "train_1", "train_2"]
    assert result.metrics["carried"] == [*before, f"train_{chosen + 1}"]
    assert result.metrics["val"]["loss"] == min(found["val"]["loss"] for found in trained)
    assert result.architecture == searcher.finalists()[chosen][0]
    assert len({architecture.to_json() for architecture, _ in searcher.finalists()}) == 2
    again, image = ms.load(tmp_path), torch.rand(1, 3, 32, 32)
    for name, prediction in result.network.eval()(image).items():
        assert torch.allclose(again(image)[name], prediction, atol=1e-5)


def test_samples_of_fusion_edges_start_from_the_same_single_task_networks():
    """As MTL-NAS's does: only their edges tell them apart, and all give what the single-task networks give."""
    searcher = make("mtlnas", seed=1, samples=3, arguments={"fusion_bn_momentum": 1.0})
    data = TinyData(searcher.tasks)
    single = searcher.first_stage()
    make_trainer(1).fit(single, data)
    stages = [searcher.next_stage(single)]
    while following := searcher.next_stage(stages[-1]):
        stages.append(following)
    assert [stage.stage for stage in stages] == ["train_1", "train_2", "train_3"]
    image = next(iter(data.train_dataloader()))["image"]
    wanted = single.net.train()(image)
    for stage in stages:
        assert stage.calibrates
        calibrate(stage.net, image)
        for name, prediction in stage.net.train()(image).items():
            assert torch.allclose(prediction, wanted[name], atol=1e-4)


def test_single_task_networks_of_another_run_are_taken_or_refused(tmp_path):
    single = ms.search(
        ms.SingleTask(make_tasks(), "test_resnet", optimizer=SGD, seed=4),
        TinyData(make_tasks()),
        trainer=lambda stage: make_trainer(1),
        dir=tmp_path,
    ).network.state_dict()
    searcher = make("mtlnas", init=tmp_path, samples=3)
    assert searcher.first_stage() is searcher
    for _, network in searcher.finalists():
        own = network.state_dict()
        assert all(torch.equal(own[key], value) for key, value in single.items())
    with pytest.raises(ValueError, match="init: the networks of this space do not start from"):
        make("adashare", init=tmp_path)


def test_the_choice_does_not_depend_on_test_data(tmp_path):
    runs = {}
    for data in (TinyData, OtherTest):
        searcher = make("mtlnas", seed=2, samples=3)
        dir = tmp_path / data.__name__
        runs[data] = ms.search(
            searcher, data(searcher.tasks), trainer=lambda stage: make_trainer(1), dir=dir
        ).metrics
    ours, other = runs.values()
    assert (ours["chosen"], ours["val"]) == (other["chosen"], other["val"])
    assert ours["test"] != other["test"]


def test_all_are_drawn_alike():
    space = ms.MTLNAS(make_tasks(), "test_resnet").search_space()
    draws = uniform(space, 300, seed=0)
    shares = [
        sum(edge in architecture.chosen() for architecture in draws) / len(draws) for edge in space.edges
    ]
    assert min(shares) > 0.38 and max(shares) < 0.62  # four standard deviations round one half


def test_cells_of_the_space_have_no_empty_edge_and_reach_every_operation():
    space = ms.MTNAS(make_tasks(), **LAYOUT).search_space()
    seen = set()
    for architecture in uniform(space, 30, seed=0):
        for cells in (architecture.backbone_cells, *architecture.branch_cells.values()):
            for pairs in cells.values():
                check_pairs(pairs)
                seen |= {operation for operation, _ in pairs}
    assert seen == set(OPERATIONS) - {"none"}


def test_branches_alone_are_the_space_on_a_given_backbone():
    searcher = ms.RandomSearch(
        make_tasks(), "test_resnet", space="mtnas", arguments={"channels": 4}, samples=2
    )
    first, second = (architecture for architecture, _ in searcher.finalists())
    assert first.backbone_cells is None and first.branch_cells != second.branch_cells


def test_a_space_of_your_own_and_one_that_has_fewer_architectures_than_samples():
    searcher = ms.RandomSearch(
        make_tasks(plain=True), space=lambda tasks, seed: ToySearcher(tasks), samples=9
    )
    assert len(searcher.finalists()) == 4  # two tasks, each on or off


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "nas"}, "space must be one of mtlnas, adashare, mtnas, or a function, not 'nas'"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"pretrained": True}, "pretrained needs a backbone"),
        ({"arguments": {"max_distance": 1, "entropy_weight": -1}}, "entropy_weight"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ms.RandomSearch(make_tasks(), **settings)
