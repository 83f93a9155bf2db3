"""What a run of select-or-skip policies shows: its figures, its page and its tables in the terminal."""

import csv
import json
import math
import re
from io import StringIO
from itertools import combinations

import pytest
from PIL import Image
from rich.console import Console

from mtlsearch import report
from mtlsearch.report import figures, page, tables
from test_report_policies import make_policy, texts

HOSTILE = "<script>alert(1)</script>"


def make_result(miou):
    return {"semantic": {"miou": miou}, "depth": {"absolute_error": 2 * miou}, "loss": 1 - miou}


METRICS = {
    "val": make_result(0.5),
    "test": make_result(0.4),
    "retrained": [
        {"val": make_result(value), "test": make_result(value - 0.1), "backbone_params": params, "select": {}}
        for value, params in ((0.3, 9_000_000), (0.5, 10_000_000), (0.4, 11_000_000))
    ],
    "chosen": 1,
    "directions": {"semantic": {"miou": True}, "depth": {"absolute_error": False}},
    "cost": {
        "params": 12_000_000,
        "macs": 4_000_000_000,
        "backbone_params": 10_000_000,
        "single_task_backbone_params": 30_000_000,
    },
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "architecture.json").write_text(json.dumps(make_policy(["semantic", "depth"])))
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "config.yaml").write_text("searcher: {_target_: mtlsearch.AdaShare}\n")
    progress = ["train/temperature", "train/open_blocks", "train/sparsity", "train/sharing"]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "epoch", "step", "train/weights/semantic", *progress])
        writer.writerows(["warm_up", epoch, epoch * 5, 1.0, "", "", "", ""] for epoch in (1, 2))
        writer.writerows(["search", epoch, epoch * 5, 0.9, 5 / epoch, epoch, "nan", 0.1] for epoch in (1, 2))
        writer.writerows([f"retrain_{i}", 1, 5, 0.9, "", "", "", ""] for i in range(9))
    return tmp_path


@pytest.mark.parametrize(
    ("tasks", "names"), [(["a"], ["policy"]), (["a", "b", "c"], ["policy", "correlation"])]
)
def test_the_figures_of_a_policy_are_written(tmp_path, tasks, names):
    (tmp_path / "architecture.json").write_text(json.dumps(make_policy(tasks)))
    assert [path.stem for path in figures.write(tmp_path)] == names
    for path in (tmp_path / "figures").iterdir():
        Image.open(path).verify()


@pytest.mark.parametrize(("certain", "names"), [([1.0] * 8, []), ([1.0, 0.0] * 4, ["policy"])])
def test_what_was_not_searched_has_no_correlation_and_hard_sharing_no_policy(tmp_path, certain, names):
    architecture = make_policy(["a", "b"])
    architecture["probabilities"] = dict.fromkeys("ab", certain)
    architecture["select"] = {task: [p == 1 for p in certain] for task in "ab"}
    (tmp_path / "architecture.json").write_text(json.dumps(architecture))
    assert [path.stem for path in figures.write(tmp_path)] == names


def test_the_search_has_panels_of_its_own_stage(run):
    with (run / "metrics.csv").open(newline="") as file:
        figure = figures.curves(list(csv.DictReader(file)))
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == ["loss", "sparsity loss", "sharing loss", "open blocks", "temperature"]
    assert panels["loss"].get_xlim() == (0, 65)
    assert panels["temperature"].get_xlim() == (0, 10)
    assert list(panels["temperature"].lines[0].get_ydata()) == [5, 2.5]
    assert texts(panels["temperature"]) == ["search"]
    assert not [line for line in panels["sparsity loss"].lines if len(set(line.get_xdata())) > 1]


def test_names_of_stages_do_not_overlap(run):
    with (run / "metrics.csv").open(newline="") as file:
        figure = figures.curves(list(csv.DictReader(file)))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) > 2
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_page_of_a_policy(run):
    text = report.write(run).read_text()
    assert text.count('src="data:image/png;base64,') == 3
    select = make_policy(["semantic", "depth"])["select"]
    assert f"<dd>semantic {sum(select['semantic'])}, depth {sum(select['depth'])} of 8</dd>" in text
    assert "<dd>-66.7 %</dd>" in text
    assert "10 M parameters: -66.7 % against" in text
    for title in ("Policy", "Correlation", "Curves", "Retrained samples"):
        assert f"<h2>{title}</h2>" in text


