"""Images for classification: a folder for each class, and the rendered shapes that need no file."""

import numpy as np
import pytest
import torch
from PIL import Image

from mtlsearch.data import ImageFolder, Shapes
from mtlsearch.data.shapes import CLASSES, FINISHES, SHAPES
from mtlsearch.run import compose_dataset


def save(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Ten images of each of two classes, whose brightness is 0 to 9 and 100 to 109."""
    for i in range(10):
        save(tmp_path / f"cat/{i}.png", i)
        save(tmp_path / f"dog/deep/{i}.png", 100 + i)
    return tmp_path


def brightness(data, split):
    """{brightness: class} of the images of a split."""
    return {int(sample["image"].flat[0]): int(sample["label"]) for sample in data.samples(split)}


class TestImageFolder:
    def test_each_class_is_divided_and_no_image_is_used_twice(self, root):
        data = ImageFolder(root, val=0.2, test=0.3)
        assert data.tasks[0].name == "label" and data.tasks[0].target.class_names == ["cat", "dog"]
        parts = {split: brightness(data, split) for split in ("train", "val", "test")}
        assert {split: len(part) for split, part in parts.items()} == {"train": 10, "val": 4, "test": 6}
        together = {key: label for part in parts.values() for key, label in part.items()}
        assert together == {i + 100 * label: label for i in range(10) for label in (0, 1)}
        assert [sum(part.values()) for part in parts.values()] == [5, 2, 3]
        assert brightness(ImageFolder(root, val=0.2, test=0.3, seed=5), "val") == parts["val"]
        assert brightness(ImageFolder(root, val=0.2, test=0.3, split_seed=5), "val") != parts["val"]

    def test_folders_of_splits(self, root):
        for split in ("train", "val"):
            for name, value in {"cat": 1, "dog": 2}.items():
                for i in range(3):
                    save(root / f"set/{split}/{name}/{i}.png", 10 * value + i + 100 * (split == "val"))
        data = ImageFolder(root / "set", test=0.3)
        assert set(brightness(data, "val")) == {110, 111, 112, 120, 121, 122}
        train, test = set(brightness(data, "train")), set(brightness(data, "test"))
        assert len(test) == 2 and train | test == {10, 11, 12, 20, 21, 22}
        save(root / "set/test/dog/0.png", 77)
        data = ImageFolder(root / "set")
        assert brightness(data, "test") == {77: 1} and len(data.samples("train")) == 6

    def test_three_images_are_enough_for_three_splits(self, tmp_path):
        for name in ("cat", "dog"):
            for i in range(3):
                save(tmp_path / f"{name}/{i}.png")
        data = ImageFolder(tmp_path, val=0.01, test=0.9)
        assert [len(data.samples(split)) for split in ("train", "val", "test")] == [2, 2, 2]

    def test_images_are_fitted_and_batches_made(self, root):
        wide = np.zeros((10, 30, 3), np.uint8)
        wide[:, 8:22] = 200
        Image.fromarray(wide).save(root / "cat/0.png")
        data = ImageFolder(root, tasks=["animal"], size=(4, 4), batch_size=3, cache=True)
        data.setup()
        image = next(s["image"] for s in data.samples("train") if s["name"] == "cat/0.png")
        assert image.shape == (4, 4, 3) and (image == 200).all()
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (3, 3, 4, 4) and batch["animal"].dtype == torch.int64

    def test_an_unreadable_image_is_named(self, root):
        (root / "cat/3.png").write_bytes(b"no image")
        data = ImageFolder(root)
        with pytest.raises(ValueError, match=r"cat/3\.png: cannot be read as an image"):
            for split in ("train", "val", "test"):
                list(data.samples(split))

    def test_what_is_wrong_is_named(self, root):
        with pytest.raises(ValueError, match="none is no folder"):
            ImageFolder(root / "none")
        with pytest.raises(ValueError, match="a folder for 1 classes: expected"):
            ImageFolder(root / "dog")
        with pytest.raises(ValueError, match="one task here"):
            ImageFolder(root, tasks=["a", "b"])
        with pytest.raises(ValueError, match="val and test must be positive fractions"):
            ImageFolder(root, val=0.6, test=0.4)
        (root / "emu").mkdir()
        (root / "emu/notes.txt").write_text("no image")
        with pytest.raises(
            ValueError, match="emu has 0 images: expected at least 3, one for each of train, val"
        ):
            ImageFolder(root).samples("train")

    def test_a_class_that_train_lacks_is_named(self, root):
        for name in ("train/cat", "train/dog", "val/cat", "val/cow"):
            for i in range(3):
                save(root / f"set/{name}/{i}.png")
        with pytest.raises(ValueError, match=r"val/cow is of a class that train has not: \['cat', 'dog'\]"):
            ImageFolder(root / "set").samples("train")


class TestShapes:
    def test_images_follow_from_the_seed(self):
        small, large = Shapes(train=5).samples("train"), Shapes(train=9, seed=3).samples("train")
        for one, two in zip(small, large):
            assert (one["image"] == two["image"]).all() and one["label"] == two["label"]
        other = Shapes(train=5, render_seed=1).samples("train")
        assert all((one["image"] != two["image"]).any() for one, two in zip(small, other))
        val = Shapes(val=5).samples("val")
        assert all((one["image"] != two["image"]).any() for one, two in zip(small, val))

    def test_batches_and_the_task(self):
        data = Shapes(["kind"], size=20, train=8, val=3, test=3, batch_size=4)
        data.setup()
        batch = next(iter(data.train_dataloader()))
        assert batch["image"].shape == (4, 3, 20, 20) and batch["kind"].shape == (4,)
        (task,) = data.tasks
        assert task.target.class_names == list(CLASSES) and len(CLASSES) == len(SHAPES) * len(FINISHES) == 10

    def test_all_classes_are_there_and_their_colours_tell_nothing(self):
        samples = Shapes(size=16, train=600).samples("train")
        labels = np.array([sample["label"] for sample in samples])
        assert (np.bincount(labels, minlength=10) > 30).all()
        means = np.stack([sample["image"].mean(axis=(0, 1)) for sample in samples])
        within = [means[labels == number].mean(axis=0) for number in range(10)]
        assert np.std(within, axis=0).max() < 0.35 * means.std(axis=0).min()


def test_both_are_data_sets_of_the_command_line(root):
    data, _ = compose_dataset(["dataset=imagefolder", f"dataset.root={root}", "dataset.size=[6, 5]"])
    assert data.tasks[0].target.class_names == ["cat", "dog"]
    assert data.samples("val")[0]["image"].shape == (6, 5, 3)
    data, _ = compose_dataset(["dataset=shapes", "dataset.train=10", "tasks=[kind]"])
    assert [task.name for task in data.tasks] == ["kind"] and len(data.samples("train")) == 10
