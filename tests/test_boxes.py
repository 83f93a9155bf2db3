"""Boxes: what a label of them is, how they move with the image, and how files hold them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mtlsearch import check_data, tasks
from mtlsearch.data.augment import Augment, resize
from mtlsearch.data.collate import Collate
from mtlsearch.data.encodings import Bdd100k, BoxesOf, Coco, Kitti, Segmentation, Voc
from mtlsearch.data.folder import Folder
from mtlsearch.run import compose_dataset
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


COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "categories": [{"id": 3, "name": "car"}, {"id": 18, "name": "dog"}, {"id": 5, "name": "van"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 1, 4, 3], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 5, "bbox": [10.5, 20, 5, 6.25]},
    ],
}
KITTI = """\
Car 0.00 0 -1.58 10.50 20.00 30.00 40.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59
DontCare -1 -1 -10 1.00 1.00 5.00 5.00 -1 -1 -1 -1000 -1000 -1000 -10
Van 0.00 0 -1.58 0.00 0.00 8.00 4.00 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59
"""
VOC = """<?xml version="1.0"?>
<annotation><size><width>64</width></size>
  <object><name>dog</name><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>2</xmax><ymax>4</ymax></bndbox></part>
  </object>
  <object><name>car</name><difficult>1</difficult>
    <bndbox><xmin>5</xmin><ymin>5</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>