def cells(text, start):
    """The rows of the page that start with a metric, as lists of cells."""
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(rf"<tr><td>{start}.*?</tr>", text)]


def test_the_page_shows_how_retrained_samples_differ(run):
    text = page.write(run).read_text()
    text = text[text.index("Retrained samples") :]
    deviation = f"{math.sqrt(0.02 / 3):.2g}"
    assert [row[1:] for row in cells(text, "miou")] == [
        [f"0.4000 ± {deviation}", "0.3000", "0.5000", "<b>0.5000</b>"],
        [f"0.3000 ± {deviation}", "0.2000", "0.4000", "<b>0.4000</b>"],
    ]
    assert cells(text, "absolute error")[0][2:] == ["0.6000", "1.000", "<b>1.000</b>"]
    assert "3 samples of the policy" in text
    assert "chosen on validation data" in text
    assert "9 M to 11 M parameters, that of the chosen one 10 M" in text


@pytest.mark.parametrize("samples", [METRICS["retrained"][:1], [], None])
def test_one_retrained_sample_has_no_spread(run, samples):
    metrics = {**METRICS, "retrained": samples, "chosen": 0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "Retrained samples" not in page.write(run).read_text()
    assert "retrained" not in shown(metrics)


def test_what_is_not_a_number_is_left_out_of_the_spread(run):
    retrained = json.loads(json.dumps(METRICS["retrained"]))
    retrained[0]["val"]["semantic"]["miou"] = math.nan
    retrained[1]["val"] = {}
    metrics = {**METRICS, "retrained": retrained, "samples": [sample["val"] for sample in retrained[::2]]}
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = page.write(run).read_text()
    row, *_ = cells(text[text.index("Retrained samples") :], "miou")
    assert row[1:] == ["0.4000 ± 0", "0.4000", "0.4000", "<b>–</b>"]
    row, *_ = cells(text[text.index("Stochastic discretisations") :], "miou")
    assert row[1:] == ["0.4000 ± 0", "0.4000", "0.4000"]
    assert tables.spread([None, math.nan]) == ("–", "–", "–")
    assert "0.4000 ± 0" in shown(metrics)


def test_the_page_escapes_a_strangers_policy(tmp_path):
    architecture = make_policy([HOSTILE, "$normals_{$"])
    architecture["blocks"] = [HOSTILE] * 8
    (tmp_path / "architecture.json").write_text(json.dumps(architecture))
    values = {HOSTILE: {HOSTILE: 0.5}}
    samples = [{"val": values, "test": values, "backbone_params": 1, "select": {}}] * 2
    (tmp_path / "metrics.json").write_text(json.dumps({"val": values, "retrained": samples, "chosen": 0}))
    text = report.write(tmp_path).read_text()
    assert "<script" not in text
    assert "<dd>&lt;script&gt;" in text
    assert text.count("&lt;script&gt;") >= 7


def shown(metrics):
    stream = StringIO()
    tables.show(metrics, Console(file=stream, width=80))
    return stream.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_the_terminal_shows_the_spread_and_the_backbone():
    text = shown(METRICS)
    assert re.search(r"Validation, 3 retrained samples *\n", text)
    assert re.search(r"semantic +miou ↑ +0\.4000 ± 0\.082 +0\.5000", text)
    assert re.search(r"depth +absolute error ↓ +0\.6000 ± 0\.16 +0\.8000", text)
    assert "Backbone: 10 M parameters, -66.7 % against single-task networks" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    "cost",
    [None, {"params": 5}, {"backbone_params": 5}, {"backbone_params": 5, "single_task_backbone_params": 0}],
)
def test_a_backbone_with_nothing_to_compare_it_to_is_not_named(cost):
    assert tables.backbone_cost({"cost": cost}) is None
    assert "Backbone" not in shown({"cost": cost})
