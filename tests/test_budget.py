"""The labelled images that weights have seen: counted once an image, over stages, resumes and processes."""

from __future__ import annotations

import pytest
import torch

import mtlsearch as ms
from mtlsearch.budget import ImageCount, budget, labelled_images, training_seconds
from mtlsearch.task import Target
from tiny import BoxData, Killed, Stop, TinyData, ToySearcher, make_tasks, make_trainer


def find(searcher, dir, epochs=2, trainer=None, **data):
    data = data.pop("data", None) or TinyData(searcher.tasks, **data)
    return ms.search(searcher, data, trainer=trainer or (lambda stage: make_trainer(epochs)), dir=dir).metrics


def test_an_image_counts_once_whatever_number_of_entries_is_labelled():
    semantic, depth = (task.target for task in make_tasks())
    classes = torch.full((3, 4, 4), 255)
    classes[0], classes[1, 0, 0] = 1, 2
    assert int(labelled_images(semantic, classes)) == 2
    metres = torch.full((3, 1, 4, 4), torch.nan)
    metres[2, 0, 1:3] = 2.0
    assert int(labelled_images(depth, metres)) == 1
    boxes = ms.tasks.detection(num_classes=2).target
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert int(labelled_images(boxes, [nothing, None, nothing])) == 2  # an image without a thing is labelled
    assert labelled_images(Target(), torch.zeros(5, 2)) == 5
    scene = ms.tasks.classification("scene", num_classes=2).target
    assert int(labelled_images(scene, torch.tensor([0, -100, 1]))) == 2


def test_what_is_seen_adds_up_over_epochs_and_parts():
    count = ImageCount(make_tasks())
    known, unknown = torch.ones(2, 1, 4, 4), torch.full((1, 1, 4, 4), torch.nan)
    for _ in range(2):
        count.start(torch.device("cpu"))
        count.see("weights", [{"depth": torch.cat([known, unknown])}, {"depth": known}], ["depth"])
        count.see("arch", [{"depth": known}], ["semantic"])  # a step that does not take depth's loss
        count.finish()
    assert count.by_group["weights"] == {"semantic": 0, "depth": 8}
    assert count.by_group["arch"] == {"semantic": 0, "depth": 0}


def test_a_budget_by_hand():
    images = {
        "presearch": {"object": 50},
        "branch": {"a": 10},
        "backbone": {"a": 20, "b": 25},
        "finetune_1": {"a": 100, "b": 90},
        "finetune_2": {"a": 7, "b": 90},
    }
    carried = ["presearch", "branch", "backbone", "finetune_1"]
    found = budget(images, {"backbone": {"a": 5, "b": 6}}, carried, ["a", "b"])
    assert found == {"images": 50 + 130, "search_images": 96}
    metrics = {"seconds": dict.fromkeys(images, 1.5), "carried": carried}
    assert training_seconds(metrics) == (6.0, 1.5) and training_seconds({}) == (0, 0)


@pytest.mark.parametrize("parts", [{"missing": {"depth": (0, 3, 5)}}, {}])
def test_a_baseline_pays_for_all_that_it_saw(tmp_path, parts):
    metrics = find(ms.SingleTask(make_tasks(), "test_resnet"), tmp_path, **parts)
    depth = 2 * (8 - len(parts.get("missing", {}).get("depth", ())))
    assert metrics["images"] == {"single_task": {"semantic": 16, "depth": depth}}
    assert metrics["arch_images"] == {} and metrics["carried"] == ["single_task"]
    assert metrics["budget"]["images"] == 16 and metrics["budget"]["search_images"] == 0
    assert training_seconds(metrics) == (metrics["seconds"]["single_task"], 0)


