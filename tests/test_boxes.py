"""Boxes: what a label of them is, how they move with the image, and how files hold them."""

import numpy as np
import pytest
import torch

from mtlsearch import tasks
from mtlsearch.data.augment import Augment, resize
from mtlsearch.data.collate import Collate
from mtlsearch.task import Task, has_labels
from mtlsearch.tasks.boxes import KEPT, Boxes
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


def mask_box(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def painted(height=48, width=64, box=(20, 12, 40, 30)):
    """An image with one box, which is a rectangle in its class map."""
    left, top, right, bottom = box
    ids = np.zeros((height, width), np.int64)
    ids[top:bottom, left:right] = 1
    image = (ids[..., None] * np.array([200, 100, 50])).astype(np.uint8)
    return {"image": image, "semantic": ids, "boxes": make(box, labels=[1])}


TARGETS = {"boxes": TARGET, "semantic": tasks.ClassMap(2)}


class TestMoves:
    def test_a_flip_mirrors_and_two_are_none(self):
        flip, sample = Augment(flip=1.0), painted(box=(3, 12, 10, 30))
        once = flip(sample, TARGETS, seed=0)
        assert once["boxes"]["boxes"].tolist() == [[54, 12, 61, 30]] and once["boxes"]["labels"].tolist() == [
            1
        ]
        assert flip(once, TARGETS, seed=1)["boxes"]["boxes"].tolist() == [[3, 12, 10, 30]]
        assert sample["boxes"]["boxes"].tolist() == [[3, 12, 10, 30]]

    @pytest.mark.parametrize("crop", [(30, 40), (64, 80), (30, 90)])
    def test_a_crop_and_a_flip_leave_the_box_of_the_mask(self, crop):
        dropped = 0
        for seed in range(40):
            moved = Augment(crop=crop, flip=0.5)(painted(), TARGETS, seed)
            boxes, mask = moved["boxes"]["boxes"], moved["semantic"] == 1
            if len(boxes):
                assert boxes.tolist() == [mask_box(mask)]
            else:
                dropped += 1
                assert mask.sum() < KEPT * 20 * 18
        assert dropped < 20

    @pytest.mark.parametrize("seed", range(20))
    def test_zoom_crop_and_flip_agree_with_the_mask_to_a_pixel(self, seed):
        moved = Augment(scale=(0.4, 2.5), crop=(50, 50), flip=0.5)(painted(), TARGETS, seed)
        for box in moved["boxes"]["boxes"]:
            np.testing.assert_allclose(box, mask_box(moved["semantic"] == 1), atol=1)

    @pytest.mark.parametrize("seed", range(20))
    def test_a_turned_square_stands_on_its_corner(self, seed):
        sample = painted(60, 60, box=(20, 20, 40, 40))
        moved = Augment(rotate=90, scale=(0.8, 1.4), flip=0.5)(sample, TARGETS, seed)
        (box,) = moved["boxes"]["boxes"]
        np.testing.assert_allclose(box, mask_box(moved["semantic"] == 1), atol=1.5)

    def test_a_turn_by_hand(self):
        quarter = np.array([[0, -1, 10], [1, 0, 0]])  # (x, y) -> (10 - y, x)
        moved = TARGET.move(make([1, 2, 5, 4]), quarter, (8, 10))
        assert moved["boxes"].tolist() == [[6, 1, 8, 5]]

    def test_what_is_mostly_outside_or_thin_is_dropped(self):
        left = np.array([[1.0, 0, -10], [0, 1, 0]])
        label = make(
            [0, 0, 10, 5], [7.2, 0, 17.2, 5], [6.8, 0, 16.8, 5], [9.1, 0, 10.1, 5], labels=[0, 1, 0, 1]
        )
        moved = TARGET.move(label, left, (5, 20))
        np.testing.assert_allclose(moved["boxes"], [[0, 0, 7.2, 5], [0, 0, 6.8, 5]], atol=1e-5)
        assert moved["labels"].tolist() == [1, 0]
        half = np.array([[0.5, 0, 0], [0, 0.5, 0]])
        moved = TARGET.move(make([0, 0, 1.9, 5], [2, 2, 4, 4]), half, (5, 20))
        assert moved["boxes"].tolist() == [[1, 1, 2, 2]]

    def test_resizing_scales_each_side(self):
        small = resize(painted(), TARGETS, (24, 16))
        assert small["boxes"]["boxes"].tolist() == [[5, 6, 10, 15]]
        assert mask_box(small["semantic"] == 1) == [5, 6, 10, 15]

    def test_no_boxes_and_no_label(self):
        moved = Augment(rotate=30)(painted() | {"boxes": make()}, TARGETS, seed=0)
        TARGET.check(moved["boxes"], (48, 64))
        assert moved["boxes"]["boxes"].shape == (0, 4)
        assert Augment()(painted() | {"boxes": None}, TARGETS, seed=0)["boxes"] is None
