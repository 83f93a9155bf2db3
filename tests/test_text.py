"""Texts from CSV files: their characters as ids, their classes, what is drawn, and what is refused."""

import csv

import numpy as np
import pytest
import torch

from mtlsearch.check_data import check
from mtlsearch.data import Text, texts
from mtlsearch.data.text import CHARACTERS, decode, encode

TOPICS = {"1": "goal match team", "2": "stock market bank", "3": "moon star comet"}


def write(path, rows, header=()):
    """A table; the rows are lists of fields."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([list(header)] * bool(header) + rows)
    return path


def rows_of(count, seed=0, topics=TOPICS):
    """Labels, and texts of words that tell the label."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([*topics] * count)[:count]
    return [[label, "News", " ".join(rng.choice(topics[label].split(), 4))] for label in labels]


@pytest.fixture
def table(tmp_path):
    """30 rows, 10 of each class."""
    return write(tmp_path / "news.csv", rows_of(30))


def samples(data, split="train"):
    found = data.samples(split)
    return [found[i] for i in range(len(found))]


# Characters


def test_characters_by_hand():
    assert encode("Ab z0-!é\n", 12).tolist() == [3, 4, 2, 28, 29, 39, 43, 1, 1, 0, 0, 0]
    assert encode("abc", 2).tolist() == [3, 4]
    assert encode("", 3).tolist() == [0, 0, 0]
    assert encode("🙂a", 3).tolist() == [1, 3, 0]


def test_there_are_the_papers_69_tokens():
    ids = encode(CHARACTERS, len(CHARACTERS))
    assert ids.tolist() == list(range(2, 69)) and ids.dtype == np.uint8
    assert decode(ids) == CHARACTERS
    assert decode(encode("Größe 10", 20)) == "gr??e 10"


# Tables


def test_a_row_is_a_class_and_a_text(tmp_path):
    rows = [["10", "A title", 'He said "no",\nand left'], ["9", "B", "second"], ["10", "C", "third"]]
    data = Text("topic", write(tmp_path / "t.csv", rows), val=0.3, test=0.3, length=40)
    (task,) = data.tasks
    assert (task.name, task.target.class_names) == ("topic", ["9", "10"])
    found = {s["name"]: s for split in ("train", "val", "test") for s in samples(data, split)}
    assert sorted(found) == ["t.csv:1", "t.csv:3", "t.csv:4"]
    assert decode(found["t.csv:1"]["image"]) == 'a title he said "no",?and left'
    assert [int(found[f"t.csv:{line}"]["topic"]) for line in (1, 3, 4)] == [1, 0, 1]
    for sample in found.values():
        task.target.check(sample["topic"])


def test_columns_header_and_classes_can_be_named(tmp_path):
    path = write(tmp_path / "t.csv", [["x", "bad", "ignored"]] * 3, header=["text", "label", "date"])
    data = Text("mood", path, label=1, text=[0], header=True, classes=["good", "bad"])
    (sample, *_) = samples(data)
    assert decode(sample["image"]) == "x" and sample["mood"] == 1
    assert data.tasks[0].target.class_names == ["good", "bad"]


def test_a_number_of_classes_means_labels_from_one(table):
    data = Text("news", table, classes=4)
    assert data.tasks[0].target.class_names == ["1", "2", "3", "4"]
    assert {int(sample["news"]) for sample in samples(data)} == {0, 1, 2}


def test_the_draw_is_a_partition_that_split_seed_decides(table):
    def drawn(**arguments):
        data = Text("news", table, val=0.2, test=0.1, **arguments)
        return [{sample["name"] for sample in samples(data, split)} for split in ("train", "val", "test")]

    first = drawn()
    assert [len(part) for part in first] == [21, 6, 3] and len(set.union(*first)) == 30
    assert drawn(seed=1) == first != drawn(split_seed=1)


