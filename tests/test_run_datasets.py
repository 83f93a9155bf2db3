"""The command line on a data set a task: texts, domains, and several data sets of any kind."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import mtlsearch as ms
from mtlsearch import check_data
from mtlsearch import run as command
from mtlsearch.data.domains import DOMAINS
from test_text import rows_of, write

TINY = ["searcher=single_task", "epochs=1", "trainer.accelerator=cpu", "hydra.run.dir=runs/${now:%f}"]
RESNET = ["backbone=timm", "backbone.name=test_resnet"]
SMALL = ["dataset.size=32", "dataset.train=8", "dataset.val=2", "dataset.test=2", "dataset.batch_size=4"]
ROOMS = "_target_: mtlsearch.data.scenes.Scenes, size: 32, train: 8, val: 2, test: 2, batch_size: 4"


pytestmark = pytest.mark.usefixtures("folder")


def ran(*arguments):
    """The metrics of a run, which has to succeed."""
    assert command.main([*TINY, *arguments, "hydra.run.dir=a"]) == 0
    assert Path("a/report.html").exists()
    return json.loads(Path("a/metrics.json").read_text())


def test_texts_are_trained_on(folder):
    for number, name in enumerate(("news", "reviews")):
        write(folder / f"{name}.csv", rows_of(20, seed=number))
    texts = ["dataset=text", "dataset.root=.", "dataset.length=32", "dataset.batch_size=8"]
    metrics = ran(*texts, "backbone=vdcnn")
    assert set(metrics["test"]) == {"news", "reviews", "loss"}
    settings = yaml.safe_load(Path("a/config.yaml").read_text())
    assert (settings["backbone"]["depth"], settings["tasks"]) == (9, None)
    network = ms.load("a")
    assert network(ms.data.Collate({})([{"image": np.zeros(32, np.uint8)}])["image"])["news"].shape == (1, 3)
    assert check_data.main([*texts, "hydra.run.dir=b"]) == 0


def test_a_wrong_table_is_one_line(folder, refused):
    write(folder / "news.csv", [*rows_of(20), ["4"]])
    assert "news.csv, line 21: the row has 1 column(s)" in refused(*TINY, "dataset=text", "dataset.root=.")
    line = refused(*TINY, "dataset=text", "dataset.root=.", "dataset.tables={n: {train: news.csv, lable: 1}}")
    assert "unexpected keyword argument 'lable'" in line
    assert "dataset.root=VALUE" in refused(*TINY, "dataset=text")


def test_domains_are_trained_on():
    metrics = ran("dataset=domains", *RESNET, *SMALL, "dataset.together=true", "tasks=[photo,sketch]")
    assert set(metrics["val"]) == {"photo", "sketch", "loss"}


def test_several_data_sets_of_any_kind_are_trained_on(refused):
    datasets = f"dataset.datasets={{kinds: {{{ROOMS}, tasks: [object]}}, maps: {{{ROOMS}, tasks: [depth]}}}}"
    metrics = ran("dataset=per_task", datasets, *RESNET, "weights.object=2")
    assert set(metrics["test"]) == {"object", "depth", "loss"}
    line = refused(*TINY, "dataset=per_task", datasets.replace("depth", "object"), *RESNET)
    assert "'kinds' and 'maps' both label a task 'object'" in line
    assert "dataset.datasets=VALUE" in refused(*TINY, "dataset=per_task", *RESNET)


def test_inner_data_sets_get_head_and_seed():
    settings = {
        "tasks": None,
        "head": {"name": "light", "width": 8},
        "seed": 3,
        "dataset": {
            "_target_": "mtlsearch.data.PerTask",
            "datasets": {"one": {"_target_": "mtlsearch.data.scenes.Scenes", "tasks": ["depth"]}},
        },
    }
    data = command.make_datamodule(settings)
    inner = data.datasets["one"]
    assert (data.seed, inner.seed) == (3, 3)
    assert inner.tasks[0].head([4], [1]).levels[0].out_channels == 8


def test_every_argument_can_be_set_without_a_plus():
    def arguments(function):
        return set(inspect.signature(function).parameters) - {"self", "tasks", "head", "seed"}

    for name, function in {
        "dataset/text": ms.data.texts,
        "dataset/domains": ms.data.domains,
        "dataset/per_task": ms.data.PerTask.__init__,
        "backbone/vdcnn": ms.backbones.vdcnn,
    }.items():
        node = yaml.safe_load((command.CONF / f"{name}.yaml").read_text())
        keys = set(node.get("dataset", node)) - {"_target_"}
        assert keys == arguments(function), name


# The domains


def test_domains_show_other_scenes_in_their_own_manner():
    settings = {"size": 32, "train": 6, "val": 2, "test": 3}
    data = ms.data.domains(**settings)
    data.prepare_data()
    scenes = data.datasets["photo"].scenes.samples("train")
    assert [task.name for task in data.tasks] == list(DOMAINS)
    shown = {name: part.samples("train") for name, part in data.datasets.items()}
    names = [sample["name"].partition("/")[2] for part in shown.values() for sample in part]
    assert len(set(names)) == len(names) == 24
    known = {scenes[i]["name"]: scenes[i] for i in range(len(scenes))}
    for name, part in shown.items():
        for sample in part:
            scene = known[sample["name"].partition("/")[2]]
            assert sample[name] == scene["object"] and sample["image"].dtype == np.uint8
            assert np.array_equal(sample["image"], scene["image"]) == (name == "photo")
    assert all((sample["image"] == sample["image"][..., :1]).all() for sample in shown["grey"])
    assert set(np.unique(shown["clipart"][0]["image"])) <= {0, 85, 170, 255}
    assert np.median([sample["image"] for sample in shown["sketch"]]) > 200
    again = ms.data.domains(["sketch"], **settings).datasets["sketch"].samples("train")
    assert all(
        np.array_equal(one["image"], other["image"])
        for one, other in zip(again, shown["sketch"], strict=True)
    )


def test_an_unknown_domain_is_refused():
    with pytest.raises(ValueError, match="no domain 'quickdraw': known are photo, sketch, clipart, grey"):
        ms.data.domains(["quickdraw"])
