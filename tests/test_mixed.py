"""A task that draws on several data sets, whose classes are brought to common ones."""

import numpy as np
import pytest
import torch

import mtlsearch as ms
from mtlsearch.data import Augment, Mixed, Shapes, TaskData
from mtlsearch.data.mixed import relabel
from mtlsearch.run import compose_dataset
from mtlsearch.task import Task
from mtlsearch.tasks.metrics import Mean
from tiny import make_trainer

NAMES = {"street": ["road", "car", "walker"], "town": ["Car", "road", "tree"]}
COMMON = ["car", "person", "road"]
MAPS = {"semantic": {"street": {"walker": "person"}, "town": {"Car": "car"}}}


class Ids(TaskData):
    """Four training images whose brightness is the data set's, and whose class ids are 0, 1, 2 and 255."""

    def __init__(self, names, value, extra=(), **others):
        semantic = ms.tasks.segmentation("semantic", num_classes=len(names), class_names=names)
        super().__init__(tasks=[semantic, *extra], **others)
        self.value = value

    def samples(self, split):
        ids = np.array([[0, 1], [2, 255]]).repeat(4, axis=0).repeat(4, axis=1)
        count = {"train": 4, "val": 3, "test": 2}[split]
        sample = {"image": np.full((8, 8, 3), self.value, np.uint8), "semantic": ids}
        if len(self.tasks) > 1:
            sample["depth"] = np.ones((1, 8, 8), np.float32)
        return [dict(sample) for _ in range(count)]


def make(**settings):
    street, town = settings.pop("names", NAMES).values()
    datasets = {
        "street": Ids(street, 10, extra=[ms.tasks.depth("depth")]),
        "town": Ids(town, 20, augment=Augment(flip=1.0)),
    }
    settings = {"classes": {"semantic": COMMON}, "maps": MAPS, "batch_size": 4, **settings}
    return Mixed(datasets, **settings)


def quarters(label):
    return label[..., ::4, ::4].reshape(*label.shape[:-2], 4).tolist()


def test_classes_are_brought_together_and_what_a_set_lacks_is_unlabelled():
    data = make()
    semantic, depth = data.tasks
    assert semantic.target.class_names == COMMON and depth.name == "depth"
    first, *_, last = data.samples("train")
    assert quarters(first["semantic"]) == [2, 0, 1, 255]  # road, car, person, unlabelled
    assert quarters(last["semantic"]) == [0, 2, 255, 255]  # car, road, a tree is nothing, unlabelled
    assert "depth" in first and "depth" not in last
    data.setup()
    batches = list(data.val_dataloader())
    assert [len(batch["image"]) for batch in batches] == [4, 2]
    labelled = depth.target.labelled(batches[0]["depth"]).flatten(1).any(dim=1)
    assert labelled.tolist() == [True, True, True, False]


def test_images_are_shuffled_together_and_each_set_keeps_its_augmentation():
    data = make()
    data.setup()
    seen, mixed = [], 0
    for epoch in range(4):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        assert [d.samples.epoch for d in data.train_dataset.datasets] == [epoch] * 2
        for batch in loader:
            values = (batch["image"][:, 0, 0, 0] * 255).round().long()
            mixed += len(values.unique()) > 1
            for value, ids in zip(values.tolist(), batch["semantic"]):
                seen.append(value)
                assert quarters(ids) == ([2, 0, 1, 255] if value == 10 else [2, 0, 255, 255])
    assert sorted(seen) == [10] * 16 + [20] * 16 and mixed >= 3


def test_boxes_and_image_labels():
    table = np.array([1, -1, 0])
    boxes = {
        "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        "labels": np.array([2, 1, 0], np.int64),
    }
    moved = relabel(ms.tasks.Boxes(2), boxes, table)
    assert moved["boxes"][:, 0].tolist() == [0, 8] and moved["labels"].tolist() == [0, 1]
    kind = ms.tasks.ImageLabel(2)
    labels = [relabel(kind, np.array(i), table) for i in (0, 1, 2, -100)]
    assert [int(label) for label in labels] == [1, -100, 0, -100]
    for label in labels:
        kind.check(label)