def test_splits_may_be_files_of_their_own(tmp_path, table):
    write(tmp_path / "test.csv", rows_of(4, seed=1))
    data = Text("news", "news.csv", test="test.csv", val=0.1, root=tmp_path)
    assert [len(data.samples(split)) for split in ("train", "val", "test")] == [27, 3, 4]
    assert {sample["name"].partition(":")[0] for sample in samples(data, "test")} == {"test.csv"}


def test_a_batch_is_ids_and_classes(table):
    data = Text("news", table, length=50, batch_size=8)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 50) and batch["image"].dtype == torch.long
    assert batch["news"].shape == (8,) and batch["news"].dtype == torch.long


def test_check_data_counts_and_draws_texts(tmp_path, table):
    report = check(texts(tmp_path, length=30), tmp_path / "out")
    assert not report.problems and report.sizes == {(30,): 30}
    assert sum(report.tallies["news"].classes["train"]) == 24
    assert report.sheet.exists()


# Several tables


def test_a_folder_of_tables_is_a_task_each(tmp_path, table):
    (tmp_path / "yelp").mkdir()
    write(tmp_path / "yelp" / "train.csv", rows_of(20))
    write(tmp_path / "yelp" / "test.csv", rows_of(5))
    data = texts(tmp_path, batch_size=4, length=16)
    assert [task.name for task in data.tasks] == ["news", "yelp"]
    data.setup()
    seen = [({*batch} - {"image"}).pop() for batch in data.train_dataloader()]
    assert (seen.count("news"), seen.count("yelp")) == (24 // 4, 18 // 4)
    assert sum(len(batch["image"]) for batch in data.test_dataloader()) == 3 + 5
    assert [task.name for task in texts(tmp_path, tasks=["yelp"]).tasks] == ["yelp"]


def test_tables_may_be_described(tmp_path, table):
    tables = {"a": "news.csv", "b": {"train": table, "classes": 3, "val": 0.5, "length": 8}}
    data = texts(tmp_path, tables, together=True, length=16)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert [part["image"].shape[1] for part in batch["parts"]] == [16, 8]


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1,a\n2,b\n3\n", "line 3: the row has 1 column(s), the first one 2"),
        (b"1,a\n2,b,c\n", "line 2: the row has 3 column(s), the first one 2. A text with a comma"),
        (b"1\n2\n", "line 1: the row has 1 column(s); the label is expected in column 0"),
        (b'1,a\n\n2,"b\nb"\n9,c\n', "line 5: the label '9' is no class; there are 1, 2"),
        (b'1,a\n2,"b\n1,c\n', "line 2: the row cannot be read"),
        (b'1,a\n2,"b" c\n', "line 2: the row cannot be read"),
        (b"1,a\n2,\xff\n", "line 2: is not UTF-8"),
        (b"", "holds no row"),
        (b"1,a\n", "too few rows for train, val, test"),
    ],
)
def test_a_wrong_file_is_named_with_the_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError) as error:
        Text("t", tmp_path / "t.csv", classes=2).setup()
    assert str(error.value).startswith(str(tmp_path / "t.csv")) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_arguments_say_what_is_meant(tmp_path, table):
    with pytest.raises(ValueError, match=r"needs at least two classes, not .'News'.*column 1"):
        Text("news", table, label=1)
    with pytest.raises(
        ValueError, match=r"label is expected in column 0 and the text in .5., counted from 0"
    ):
        Text("news", table, text=[5])
    with pytest.raises(ValueError, match=r"val must be a file or a fraction between 0 and 1, not 1.5"):
        Text("news", table, val=1.5)
    with pytest.raises(ValueError, match=r"nowhere.csv: cannot be read: No such file"):
        Text("news", tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="length must be at least 1"):
        Text("news", table, length=0)
    with pytest.raises(ValueError, match="no table for the task 'new': there are news"):
        texts(tmp_path, tasks=["new"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no table: neither NAME.csv nor NAME/train.csv"):
        texts(tmp_path / "empty")