</annotation>"""
BDD = [
    {
        "name": "a.png",
        "labels": [
            {"id": "11", "category": "car", "box2d": {"x1": 1.5, "y1": 2, "x2": 9, "y2": 8}},
            {"id": "12", "category": "lane", "poly2d": []},
        ],
    },
    {"name": "b.png", "labels": None},
]


@pytest.fixture
def root(tmp_path):
    """Images a, b and c, 48x64, with the class map of a."""
    for name in "abc":
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(painted()["image"]).save(tmp_path / f"images/{name}.png")
    ids = np.zeros((48, 64), np.uint8)
    ids[10:20, 5:15] = ids[20:25, 15:20] = 1  # they touch at a corner
    ids[40:42, 50:60] = 1
    ids[0:4, 30:33] = 2
    Image.fromarray(ids).save(tmp_path / "ids.png")
    return tmp_path


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def read(root, encoding, **settings):
    """The labels in a folder of one task, by image: dicts of lists, None where unlabelled."""
    folder = Folder(root, labels={"boxes": encoding}, **settings)
    samples = [folder.read(item) for items in folder.items.values() for item in items]
    labels = {sample["name"]: sample.get("boxes") for sample in samples}
    return {
        name: label and {key: value.tolist() for key, value in label.items()}
        for name, label in sorted(labels.items())
    }


NOTHING = {"boxes": [], "labels": []}


class TestFiles:
    def test_coco(self, root):
        write(root / "all.json", COCO)
        settings = {"classes": ["car", "dog"], "name_map": {"van": "car"}}
        assert read(root, Coco(path="all.json", **settings)) == {
            "a": {"boxes": [[2, 1, 6, 4], [10.5, 20, 15.5, 26.25]], "labels": [1, 0]},
            "b": NOTHING,
            "c": None,
        }
        folder = Folder(root, labels={"boxes": Coco(path="all.json", **settings)}, resize=(24, 32))
        (item,) = (item for items in folder.items.values() for item in items if item.name == "a")
        assert folder.read(item)["boxes"]["boxes"].tolist() == [[1, 0.5, 3, 2], [5.25, 10, 7.75, 13.125]]

    def test_kitti(self, root):
        write(root / "text/a.txt", KITTI)
        write(root / "text/b.txt", "\n")
        settings = {"path": "text/{name}.txt", "classes": ["Car", "Dog"]}
        car = [10.5, 20, 30, 40]
        assert read(root, Kitti(**settings, ignore=["Van"])) == {
            "a": {"boxes": [car], "labels": [0]},
            "b": NOTHING,
            "c": None,
        }
        label = read(root, Kitti(**settings, name_map={"Van": "Dog"}))["a"]
        assert label == {"boxes": [car, [0, 0, 8, 4]], "labels": [0, 1]}

    def test_voc_counts_from_one_and_includes_the_last_pixel(self, root):
        write(root / "xml/a.xml", VOC)
        settings = {"path": "xml/{name}.xml", "classes": ["car", "dog"]}
        dog, car = [0, 2, 10, 12], [4, 4, 64, 48]
        assert read(root, Voc(**settings))["a"] == {"boxes": [dog, car], "labels": [1, 0]}
        assert read(root, Voc(**settings, skip_difficult=True))["a"] == {"boxes": [dog], "labels": [1]}

    @pytest.mark.parametrize("path", ["all.json", "frames/{name}.json"])
    def test_bdd100k(self, root, path):
        write(root / "all.json", BDD)
        for frame in BDD:
            objects = {"frames": [{"objects": frame["labels"] or []}]}
            write(root / "frames" / frame["name"].replace("png", "json"), objects)
        assert read(root, Bdd100k(path=path, classes=["car", "dog"])) == {
            "a": {"boxes": [[1.5, 2, 9, 8]], "labels": [0]},
            "b": NOTHING,
            "c": None,
        }

    def test_regions_of_a_class_map(self, root):
        write(root / "x/_", "")
        (root / "ids.png").rename(root / "x/a.png")
        ids = Segmentation(path="x/{name}.png", classes=["road", "car", "dog"])
        label = read(root, BoxesOf(ids, classes=["dog", "car"]))["a"]
        assert label["boxes"] == [[30, 0, 33, 4], [5, 10, 20, 25], [50, 40, 60, 42]]
        assert label["labels"] == [0, 1, 1]
        label = read(root, BoxesOf(ids, classes=["dog", "car"], smallest=13))["a"]
        assert label["boxes"] == [[5, 10, 20, 25], [50, 40, 60, 42]]
        with pytest.raises(ValueError, match=r"class 'cat': the label image has \['road', 'car', 'dog'\]"):
            BoxesOf(ids, classes=["cat"])

    def test_small_objects_are_left_out_if_wanted(self, root):
        flat = {**COCO["annotations"][0], "bbox": [3, 3, 5, 0.0]}
        write(root / "all.json", {**COCO, "annotations": [flat]})
        with pytest.raises(ValueError, match=r"image 'a.png': annotation 1: .*least_side=1 leaves out"):
            read(root, Coco(path="all.json", classes=["car", "dog"]))
        assert read(root, Coco(path="all.json", classes=["car", "dog"], least_side=1))["a"] == NOTHING

    @pytest.mark.parametrize(
        ("encoding", "content", "fault"),
        [
            (Coco, {**COCO, "categories": COCO["categories"][:1]}, r"all.json: annotation 1: its category_id 18"),
            (Coco, {**COCO, "images": COCO["images"][1:]}, "all.json: annotation 1: its image_id 7 is not listed"),
            (Coco, {"images": []}, "all.json: .* something lacks 'categories'"),
            (Coco, "{", "all.json: cannot be read as JSON"),
            (Coco, COCO, r"all.json, image 'a.png': annotation 3: its class 'van' is none of .*. Add"),
            (Bdd100k, BDD + BDD, "all.json: it has two entries for the image 'a.png'"),
            (Bdd100k, COCO, "all.json: does not list images as expected"),
            (Bdd100k, [{**BDD[0], "labels": [{"id": 4, "box2d": {"x1": 1}}]}], "'a.png': .* something lacks 'y1'"),
            (Bdd100k, [{"name": "z.png"}], "all.json, image 'z.png': there is no image 'z.png'"),
            (Kitti, KITTI.replace("Van", "Cat"), r"a.txt: line 3: its class 'Cat' is none of"),
            (Kitti, "Car 1 2 3", "a.txt: line 1: has 4 fields"),
            (Kitti, KITTI.replace("10.50", "x"), r"a.txt: line 1: its box is \['x', .* expected four numbers"),
            (Kitti, KITTI.replace("10.50", "31.0"), r"a.txt: line 1: its corners .* \[31.0, 20.0, 30.0, 40.0\]"),
            (Kitti, KITTI.replace("30.00 40.00", "90.0 90.0"), "a.txt: Box 0, .* outside the image of 48x64"),
            (Kitti, KITTI.replace("30.00", "nan"), "a.txt: line 1: its corners"),
            (Voc, VOC.replace("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>"), "a.xml: .* DOCTYPE"),
            (Voc, VOC[:-20], "a.xml: cannot be read as XML"),
            (Voc, VOC.replace("xmin", "left"), "a.xml: object 1: lacks one of name, bndbox/xmin"),
            (Voc, VOC.replace("<xmin>1<", "<xmin>one<"), "a.xml: object 1: its box is .* four numbers"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_in_a_file_is_named_with_its_place(self, root, encoding, content, fault):
        path = {Kitti: "text/{name}.txt", Voc: "xml/{name}.xml"}.get(encoding, "all.json")
        write(root / path.format(name="a"), content)
        names = {"Car": "car", "Van": "car"} if encoding is Kitti else {}
        with pytest.raises(ValueError, match=fault):
            read(root, encoding(path=path, classes=["car", "dog"], name_map=names))

    def test_a_map_to_an_unknown_class_is_an_error(self):
        with pytest.raises(ValueError, match="name_map leads to 'cat', which is none of the classes"):
            Coco(path="all.json", classes=["car"], name_map={"van": "cat"})

    def test_check_data_counts_them(self):
        tally = check_data.Tally(tasks.detection("boxes", num_classes=2))
        for label in (make([10.5, 20, 30, 40], [0, 0, 8, 4], labels=[0, 1]), make()):
            tally.add("train", label)
        tally.add("val", make())
        assert tally.images == {"train": 2, "val": 1} and tally.classes["train"].tolist() == [1, 1]
        assert tally.low == pytest.approx(32**0.5) and tally.high == pytest.approx(390**0.5)
        assert tally.summary().startswith("2 boxes in 3 images") and list(tally.doubts()) == []


def test_the_regions_of_camvid(samples):
    arguments = ["experiment=camvid_detection", f"dataset.root={samples / 'camvid'}"]
    data, _ = compose_dataset(arguments)
    data.setup()
    names = data.tasks[1].target.class_names
    found = np.zeros(3, int)
    for index in range(0, 360, 60):
        sample = data.samples("train")[index]
        for box, number in zip(sample["detection"]["boxes"], sample["detection"]["labels"]):
            x1, y1, x2, y2 = np.round(box).astype(int)
            inside = sample["semantic"][y1:y2, x1:x2] == names.index(
                ["car", "pedestrian", "bicyclist"][number]
            )
            assert inside.mean() > 0.1  # slim objects, aslant, in part hidden
            found[number] += inside.mean() > 0.4
    assert found[0] > 6
    batch = next(iter(data.train_dataloader()))
    for image, label in zip(batch["image"], batch["detection"]):
        data.tasks[0].target.check({key: value.numpy() for key, value in label.items()}, image.shape[-2:])
