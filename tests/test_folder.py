import os
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlsearch.data.augment import Augment
from mtlsearch.data.encodings import (
    BoundariesOf,
    Classification,
    Depth,
    Edges,
    Keypoints,
    Normals,
    Segmentation,
)
from mtlsearch.data.folder import Folder

SAMPLES = Path(os.environ.get("MTLSEARCH_SAMPLES", "../shared/data"))
SIZE = (6, 8)
rng = np.random.default_rng(0)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Ten images, 00 to 09, with class ids 0 to 4 in `seg`."""
    for i in range(10):
        save(tmp_path / f"images/{i:02}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        save(tmp_path / f"seg/{i:02}.png", rng.integers(0, 5, SIZE, dtype=np.uint8))
    return tmp_path


SEMANTIC = {"semantic": Segmentation("seg/{name}.png", classes=5)}


def read(root, encoding, name="label"):
    """The label that the encoding reads for image 00, with only that image labelled, and its task's check."""
    folder = Folder(root, labels={name: encoding}, splits={"train": 0.8, "val": 0.1, "test": 0.1})
    (item,) = (item for split in folder.items.values() for item in split if item.labels)
    return folder.read(item)[name]


def names(folder):
    return {split: [item.name for item in items] for split, items in folder.items.items()}


class TestEncodings:
    def test_class_ids(self, root):
        ids = np.array(rng.integers(0, 5, SIZE), dtype=np.uint8)
        ids[0, :4] = 255
        save(root / "other/00.png", ids)
        np.testing.assert_array_equal(read(root, Segmentation("other/{name}.png", classes=5)), ids)
        np.save(root / "other/00.npy", ids.astype(np.int16))
        np.testing.assert_array_equal(
            read(root, Segmentation("other/{name}.npy", classes=list("abcde"))), ids
        )

    def test_palette_images_hold_ids(self, root):
        ids = rng.integers(0, 5, SIZE, dtype=np.uint8)
        image = Image.fromarray(ids)
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        (root / "other").mkdir()
        image.save(root / "other/00.png")
        with Image.open(root / "other/00.png") as stored:
            assert stored.mode == "P"
        np.testing.assert_array_equal(read(root, Segmentation("other/{name}.png", classes=5)), ids)

    def test_id_map_and_several_ignored(self, root):
        ids = rng.choice([0, 7, 20, 300, 301], SIZE).astype(np.uint16)
        save(root / "other/00.png", ids)
        encoding = Segmentation(
            "other/{name}.png", classes=["road", "sky"], ignore=[0, 301], id_map={7: 1, 20: 0, 300: 1}
        )
        expected = np.select([np.isin(ids, [0, 301]), ids == 20], [255, 0], 1)
        np.testing.assert_array_equal(read(root, encoding), expected)

    def test_ignored_id_below_the_number_of_classes_wins(self, root):
        save(root / "other/00.png", np.full(SIZE, 2, dtype=np.uint8))
        assert (read(root, Segmentation("other/{name}.png", classes=5, ignore=2)) == 255).all()

    @pytest.mark.parametrize("suffix", ["npy", "npz", "png"])
    def test_depth(self, root, suffix):
        metres = np.round(rng.uniform(0.5, 9, SIZE), 3)
        metres[0, 0] = 0
        path = root / f"depth/00.{suffix}"
        save(path.with_suffix(".npy"), metres.astype(np.float32))
        if suffix == "npz":
            np.savez(path, depth=metres)
        if suffix == "png":
            save(path, (metres * 1000).round().astype(np.uint16))
        encoding = Depth(f"depth/{{name}}.{suffix}", scale=0.001 if suffix == "png" else 1.0)
        depth = read(root, encoding)
        assert depth.shape == (1, *SIZE) and depth.dtype == np.float32
        assert np.isnan(depth[0, 0, 0])
        np.testing.assert_allclose(depth[0].ravel()[1:], metres.ravel()[1:], rtol=1e-6)

    def test_depth_of_several_holes_and_arrays(self, root):
        (root / "depth").mkdir()
        metres = np.full(SIZE, 2.0)
        metres[0, :3] = [-1, 80, np.inf]
        np.savez(root / "depth/00.npz", image=np.zeros(3), metres=metres[..., None])
        depth = read(root, Depth("depth/{name}.npz", key="metres", hole=[-1, 80]))
        assert np.isnan(depth).sum() == 3 and np.nanmax(depth) == 2

    @pytest.mark.parametrize("layout", ["HWC", "CHW", "codes"])
    def test_normals(self, root, layout):
        vectors = rng.normal(size=(*SIZE, 3))
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        stored = np.stack([vectors[..., 0], vectors[..., 2], -vectors[..., 1]], axis=2)
        stored[0, 0] = 0
        if layout == "codes":
            codes = ((stored + 1) * 127.5).round().astype(np.uint8)
            codes[0, 0] = (10, 20, 255)
            save(root / "other/00.png", codes)
        else:
            save(root / "other/00.npy", stored.transpose(2, 0, 1) if layout == "CHW" else stored)
        normals = read(root, Normals("other/{name}.*", axes="0 -2 1", unknown=255))
        known = np.ones(SIZE, dtype=bool)
        if layout == "codes":
            known = ~(codes == 255).any(axis=2)
        known[0, 0] = False
        assert np.isnan(normals[:, ~known]).all()
        expected = vectors.transpose(2, 0, 1)[:, known]
        np.testing.assert_allclose(normals[:, known], expected, atol=8e-3 if layout == "codes" else 1e-6)

    def test_unknown_normals_by_their_whole_code(self, root):
        codes = np.full((*SIZE, 3), (128, 128, 0), dtype=np.uint8)
        codes[1] = 0
        save(root / "other/00.png", codes)
        normals = read(root, Normals("other/{name}.png", unknown=[0, 0, 0]))
        assert np.isnan(normals[:, 1]).all()
        np.testing.assert_allclose(normals[2, 2:], -1, atol=1e-4)

    def test_edges_and_keypoints(self, root):
        strength = rng.integers(0, 256, SIZE, dtype=np.uint8)
        save(root / "other/00.png", strength)
        np.testing.assert_allclose(read(root, Edges("other/{name}.png"))[0], strength / 255, rtol=1e-6)
        maps = rng.random((*SIZE, 2)).astype(np.float32)
        save(root / "maps/00.npy", maps)
        heat = read(root, Keypoints("maps/{name}.npy", channels=2))
        np.testing.assert_allclose(heat, maps.transpose(2, 0, 1))

    def test_edges_of_class_ids(self, root):
        ids = np.zeros(SIZE, dtype=np.uint8)
        ids[:, 5:] = 3
        ids[0] = 255
        save(root / "other/00.png", ids)
        edges = read(root, BoundariesOf(Segmentation("other/{name}.png", classes=5)))
        expected = np.tile([0, 0, 0, 0, 1, 1, 0, 0], (SIZE[0], 1)).astype(float)
        expected[0] = np.nan
        np.testing.assert_array_equal(edges[0], expected)

    def test_edges_stay_whole_when_the_labels_shrink(self, root):
        for i in range(10):
            ids = np.zeros((60, 80), dtype=np.uint8)
            ids[:, 33:] = 1
            save(root / f"seg/{i:02}.png", ids)
            save(root / f"images/{i:02}.png", np.zeros((60, 80, 3), dtype=np.uint8))
        folder = Folder(root, labels={"edges": BoundariesOf(SEMANTIC["semantic"])}, resize=(6, 8))
        np.testing.assert_array_equal(folder.samples("val")[0]["edges"].sum(axis=2), np.full((1, 6), 2.0))

    @pytest.mark.parametrize("cell, number", [("bath", 1), ("0", 0), ("", -100)])
    def test_classes_from_a_table(self, root, cell, number):
        (root / "rooms.csv").write_text(f"file,room\n00.png,{cell}\n", encoding="utf-8-sig")
        encoding = Classification(path="rooms.csv", classes=["kitchen", "bath"], image="file", column="room")
        assert read(root, encoding, "room") == number

    def test_soft_classes_from_a_table(self, root):
        (root / "rooms.csv").write_text("name,bath,kitchen\n00,0.25,0.75\n")
        encoding = Classification(path="rooms.csv", classes=["kitchen", "bath"], soft=True)
        np.testing.assert_array_equal(read(root, encoding), [0.75, 0.25])

    def test_options_reach_the_task(self, root):
        labels = {"semantic": Segmentation("seg/{name}.png", classes=5, options={"weight": 3.0})}
        (task,) = Folder(root, labels=labels).tasks
        assert task.weight == 3.0 and task.target.class_names == ["0", "1", "2", "3", "4"]


