import csv
import json
import re
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import rcParams
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

import mtlsearch as ms
from mtlsearch import report
from mtlsearch.report import figures, page, tables

HOSTILE = "<script>alert(1)</script>"


def make_architecture(tasks, layers=4):
    """All edges from the same or the previous layer are candidates, those within a layer are chosen."""
    candidates = [
        {
            "task": task,
            "layer": layer,
            "source_task": other,
            "source_layer": source,
            "probability": layer / layers,
        }
        for task in tasks
        for other in tasks
        if other != task
        for layer in range(layers)
        for source in (layer - 1, layer)
        if source >= 0
    ]
    return {
        "kind": "fusion",
        "version": 1,
        "tasks": dict.fromkeys(tasks),
        "backbone": {"name": "resnet18", "arguments": {}},
        "nodes": [{"path": f"layer{i}", "stage": i // 2} for i in range(layers)],
        "activation": "relu",
        "candidates": candidates,
        "edges": [edge for edge in candidates if edge["layer"] == edge["source_layer"]],
    }


METRICS = {
    "val": {"semantic": {"miou": 0.5}, "normals": {"mean_angle": 20.0}, "loss": 1.5},
    "test": {"semantic": {"miou": 0.4}, "normals": {"mean_angle": 24.0}, "loss": 1.7},
    "supernet": {
        "val": {"semantic": {"miou": 0.6}, "normals": {"mean_angle": 25.0}, "loss": 1.4},
        "test": {"semantic": {"miou": 0.3}, "normals": {"mean_angle": 23.0}, "loss": 1.6},
    },
    "samples": [{"semantic": {"miou": value}, "loss": 1.0} for value in (0.4, 0.6)],
    "directions": {"semantic": {"miou": True}, "normals": {"mean_angle": False}},
    "cost": {
        "params": 23_500_000,
        "macs": 4_100_000_000,
        "latency_ms": 12.5,
        "per_task": {"semantic": {"params": 11_200_000, "macs": 2_000_000_000}},
    },
    "seconds": {"single_task": 61.0, "search": 120.0},
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "architecture.json").write_text(json.dumps(make_architecture(["semantic", "normals"])))
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "config.yaml").write_text("searcher: {_target_: mtlsearch.MTLNAS}\nseed: 3\n")
    columns = ["stage", "epoch", "step", "train/weights/semantic", "train/entropy", "val/semantic/miou"]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(["single_task", epoch, epoch * 5, 1.0, "", 0.1 * epoch] for epoch in (1, 2))
        writer.writerows(["search", epoch, epoch * 10, 0.5, 0.6, ""] for epoch in (1, 2, 3))
    return tmp_path


def read_rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_histogram_counts_are_numpys():
    probabilities = np.random.default_rng(0).beta(0.3, 0.3, 200)
    other = [0.0, 0.5, 1.0]
    figure = figures.histograms({"one": probabilities, "other": other})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one", "other"]
    for axes, values in zip(figure.axes, (probabilities, other)):
        counts = [bar.get_height() for bar in axes.patches]
        assert counts == np.histogram(values, bins=25, range=(0, 1))[0].tolist()


@pytest.mark.parametrize("tasks", [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]])
def test_every_edge_is_drawn_once(tasks):
    architecture = make_architecture(tasks)
    figure = figures.fusion(architecture)
    drawn = [patch.get_gid() for axes in figure.axes for patch in axes.patches]
    assert drawn.count("chosen") == len(architecture["edges"])
    assert drawn.count("candidate") == len(architecture["candidates"]) - len(architecture["edges"])


def test_an_arrow_points_from_the_source_to_the_sink():
    architecture = make_architecture(["a", "b"])
    architecture["edges"] = [{"task": "a", "layer": 3, "source_task": "b", "source_layer": 2}]
    (axes,) = figures.fusion(architecture).axes
    (arrow,) = [patch for patch in axes.patches if patch.get_gid() == "chosen"]
    assert arrow._posA_posB == [(1, 2), (0, 3)]


def test_stages_are_laid_end_to_end(run):
    losses = figures.curves(read_rows(run)).axes[0]
    lines = [list(line.get_xdata()) for line in losses.lines]
    assert [5, 10] in lines
    assert [20, 30, 40] in lines
    assert losses.get_xlim() == (0, 40)


def test_figures_leave_the_callers_style_alone():
    before = dict(rcParams)
    figures.histograms({"": [0.1, 0.9]})
    assert dict(rcParams) == before


class Guess(torch.nn.Module):
    def forward(self, image, tasks=None):
        return {
            "semantic": torch.ones(len(image), 3, 8, 8) * torch.arange(3)[:, None, None],
            "scene": torch.tensor([[0.0, 9.0], [9.0, 0.0], [9.0, 0.0]])[: len(image)],
        }


@pytest.mark.parametrize(("images", "shown"), [(11, [0, 3, 7, 10]), (2, [0, 1])])
def test_examples_come_from_all_over_the_validation_set(images, shown):
    class Counted(Dataset):
        def __len__(self):
            return images

        def __getitem__(self, i):
            return {"image": torch.full((3, 2, 2), float(i))}

    data = SimpleNamespace(val_dataset=Counted(), val_dataloader=lambda: DataLoader(Counted(), batch_size=3))
    assert figures.examples(data)["image"][:, 0, 0, 0].tolist() == shown
    del data.val_dataset
    assert figures.examples(data)["image"][:, 0, 0, 0].tolist() == list(range(min(3, images)))


