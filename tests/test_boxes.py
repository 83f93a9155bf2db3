"""Boxes: what a label of them is, how they move with the image, and how files hold them."""

import numpy as np
import pytest
import torch

from mtlsearch import tasks
from mtlsearch.data.collate import Collate
from mtlsearch.task import Task, has_labels
from mtlsearch.tasks import Boxes
from mtlsearch.tasks.metrics import Mean

TARGET = Boxes(2, ["car", "dog"])


def make(*boxes, labels=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": np.array(labels or [0] * len(boxes), np.int64)}


class TestLabels:
    def test_a_batch_is_a_list_with_none_where_nobody_labelled(self):
        image = np.zeros((4, 6, 3), np.uint8)
        full, empty = make([1, 1, 3, 2], labels=[1]), make()
        batch = Collate({"boxes": TARGET})(
            [{"image": image, "boxes": full}, {"image": image}, {"image": image, "boxes": empty}]
        )
        one, none, nothing = batch["boxes"]
        assert one["boxes"].tolist() == [[1, 1, 3, 2]] and one["labels"].tolist() == [1]
        assert none is None and nothing["boxes"].shape == (0, 4)
        assert TARGET.labelled(batch["boxes"]).tolist() == [True, False, True]

    @pytest.mark.parametrize(("target", "expected"), [([None, None], False), ([None, make()], True)])
    def test_an_image_without_objects_is_labelled(self, target, expected):
        def nothing(*args):
            return torch.zeros(()), torch.zeros(())

        task = Task("boxes", TARGET, torch.nn.Identity, nothing, {"none": lambda: Mean(nothing)})
        assert has_labels(task, TARGET.collate(target)) is expected

    def test_what_is_right_passes(self):
        TARGET.check(make([0, 0, 6, 4], [0.5, 0.5, 1, 1], labels=[1, 0]), (4, 6))
        TARGET.check(make(), (4, 6))

    @pytest.mark.parametrize(
        ("label", "fault"),
        [
            (np.zeros((1, 4), np.float32), "a dict of boxes and labels: found ndarray"),
            ({"boxes": np.zeros((0, 4), np.float32)}, r"found \['boxes'\]"),
            (make([0, 0, 1, 1]) | {"labels": np.zeros(2, np.int64)}, r"labels of 1 boxes .* shape \(2,\)"),
            (make([0, 0, 1, 1]) | {"labels": np.zeros(1)}, "found float64"),
            (make() | {"boxes": np.zeros((0, 5), np.float32)}, r"shape \(n, 4\): found float32 of .*5"),
            (make() | {"boxes": np.zeros((0, 4))}, "found float64"),
            (make([0, 0, 1, 1], [2, 2, np.nan, 3]), r"Box 1, \[2.0, 2.0, nan, 3.0\], has numbers that"),
            (make([0, 3, 1, 3]), r"Box 0, \[0.0, 3.0, 1.0, 3.0\], has no area"),
            (make([2, 0, 1, 3]), "has no area: it is x1, y1, x2, y2"),
            (make([0, 0, 1, 1], labels=[2]), r"from 0 to 1: found \[2\]"),
            (make([5, 1, 9, 3]), "Box 0, .* most of its area outside the image of 4x6"),
        ],
    )
    def test_what_is_wrong_is_named(self, label, fault):
        with pytest.raises(ValueError, match=fault):
            TARGET.check(label, (4, 6))

    def test_boxes_over_the_border_are_cut_there(self):
        fitted = TARGET.fit(make([-1, -0.5, 3, 2], [4, 1, 7, 5]), (4, 6))
        assert fitted["boxes"].tolist() == [[0, 0, 3, 2], [4, 1, 6, 4]]

    @pytest.mark.parametrize("number", [0, -1, 2.0])
    def test_the_number_of_classes(self, number):
        with pytest.raises(ValueError, match="num_classes"):
            tasks.Boxes(number)