class TestSplits:
    def test_drawn_by_the_seed_with_at_least_one_each(self, root):
        drawn = names(Folder(root, labels=SEMANTIC))
        assert {split: len(of) for split, of in drawn.items()} == {"train": 6, "val": 2, "test": 2}
        assert sorted(chain(*drawn.values())) == [f"{i:02}" for i in range(10)]
        assert names(Folder(root, labels=SEMANTIC, seed=7)) == drawn
        assert names(Folder(root, labels=SEMANTIC, split_seed=1)) != drawn

    @pytest.mark.parametrize(
        "fractions, counts",
        [((0.2, 0.79, 0.01), [1, 8, 1]), ((0.01, 0.5, 0.49), [1, 5, 4]), ((0.98, 0.01, 0.01), [8, 1, 1])],
    )
    def test_fractions(self, root, fractions, counts):
        splits = dict(zip(("train", "val", "test"), fractions, strict=True))
        drawn = names(Folder(root, labels=SEMANTIC, splits=splits))
        assert [len(of) for of in drawn.values()] == counts

    def test_folders_with_other_names(self, tmp_path):
        for split, count in {"training": 3, "val": 2, "testing": 1}.items():
            for i in range(count):
                save(tmp_path / f"rgb/{split}/town/{i}_rgb.JPG", np.zeros((*SIZE, 3), dtype=np.uint8))
                save(tmp_path / f"{split}annot/town/{i}_ids.png", np.zeros(SIZE, dtype=np.uint8))
        folder = Folder(
            tmp_path,
            image="rgb/{split}/{name}_rgb.*",
            labels={"semantic": Segmentation("{split}annot/{name}_ids.png", classes=5)},
            splits={"train": "training", "test": "testing"},
        )
        folder.setup()
        assert names(folder) == {
            "train": ["town/0", "town/1", "town/2"],
            "val": ["town/0", "town/1"],
            "test": ["town/0"],
        }
        assert all(item.labels for items in folder.items.values() for item in items)

    def test_lists(self, root):
        (root / "train.txt").write_text("00\n01.png\n\nimages/02.png\n")
        (root / "rest.txt").write_text("05\n")
        splits = {"train": "train.txt", "val": "rest.txt", "test": "rest.txt"}
        found = names(Folder(root, labels=SEMANTIC, splits=splits))
        assert found == {"train": ["00", "01", "02"], "val": ["05"], "test": ["05"]}

    def test_a_list_names_an_image_that_is_not_there(self, root):
        (root / "a.txt").write_text("00\nnine\n")
        (root / "b.txt").write_text("00\n")
        splits = {"train": "a.txt", "val": "b.txt", "test": "c.txt"}
        with pytest.raises(ValueError) as caught:
            Folder(root, labels=SEMANTIC, splits=splits).setup()
        assert "a.txt, line 2: there is no image 'nine'" in str(caught.value)
        assert "c.txt: cannot be read" in str(caught.value)
        assert "00 and 0 more are for training and for evaluation" in str(caught.value)

    @pytest.mark.parametrize(
        "splits, message",
        [
            ({"train": 0.5, "val": 0.5}, "mend test"),
            ({"training": 0.5}, "training"),
            ({"train": 0.5, "val": 0.5, "test": 0.5}, "sum to 1"),
        ],
    )
    def test_wrong_splits(self, root, splits, message):
        with pytest.raises(ValueError, match=message):
            Folder(root, labels=SEMANTIC, splits=splits).setup()