def test_predictions_say_what_is_unlabelled_and_what_is_right():
    tasks = [
        ms.tasks.segmentation("semantic", num_classes=3, class_names=["sky", "road", "$car$"]),
        ms.tasks.classification("scene", num_classes=2, class_names=["hall", "attic"]),
    ]
    semantic = torch.full((3, 8, 8), 2)
    semantic[0, :4] = 255
    batch = {"image": torch.rand(3, 3, 8, 8), "semantic": semantic, "scene": torch.tensor([1, 1, -100])}
    figure = figures.predictions(Guess(), tasks, batch)
    grid = np.array(figure.axes).reshape(3, 4)

    truth, guess = (axes.images[0].get_array() for axes in grid[0, 1:3])
    assert (truth[4:] == guess[4:]).all()
    assert (truth[:4] != guess[:4]).any(axis=-1).all()
    texts = [axes.texts[0].get_text() for axes in grid[:, 3]]
    assert "✓" in texts[0]
    assert "✗" in texts[1]
    assert "unlabelled" in texts[2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$car$"]


def test_a_task_without_targets_is_shown_as_unlabelled():
    tasks = [ms.tasks.segmentation("semantic", num_classes=3)]
    figure = figures.predictions(Guess(), tasks, {"image": torch.rand(1, 3, 8, 8)})
    grey = figure.axes[1].images[0].get_array()
    assert (grey == grey[..., :1]).all()


def test_the_figures_that_a_run_allows_are_written(run):
    assert [path.name for path in figures.write(run)] == [
        "probabilities.png",
        "architecture.png",
        "curves.png",
    ]
    for path in (run / "figures").iterdir():
        Image.open(path).verify()


def test_the_page_is_self_contained(run):
    task = ms.tasks.segmentation("semantic", num_classes=3)
    batch = {"image": torch.rand(2, 3, 8, 8), "semantic": torch.zeros(2, 8, 8, dtype=torch.long)}
    path = report.write(run, network=Guess(), tasks=[task], batch=batch)
    assert path == run / "report.html"
    text = path.read_text()
    assert text.count('src="data:image/png;base64,') == 4
    for source in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]{1,30})""", text):
        assert source.startswith("data:")
    assert "<script" not in text
    assert "<link" not in text


def test_the_page_marks_the_best_and_gives_the_spread(run):
    text = page.write(run).read_text()
    row = re.search(r"<tr><td>miou.↑</td>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td>(.*?)</td>", row) == ["<b>0.6000</b>", "0.5000", "-16.67%"]
    row = re.search(r"<tr><td>mean angle.↓</td>(.*?)</tr>", text).group(1)
    assert re.findall(r"<td>(.*?)</td>", row) == ["25.00", "<b>20.00</b>", "+20.00%"]
    assert "<td>0.5000 ± 0.1</td><td>0.4000</td><td>0.6000</td>" in text
    assert "3 min 01 s" in text


def test_the_page_escapes_what_comes_from_files(tmp_path):
    run = tmp_path / "<b>run"
    (run / ".hydra").mkdir(parents=True)
    architecture = make_architecture([HOSTILE, "normals"])
    architecture["backbone"]["name"] = HOSTILE
    (run / "architecture.json").write_text(json.dumps(architecture))
    values = {HOSTILE: {HOSTILE: 0.5}}
    metrics = {"val": values, "supernet": {"val": values}, "samples": [values], "seconds": {HOSTILE: 1.0}}
    metrics["cost"] = {"params": 1, "per_task": {HOSTILE: {"params": 1}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "config.yaml").write_text(f"searcher: '{HOSTILE}'\ndataset: '{HOSTILE}'\nseed: '{HOSTILE}'\n")
    (run / ".hydra" / "overrides.yaml").write_text(f"- searcher={HOSTILE}\n")
    text = report.write(run).read_text()
    assert "<script" not in text
    assert "<b>run" not in text
    assert text.count("&lt;script&gt;") >= 8


def test_the_page_does_with_nothing(tmp_path):
    assert "<h1>" in report.write(tmp_path).read_text()
    (tmp_path / "metrics.json").write_text('{"val": {"depth": {"absolute_error": NaN}}}')
    text = report.write(tmp_path).read_text()
    assert "<td>absolute error" in text
    assert "<td>–</td>" in text
    assert "Cost" not in text


def shown(metrics, width=80):
    stream = StringIO()
    tables.show(metrics, Console(file=stream, width=width))
    return stream.getvalue()


def test_tables_show_directions_and_both_networks():
    text = shown(METRICS).replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"semantic +miou ↑ +0\.6000 +0\.5000", text)
    assert re.search(r"normals +mean angle ↓ +25\.00 +20\.00", text)
    assert re.search(r"semantic +miou ↑ +0\.3000 +0\.4000", text)
    assert re.search(r"all tasks +23\.5 M +4\.1 G +12\.50 ms", text)
    assert text.index("supernet") < text.index("derived")
    assert max(map(len, text.splitlines())) <= 80


def test_the_best_follows_the_direction():
    rows = {(row.task, row.metric): row for row in tables.compare(METRICS, "val")}
    assert rows["semantic", "miou"].best == (True, False)
    assert rows["normals", "mean_angle"].best == (False, True)
    assert rows["normals", "mean_angle"].gain == pytest.approx(20)


def test_a_run_without_a_supernet_has_one_column():
    assert list(tables.networks({"val": METRICS["val"]})) == ["network"]
    assert "mean angle" in shown({"val": METRICS["val"]})
    assert shown({}) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1500, "1.5 k"), (999_999, "1 M"), (23_512_345, "23.5 M"), (None, "–")],
)
def test_counts_are_short(value, text):
    assert tables.count(value) == text