def test_by_default_the_classes_are_those_of_the_first_set_and_names_lead_to_names():
    data = make(classes=None, maps=None)
    assert data.tasks[0].target.class_names == NAMES["street"]
    *_, last = data.samples("train")
    assert quarters(last["semantic"]) == [255, 0, 255, 255]
    same = make(classes=None, maps=None, names=dict.fromkeys("ab", NAMES["town"]))
    assert same.tables == {"street": {}, "town": {}}


def test_tasks_that_are_taken_leave_out_sets_without_them():
    data = make(tasks=["depth"])
    assert list(data.datasets) == ["street"] and len(data.samples("train")) == 4


def test_it_is_trained_on_halves_and_more_sets():
    datasets = {"a": Shapes(size=8, train=12, val=2, test=2), "b": Shapes(size=8, train=8, render_seed=1)}
    data = Mixed(datasets, batch_size=4)
    network = ms.MultiTask(Network(data.tasks[0]), data.tasks, optimizer=SGD)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(network, data)
    assert trainer.global_step == 5
    halves = ms.data.Bilevel(data)
    halves.setup()
    loaders = halves.train_dataloader()
    assert {len(loader.sampler) for loader in loaders.values()} == {8}


def SGD(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Network(torch.nn.Module):
    def __init__(self, task):
        super().__init__()
        self.name, self.layer = task.name, torch.nn.Linear(3, task.target.num_classes)

    def forward(self, image, tasks=None):
        return {self.name: self.layer(image.mean(dim=(2, 3)))}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"tasks": ["normals"]}, "No data set labels a task 'normals': there are semantic, depth"),
        ({"classes": {"depth": ["a", "b"]}}, "classes of the task 'depth' cannot be set"),
        ({"maps": {"semantic": {"village": {}}}}, "no data set 'village' labels 'semantic', only street, town"),
        ({"maps": {"semantic": {"street": {"bus": "car"}}}}, "leads from 'bus' to 'car', but there is no 'bus'"),
        ({"maps": {"semantic": {"street": {"car": "bus"}}}}, "'car' to 'bus', but there is no 'bus' among"),
        ({"maps": {"semantic": {"town": {"Car": "car"}}}}, "No class of any data set leads to 'person'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(settings, fault):
    with pytest.raises(ValueError, match=fault):
        make(**settings)


def test_one_name_for_two_kinds_of_label_is_an_error():
    def nothing(*args):
        return torch.zeros(()), torch.zeros(())

    kind = Task("semantic", ms.tasks.Depth(), torch.nn.Identity, nothing, {"none": lambda: Mean(nothing)})
    other = Ids(["a", "b", "c"], 0)
    other.tasks = [kind]
    with pytest.raises(ValueError, match="The data sets 'a' and 'b' label 'semantic' in two ways"):
        Mixed({"a": Ids(["a", "b", "c"], 0), "b": other})
    with pytest.raises(ValueError, match="Data set 'a': Mixed needs a TaskData, not list"):
        Mixed({"a": []})


def test_images_of_two_sizes_are_an_error_with_the_mend():
    data = Mixed({"a": Shapes(size=8, train=4), "b": Shapes(size=9, train=4)}, batch_size=8)
    data.setup()
    with pytest.raises(ValueError, match="differ in size"):
        next(iter(data.train_dataloader()))


def test_it_is_a_data_set_of_the_command_line():
    kinds = "{_target_: mtlsearch.data.Shapes, size: 8, train: 4, val: 2, test: 2, tasks: [kind]"
    data, _ = compose_dataset(
        [
            "dataset=mixed",
            f"+dataset.datasets={{a: {kinds}}}, b: {kinds}, render_seed: 1}}}}",
            "dataset.classes={kind: [striped, other]}",
            "dataset.maps={kind: {a: {striped disc: striped, checked disc: other}, b: {striped ring: striped}}}",
            "dataset.batch_size=8",
        ]
    )
    assert data.tasks[0].target.class_names == ["striped", "other"]
    assert data.batch_size == 8 and len(data.samples("train")) == 8