def test_mtlnas_carries_both_stages_and_its_arch_updates_are_the_search(tmp_path):
    settings = {"within_stage": False, "samples": 0}
    metrics = find(ms.MTLNAS(make_tasks(), "test_resnet", **settings), tmp_path / "a")
    seen = {"semantic": 8, "depth": 8}  # half of the images in each of two epochs
    assert metrics["images"] == {"single_task": {"semantic": 16, "depth": 16}, "search": seen}
    assert metrics["arch_images"] == {"search": seen}
    assert metrics["budget"]["images"] == 24 and metrics["budget"]["search_images"] == 8

    find(ms.SingleTask(make_tasks(), "test_resnet"), tmp_path / "single")
    given = ms.MTLNAS(make_tasks(), "test_resnet", init=tmp_path / "single", **settings)
    metrics = find(given, tmp_path / "b")
    assert metrics["images"] == {"init": {"semantic": 16, "depth": 16}, "search": seen}
    assert metrics["carried"] == ["init", "search"] and metrics["budget"]["images"] == 24


@pytest.mark.parametrize("retrain", [True, False])
def test_adashare_carries_the_chosen_retraining_alone(tmp_path, retrain):
    searcher = ms.AdaShare(
        make_tasks(), "test_resnet", retrain=retrain, warmup=0, samples=2, sparsity_weight=0.0
    )
    metrics = find(searcher, tmp_path, epochs=1)
    seen = metrics["images"]
    if retrain:
        assert metrics["carried"] == [f"retrain_{metrics['chosen'] + 1}"] and len(seen) == 3
        assert metrics["budget"]["images"] == 8
        assert metrics["budget"]["search_images"] == 4 + 8 + 4  # weights, the other sample, policies
    else:
        assert metrics["carried"] == ["search"]
        assert metrics["budget"]["images"] == 4 and metrics["budget"]["search_images"] == 4


@pytest.mark.parametrize("second_order", [False, True])
def test_mtnas_carries_every_stage_whose_weights_fit(tmp_path, second_order):
    stack = {"channels": 4, "cells": 3, "reductions": [1], "auxiliary": TinyData(make_tasks("normals"))}
    searcher = ms.MTNAS(make_tasks(), second_order=second_order, **stack)
    metrics = find(searcher, tmp_path, epochs=1)
    assert metrics["carried"] == ["branch_semantic", "branch_depth", "presearch", "backbone", "finetune"]
    assert metrics["images"]["presearch"] == {"normals": 4}
    assert metrics["images"]["backbone"] == {"semantic": 4, "depth": 0}  # one step, which is semantic's
    # One task's branch, the auxiliary images that the backbone saw, one step in turn, the finetuning.
    assert metrics["budget"]["images"] == 4 + 4 + 4 + 8
    assert metrics["budget"]["search_images"] == 12 if second_order else metrics["arch_images"]


def test_of_random_candidates_the_others_are_the_search(tmp_path):
    searcher = ms.RandomPolicy(make_tasks(), "test_resnet", skips=1, samples=2)
    metrics = find(searcher, tmp_path, epochs=1)
    assert metrics["carried"] == [f"train_{metrics['chosen'] + 1}"]
    assert metrics["budget"]["images"] == 8 and metrics["budget"]["search_images"] == 8


def test_counts_survive_a_resume(tmp_path):
    whole = find(ToySearcher(), tmp_path / "whole", epochs=3)
    with pytest.raises(Killed):
        find(ToySearcher(), tmp_path / "cut", trainer=lambda stage: make_trainer(3, callbacks=[Stop(1)]))
    resumed = find(ToySearcher(), tmp_path / "cut", epochs=3)
    for name in ("images", "arch_images", "carried"):
        assert resumed[name] == whole[name]
    assert whole["images"] == {"search": {"semantic": 12, "depth": 12}}


def test_boxes_count_by_image(tmp_path):
    tasks = [ms.tasks.detection(num_classes=2), *make_tasks("depth", plain=True)]
    searcher = ToySearcher(tasks)
    metrics = find(searcher, tmp_path, epochs=1, data=BoxData(tasks, missing={"detection": (1, 2)}))
    counted = [metrics[name]["search"]["detection"] for name in ("images", "arch_images")]
    assert sum(counted) == 6