class TestFolder:
    def test_batches(self, root):
        folder = Folder(root, labels=SEMANTIC, batch_size=3, augment=Augment(scale=(1, 2)), resize=(12, 10))
        folder.setup()
        batch = next(iter(folder.train_dataloader()))
        assert (
            batch["image"].shape == (3, 3, 12, 10) and 0 <= batch["image"].min() <= batch["image"].max() <= 1
        )
        assert batch["semantic"].shape == (3, 12, 10) and batch["semantic"].dtype == torch.int64

    def test_usual_folders_need_no_words(self, root):
        (root / "seg").rename(root / "semantic")
        (root / "classes.txt").write_text("a\nb\nc\nd\ne\n")
        save(root / "depth/03.npy", np.ones(SIZE))
        folder = Folder(root)
        assert [task.name for task in folder.tasks] == ["semantic", "depth"]
        assert folder.tasks[0].target.class_names == list("abcde")
        assert [task.name for task in Folder(root, tasks=["depth"]).tasks] == ["depth"]

    def test_partial_labels(self, root):
        save(root / "depth/03.npy", np.ones(SIZE))
        (root / "seg/03.png").unlink()
        folder = Folder(root, labels={**SEMANTIC, "depth": Depth("depth/{name}.npy")}, batch_size=6)
        folder.setup()
        samples = {sample["name"]: sample for split in folder.items for sample in folder.samples(split)}
        assert "semantic" not in samples["03"] and "depth" in samples["03"]
        assert all(
            "depth" not in sample and "semantic" in sample
            for sample in samples.values()
            if sample["name"] != "03"
        )
        batch = folder.collate(list(samples.values()))
        assert (~batch["depth"].isnan()).sum() == (batch["semantic"] == 255).sum() == SIZE[0] * SIZE[1]

    def test_cache_reads_a_file_once(self, root):
        folder = Folder(root, labels=SEMANTIC, cache=True)
        samples = folder.samples("train")
        first = samples[0]
        first["semantic"] = None
        for path in [*root.glob("images/*"), *root.glob("seg/*")]:
            path.unlink()
        assert samples[0]["semantic"] is not None
        with pytest.raises(ValueError, match="cannot be read"):
            samples[1]

    def test_photographs_are_turned_as_viewers_show_them(self, root):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90°
        pixels = np.zeros((8, 6, 3), dtype=np.uint8)
        pixels[0] = 255
        Image.fromarray(pixels).save(root / "images/00.png", exif=exif)
        folder = Folder(root, labels=SEMANTIC)
        image = next(folder.read(i) for items in folder.items.values() for i in items if i.name == "00")[
            "image"
        ]
        assert image.shape == (*SIZE, 3) and (image[:, -1] == 255).all()

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
    def test_every_kind_of_image_becomes_rgb(self, root, mode):
        for path in root.glob("images/*"):
            suffix = ".jpg" if mode == "CMYK" else ".png"
            Image.open(path).convert(mode).save(path.with_suffix(suffix))
            if suffix != path.suffix:
                path.unlink()
        assert Folder(root, labels=SEMANTIC).samples("train")[0]["image"].shape == (*SIZE, 3)


