from functools import partial

import pytest
import torch
from torchmetrics import Metric

import mtlsearch as ms
from mtlsearch.task import check_tasks, has_labels, metric_directions
from tiny import make_tasks


class Silent(Metric):
    """A metric that does not say whether higher is better."""

    def update(self, prediction, target): ...
    def compute(self): ...


@pytest.mark.parametrize("name", ["image", "pop", "keys", "two words", "", "1st"])
def test_names_that_no_batch_or_module_dict_can_hold_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a task"):
        ms.tasks.depth(name)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weights_below_zero_are_refused(weight):
    with pytest.raises(ValueError, match="weight must be at least 0"):
        ms.tasks.depth(weight=weight)


def test_names_must_differ_and_there_must_be_one():
    with pytest.raises(ValueError, match=r"must differ.*\['depth', 'depth'\]"):
        check_tasks(make_tasks("depth", "depth"))
    with pytest.raises(ValueError, match="No task is given"):
        check_tasks([])


def test_directions_are_the_metrics_own():
    assert metric_directions(make_tasks("semantic", "normals")) == {
        "semantic": {"miou": True, "pixel_accuracy": True},
        "normals": {
            "mean_angle": False,
            "median_angle": False,
            "within_11_25": True,
            "within_22_5": True,
            "within_30": True,
        },
    }


def test_a_metric_without_a_direction_is_named():
    depth = ms.tasks.depth()
    task = ms.Task("far", depth.target, depth.head, depth.loss, {"guess": partial(Silent)})
    with pytest.raises(ValueError, match=r"Metric 'guess' of task 'far'.*higher_is_better"):
        metric_directions([task])


def test_has_labels():
    (task,) = make_tasks("depth")
    target = torch.full((2, 1, 4, 4), torch.nan)
    assert not has_labels(task, target)
    target[1, 0, 2, 3] = 1.0
    assert has_labels(task, target)