class TestErrors:
    """Each names the file and what is wrong with it."""

    def fails(self, root, *patterns, labels=SEMANTIC, **arguments):
        with pytest.raises(ValueError) as caught:
            folder = Folder(root, labels=labels, **arguments)
            folder.setup()
            for split in folder.items:
                for _ in folder.samples(split):
                    pass
        for pattern in patterns:
            assert pattern in str(caught.value)
        return str(caught.value)

    def test_no_such_folder(self, root):
        self.fails(root / "nowhere", "nowhere is no folder")

    def test_no_images(self, root):
        self.fails(root, "images/{name}.jpg", "holds 00.png, 01.png", image="images/{name}.jpg")
        self.fails(root, "train/{name}.png", "images/, seg/", image="{split}/{name}.png")

    def test_too_few_images(self, tmp_path):
        for i in range(2):
            save(tmp_path / f"images/{i}.png", np.zeros((*SIZE, 3), dtype=np.uint8))
            save(tmp_path / f"seg/{i}.png", np.zeros(SIZE, dtype=np.uint8))
        self.fails(tmp_path, "found 2, expected at least one each")

    def test_labels_without_images_are_all_listed(self, root):
        for name in ("lost", "stray"):
            save(root / f"seg/{name}.png", np.zeros(SIZE, dtype=np.uint8))
        self.fails(root, "seg/lost.png: there is no image 'lost'", "seg/stray.png: there is no image 'stray'")

    def test_a_row_without_an_image(self, root):
        (root / "rooms.csv").write_text("name,label\n00,1\n77,0\n")
        labels = {"room": Classification(path="rooms.csv", classes=2)}
        self.fails(root, "rooms.csv, line 3: there is no image '77'", labels=labels)

    def test_a_task_without_labels(self, root):
        labels = {**SEMANTIC, "depth": Depth("deepness/{name}.npy")}
        self.fails(root, "No image has a label for the task 'depth'", "deepness/{name}.npy", labels=labels)

    def test_unreadable_image(self, root):
        (root / "images/04.png").write_bytes((root / "images/04.png").read_bytes()[:40])
        self.fails(root, "images/04.png: cannot be read as an image")
        (root / "images/04.png").write_text("no image")
        self.fails(root, "images/04.png: cannot be read as an image")

    def test_image_of_16_bits(self, root):
        save(root / "images/04.png", np.zeros(SIZE, dtype=np.uint16))
        self.fails(root, "images/04.png", "I;16", "8 bits")

    def test_images_of_two_sizes(self, root):
        save(root / "images/04.png", np.zeros((7, 9, 3), dtype=np.uint8))
        save(root / "seg/04.png", np.zeros((7, 9), dtype=np.uint8))
        self.fails(root, "its size is 7x9", "6x8", "resize")
        Folder(root, labels=SEMANTIC, resize=(6, 8)).setup()

    def test_label_of_another_size(self, root):
        save(root / "seg/04.png", np.zeros((8, 6), dtype=np.uint8))
        self.fails(root, "seg/04.png: its size is 8x6, that of the image is 6x8")

    def test_class_ids_out_of_range(self, root):
        save(root / "seg/04.png", np.full(SIZE, 9, dtype=np.uint8))
        self.fails(root, "seg/04.png: holds the class ids [9]: expected 0 to 4, or 255")
        labels = {"semantic": Segmentation("seg/{name}.png", classes=5, id_map={i: i for i in range(5)})}
        self.fails(root, "seg/04.png: holds the class ids [9]: expected those of id_map", labels=labels)

    def test_an_unlabelled_id_has_to_be_said(self, root):
        save(root / "seg/04.png", np.full(SIZE, 255, dtype=np.uint8))
        labels = {"semantic": Segmentation("seg/{name}.png", classes=5, ignore=11)}
        self.fails(root, "seg/04.png: holds the class ids [255]", labels=labels)

    def test_class_ids_in_colour(self, root):
        save(root / "seg/04.png", np.zeros((*SIZE, 3), dtype=np.uint8))
        self.fails(root, "seg/04.png: holds uint8 of shape (6, 8, 3): expected integers (H, W)")

    @pytest.mark.parametrize(
        "array, message",
        [
            (np.full(SIZE, -1.0), "Depth is positive"),
            (np.ones((*SIZE, 3)), "expected a depth for every pixel"),
            (np.array([{}], dtype=object), "cannot be read"),
        ],
    )
    def test_wrong_depth(self, root, array, message):
        save(root / "depth/04.npy", array)
        self.fails(root, "depth/04.npy: ", message, labels={"depth": Depth("depth/{name}.npy")})

    def test_an_empty_array_file(self, root):
        (root / "depth").mkdir()
        (root / "depth/04.npy").write_bytes(b"")
        self.fails(root, "depth/04.npy: cannot be read", labels={"depth": Depth("depth/{name}.npy")})

    def test_several_arrays_without_a_key(self, root):
        (root / "depth").mkdir()
        np.savez(root / "depth/04.npz", near=np.ones(SIZE), far=np.ones(SIZE))
        self.fails(root, "04.npz", "['near', 'far']", "key", labels={"depth": Depth("depth/{name}.npz")})

    def test_wrong_normals(self, root):
        save(root / "normals/04.png", np.zeros((*SIZE, 3), dtype=np.uint8))
        message = "normals/04.png: holds [0, 0, 0], a vector of length 1.7"
        self.fails(root, message, "unknown", labels={"normals": Normals("normals/{name}.png")})
        with pytest.raises(ValueError, match="axes"):
            Normals("normals/{name}.png", axes="0 1 1")

    def test_wrong_channels(self, root):
        save(root / "edges/04.png", np.zeros((*SIZE, 3), dtype=np.uint8))
        self.fails(
            root, "edges/04.png: has 3 channels: expected 1", labels={"edges": Edges("edges/{name}.png")}
        )

    @pytest.mark.parametrize(
        "text, message",
        [
            ("name,label\n00,hall\n", "line 2: holds ['hall']"),
            ("name,label\n00,2\n", "line 2: Class ids go from 0 to 1"),
            ("name,room\n00,0\n", "lacks the columns ['label']"),
            ("name,label\n00,0\n00,1\n", "line 3 and line 2 name the same image"),
        ],
    )
    def test_wrong_tables(self, root, text, message):
        (root / "rooms.csv").write_text(text)
        labels = {"room": Classification(path="rooms.csv", classes=["bath", "kitchen"])}
        self.fails(root, "rooms.csv", message, labels=labels)

    def test_all_that_is_wrong_with_an_image(self, root):
        save(root / "seg/04.png", np.full(SIZE, 9, dtype=np.uint8))
        save(root / "depth/04.npy", np.ones((2, 2)))
        labels = {**SEMANTIC, "depth": Depth("depth/{name}.npy")}
        assert len(self.fails(root, "seg/04.png: ", "depth/04.npy: ", labels=labels).splitlines()) == 2

    def test_two_files_of_one_name(self, root):
        save(root / "images/04.bmp", np.zeros((*SIZE, 3), dtype=np.uint8))
        self.fails(root, "04.bmp and", "04.png both match")

    def test_nothing_says_where_labels_are(self, root):
        self.fails(root, "['images', 'seg']", "labels", labels=None)
        (root / "seg").rename(root / "semantic")
        self.fails(root, "classes.txt", labels=None)

    def test_unknown_task(self, root):
        self.fails(root, "['semantic'], not for ['depth']", tasks=["depth"])

    def test_template_without_a_name(self, root):
        self.fails(root, "{name} once", image="images/*.png")


def normals_of(depth, fx=518.9, fy=519.5, cx=325.6, cy=253.7, reach=8):
    """Normals of the surface through pixels `reach` to either side, by the camera of NYUv2."""
    rows, columns = np.mgrid[: depth.shape[0], : depth.shape[1]]
    points = np.stack([(columns - cx) / fx * depth, (rows - cy) / fy * depth, depth])
    inner, low, high = slice(reach, -reach), slice(None, -2 * reach), slice(2 * reach, None)
    right = points[:, inner, high] - points[:, inner, low]
    down = points[:, high, inner] - points[:, low, inner]
    normals = np.cross(down, right, axis=0)
    return normals / np.linalg.norm(normals, axis=0), inner


@pytest.mark.skipif(not (SAMPLES / "nyuv2_samples").is_dir(), reason="MTLSEARCH_SAMPLES has no nyuv2_samples")
def test_nyuv2_normals_fit_the_depth():
    labels = {
        "semantic": Segmentation("seg/{name}.png", classes=40),
        "normals": Normals("normal_mask/{name}.png", axes="0 -2 1", unknown=255),
        "depth": Depth("depth/{name}.npy"),
    }
    folder = Folder(SAMPLES / "nyuv2_samples", image="img/{name}.png", labels=labels)
    cosines = []
    for split in folder.items:
        for sample in folder.samples(split):
            from_depth, inner = normals_of(sample["depth"][0])
            cosine = (from_depth * sample["normals"][:, inner, inner]).sum(axis=0)
            cosines.append(np.nanmedian(cosine))
    assert len(cosines) == 4 and min(cosines) > 0.95


@pytest.mark.skipif(not (SAMPLES / "camvid").is_dir(), reason="MTLSEARCH_SAMPLES has no camvid")
def test_camvid_as_it_lies():
    ids = Segmentation("{split}annot/{name}.png", classes=11, ignore=11)
    labels = {"semantic": ids, "edges": BoundariesOf(ids)}
    folder = Folder(SAMPLES / "camvid", image="{split}/{name}.jpg", labels=labels, resize=(96, 128))
    assert [len(items) for items in folder.items.values()] == [367, 101, 233]
    sample = folder.samples("val")[0]
    assert (np.isnan(sample["edges"][0]) == (sample["semantic"] == 255)).all()
    assert 0.02 < np.nanmean(sample["edges"]) < 0.3
