"""The comparison of runs: which are one system, what is worked out, what is refused, and how it is written."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mtlsearch import compare as command
from mtlsearch.report import comparing, formats, side_by_side
from mtlsearch.report.agreement import check, missing
from mtlsearch.report.comparison import Column, caption, compare
from mtlsearch.report.delta import delta_m, without_reference
from mtlsearch.report.numbers import counted, measured, whole
from mtlsearch.report.pareto import Point, front, trade_off
from mtlsearch.report.systems import find, group
from runs import make_run

HOSTILE = "<script>alert('1')</script>|$x_1$\\input{a}&`*"


@pytest.fixture
def runs(tmp_path):
    """Three systems of two seeds: single-task networks, hard sharing and AdaShare."""
    for seed, (single, hard, ada) in enumerate(
        [((0.5, 2.0), (0.6, 2.0), (0.55, 1.0)), ((0.4, 4.0), (0.4, 3.0), (0.5, 2.0))]
    ):
        make_run(tmp_path / f"single{seed}", "single_task", seed, single, macs=3e9, params=3_000_000)
        make_run(tmp_path / f"hard{seed}", "hard_sharing", seed, hard, tiles=True)
        make_run(
            tmp_path / f"ada{seed}",
            "adashare",
            seed,
            ada,
            macs=2e9,
            params=1_500_000 + 1000 * seed,
            tiles=True,
        )
    return tmp_path


def table_of(*paths, **options):
    return compare(group(find(paths)), **options)


# Systems


def test_runs_that_differ_in_the_seed_alone_are_one_system(runs):
    make_run(runs / "ada_b", "adashare", 0, (0.5, 2.0), extra={"sparsity_weight": 0.1})
    make_run(runs / "gpu", "hard_sharing", 7, (0.5, 2.0), trainer={"accelerator": "gpu", "devices": 4})
    systems = group(find([runs]))
    assert {system.name: list(system.finished) for system in systems} == {
        "single_task": [0, 1],
        "adashare (sparsity_weight none)": [0, 1],
        "hard_sharing": [0, 1, 7],
        "adashare (sparsity_weight 0.1)": [0],
    }
    assert systems[0].is_single_task


def test_a_system_that_has_a_name_goes_by_it(tmp_path):
    for seed in range(2):
        make_run(tmp_path / f"darts{seed}", "mtnas", seed, system="DARTS", budget=8)
    systems = group(find([tmp_path]))
    assert [system.name for system in systems] == ["DARTS"]
    systems[0].runs[0].overrides["system"] = "darts"
    assert missing(systems, ["darts", "mtan"]) == ["mtan: not begun"]


def test_a_run_that_a_setting_names_is_told_by_what_it_is(runs, tmp_path):
    for seed in range(2):
        extra = {"like": str(runs / f"ada{seed}")}
        make_run(tmp_path / f"like{seed}", "random_policy", seed, extra=extra)
    assert [system.name for system in group(find([tmp_path / "like0", tmp_path / "like1"]))] == [
        "random_policy"
    ]


def test_a_run_twice_is_refused(runs, tmp_path):
    make_run(tmp_path / "again", "adashare", 0)
    with pytest.raises(ValueError, match=r"ada0 and .*again are one system with the same seed"):
        group(find([runs]))


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run, and there is none in it"):
        find([tmp_path])


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", ".hydra/overrides.yaml"])
def test_files_are_read_and_never_executed(tmp_path, name):
    folder = make_run(tmp_path / "a")
    (folder / name).write_text(f"!!python/object/apply:pathlib.Path.touch [{tmp_path / 'executed'}]")
    with pytest.raises(ValueError, match="cannot be read"):
        find([folder])
    assert not (tmp_path / "executed").exists()


# What is worked out


def test_gains_spread_and_marks_by_hand(runs):
    result = table_of(runs)
    assert [system.name for system in result.systems] == ["single_task", "adashare", "hard_sharing"]
    miou, error = result.columns[:2]
    assert (miou.title, error.title) == ("miou\N{NO-BREAK SPACE}↑", "error\N{NO-BREAK SPACE}↓")
    assert miou.means == pytest.approx([0.45, 0.525, 0.5])
    assert miou.deviations == pytest.approx([0.1 / 2**0.5, 0.05 / 2**0.5, 0.2 / 2**0.5])
    assert miou.marks == ["", "best", "second"]
    assert error.means == pytest.approx([3.0, 1.5, 2.5]) and error.marks == ["", "best", "second"]
    # adashare: semantic +10 %, +25 %; depth +50 %, +50 %. hard sharing: +20 %, 0 %; 0 %, +25 %.
    gains = {column.name: column.means for column in result.groups["delta_m, %"]}
    assert gains["semantic"] == pytest.approx([0, 17.5, 10])
    assert gains["depth"] == pytest.approx([0, 50, 12.5])
    assert gains["all"] == pytest.approx([0, 33.75, 11.25])
    everything = result.column("delta_m, %", "all")
    assert everything.deviations[1] == pytest.approx((37.5 - 30) / 2**0.5)
    assert everything.texts == ["0", "+33.75 ± 5.30", "+11.25 ± 1.77"]
    assert result.column("cost", "backbone, % of single-task").means == pytest.approx(
        [100, 50.0166, 100 / 3], rel=1e-4
    )
    assert result.column("cost", "parameters").texts == ["3 M", "1.5 ± 0.0 M", "1 M"]
    assert result.column("training", "images").texts == ["1,000"] * 3
    assert result.column("training", "time").means == [60, 60, 60]
    assert result.column("training", "time of the search").texts == ["30.0 s"] * 3
    assert (result.split, result.missing, result.notes) == ("test", (), ())


@pytest.mark.parametrize(
    ("means", "higher", "marks"),
    [
        ([1.0, 3.0, 2.0], True, ["", "best", "second"]),
        ([1.0, 3.0, 2.0], False, ["best", "", "second"]),
        ([1.0, 3.0, 3.0], True, ["second", "best", "best"]),
        ([1.0, None, 2.0], True, ["second", "", "best"]),
        ([1.0, 1.0], True, ["", ""]),
        ([1.0, 2.0], None, ["", ""]),
        ([float("nan"), 1.0, 2.0], True, ["", "second", "best"]),
    ],
)
def test_marks_follow_the_direction(means, higher, marks):
    column = Column("t", "m", higher, tuple((mean,) for mean in means), measured)
    assert column.marks == marks
    assert [text == "–" for text in column.texts] == [mean is None or mean != mean for mean in means]


def test_one_seed_has_no_spread(runs):
    result = table_of(runs / "single0", runs / "ada0")
    assert result.columns[0].texts == ["0.5000", "0.5500"] and "±" not in formats.markdown(result)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (counted(1_234_567, 34_567), "1.23 ± 0.03 M"),
        (counted(0, None), "0"),
        (measured(26.9, 0.505), "26.90 ± 0.51"),
        (measured(0.4746, None), "0.4746"),
        (whole(3840, 0.0), "3,840"),
    ],
)
def test_how_numbers_are_written(shown, text):
    assert shown == text


def test_a_reference_of_zero_is_left_out_and_said(tmp_path):
    directions = {"detection": {"map": True, "map_50_cone": True, "map_50_box": True}}
    make_run(tmp_path / "s", "single_task", 0, (0.5, 0.0, 0.4), directions=directions)
    make_run(tmp_path / "h", "hard_sharing", 0, (0.6, 0.1, 0.3), directions=directions)
    result = table_of(tmp_path)
    assert result.column("delta_m, %", "all").means == pytest.approx([0, (20 - 25) / 2])
    assert any("leaves out map 50 cone of detection for seed 0" in note for note in result.notes)
    nothing = {"a": {"x": 0.0}}
    assert delta_m(nothing, nothing, {"a": {"x": True}}) == {}
    assert without_reference(nothing, {"a": {"x": True}}) == [("a", "x")]


def test_what_breaks_down_another_metric_does_not_count(tmp_path):
    names = {
        "directions": {"detection": {"map": True, "map_50_box": True}},
        "breakdowns": {"detection": ["map_50_box"]},
    }
    make_run(tmp_path / "s", "single_task", 0, (0.5, 0.001), **names)
    make_run(tmp_path / "h", "hard_sharing", 0, (0.6, 0.1), **names)
    result = table_of(tmp_path)
    assert result.column("delta_m, %", "all").means == pytest.approx([0, 20])
    assert result.column("detection", "map_50_box").marks == ["second", "best"]
    assert "the metrics of a task but map 50 box, which break down another, and over" in caption(result)
    assert not any("leaves out" in note for note in result.notes)


def test_without_single_task_runs_there_is_no_gain(runs):
    result = table_of(runs / "hard0", runs / "ada0", runs / "ada1")
    assert result.column("delta_m, %", "all") is None and "no run of single_task" in result.notes[0]
    result = table_of(runs / "single0", runs / "ada0", runs / "ada1")
    assert result.column("delta_m, %", "all").values[1] == (pytest.approx(30), None)
    assert any("No delta_m of seed 1" in note for note in result.notes)


def test_two_references_are_refused(runs):
    make_run(runs / "other", "single_task", 0, extra={"clip": 1.0})
    with pytest.raises(ValueError, match=r"here are 2: single_task \(clip 1.0\), single_task \(clip none\)"):
        table_of(runs)


def test_the_split_is_the_test_data_where_all_have_them(runs):
    make_run(runs / "val", "mtan", 0, split="val")
    assert table_of(runs).split == "val"
    with pytest.raises(ValueError, match="Not all of these runs have metrics on 'test'"):
        table_of(runs, split="test")


def test_what_is_missing_is_named(runs):
    make_run(runs / "cut", "mtan", 1, None)
    (runs / "hard1" / "metrics.json").unlink()
    systems = group(find([runs]))
    assert [re.sub(r", /.*", "", line) for line in missing(systems, ["den", "mtan"], [2])] == [
        "single_task, seed 2: not begun",
        "adashare, seed 2: not begun",
        "mtan, seed 0: not begun",
        "mtan, seed 1: not finished",
        "mtan, seed 2: not begun",
        "hard_sharing, seed 1: not finished",
        "hard_sharing, seed 2: not begun",
        "den: not begun",
    ]
    result = compare(systems)
    assert result.columns[0].texts[2] == "–" and "Missing: " in formats.markdown(result)
    with pytest.raises(ValueError, match="None of these runs is finished"):
        table_of(runs / "cut")


# What is refused


@pytest.mark.parametrize(
    ("kind", "words", "other"),
    [
        ("data", r"dataset.size .* is None and 64", {"dataset": {"size": 64}}),
        ("data", r"trainer.limit_test_batches .* is None and 2", {"trainer": {"limit_test_batches": 2}}),
        ("splits", r"dataset.train .* is 40 and 30", {"dataset": {"train": 30}}),
        (
            "tasks",
            r"the tasks .* are \['depth', 'semantic'\] and \['depth'\]",
            {"directions": {"depth": {"error": False}}},
        ),
        (
            "budget",
            r"single_task have seen 1,000 labelled images and those of mtan 1,100, more than 5 %",
            {"images": 1100},
        ),
        (
            "budget",
            r"backbone.pretrained .* is False and True",
            {"backbone": {"name": "resnet18", "pretrained": True}},
        ),
    ],
)
def test_what_differs_is_named_and_refused_unless_allowed(tmp_path, kind, words, other):
    make_run(tmp_path / "a", "single_task", 0)
    values = (0.5, 2.0) if kind != "tasks" else (2.0,)
    make_run(tmp_path / "b", "mtan", 0, values, **other)
    systems = group(find([tmp_path]))
    with pytest.raises(ValueError, match=f"cannot be compared: .*{words}.* With --allow {kind} they are"):
        check(systems)
    (note,) = check(systems, [kind])
    assert re.search(words, note)
    compare(systems, notes=[note])


def test_what_is_not_the_data_may_differ(tmp_path):
    make_run(tmp_path / "a", "single_task", 0)
    make_run(tmp_path / "b", "mtan", 0, images=1040, dataset={"batch_size": 8, "augment": {"flip": 0.5}})
    make_run(tmp_path / "c", "mtan", 1, None, dataset={"train": 2})  # not finished: it has no say
    systems = group(find([tmp_path]))
    assert check(systems) == []
    with pytest.raises(ValueError, match="more than 1 % apart"):
        check(systems, tolerance=0.01)


def test_a_run_without_a_budget_is_refused(tmp_path):
    folder = make_run(tmp_path / "a")
    text = (folder / "metrics.json").read_text().replace('"budget"', '"other"')
    (folder / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="does not say how many labelled images"):
        check(group(find([folder])))


def test_unequal_backbones_are_said(runs):
    make_run(runs / "cells", "mtnas", 0, backbone={})
    assert table_of(runs).notes == (
        "Not all have the same backbone. resnet18: single task, adashare, hard sharing; one of its own: mtnas.",
    )


def test_the_best_of_several_is_said(runs):
    path = runs / "ada0" / "metrics.json"
    path.write_text(path.read_text().replace('"seconds"', '"retrained": [{}, {}, {}], "seconds"'))
    assert table_of(runs).notes == ("The best on validation data of several networks: adashare of 3.",)


# How it is written


def test_markdown_latex_and_csv(runs):
    result = table_of(runs)
    lines = formats.markdown(result).splitlines()
    assert lines[0].startswith("| system | seeds | semantic miou\N{NO-BREAK SPACE}↑ | depth error")
    assert lines[3].startswith("| adashare | 0, 1 | **0.5250 ± 0.0354** | **1.50 ± 0.71** |")
    assert "<u>0.5000 ± 0.1414</u>" in lines[4]
    heads = [cell.strip() for cell in lines[0].split("|")[5:-1]]
    assert heads == ["delta\\_m, % all\N{NO-BREAK SPACE}↑", "parameters", "MACs", *heads[3:]]
    assert heads[3:] == ["training images of the search", "training time of the search"]
    titles = [line.removeprefix("### ") for line in lines if line.startswith("### ")]
    assert titles == ["semantic", "depth", "delta\\_m, %", "cost", "training"]
    latex = formats.latex(result)
    assert r"adashare & 0, 1 & \textbf{0.5250 $\pm$ 0.0354}" in latex
    assert r"\underline{0.5000 $\pm$ 0.1414}" in latex and r"miou~$\uparrow$" in latex
    captions = [line for line in latex.splitlines() if line.startswith(r"\caption")]
    assert captions[0].startswith(r"\caption{Mean $\pm$") and r"\caption{delta\_m, \%}" in captions[1:]
    widths = [len(columns) for columns in (result.overview, *result.groups.values())]
    bodies = latex.split(r"\midrule")[1:]
    assert [body.splitlines()[1].count("&") - 1 for body in bodies] == widths
    rows = list(csv.DictReader(io.StringIO(formats.csv_of_systems(result))))
    assert float(rows[1]["semantic miou"]) == pytest.approx(0.525)
    assert float(rows[1]["semantic miou, deviation"]) == pytest.approx(0.05 / 2**0.5)
    rows = list(csv.DictReader(io.StringIO(formats.csv_of_runs(result))))
    assert [(row["system"], row["seed"]) for row in rows[2:4]] == [("adashare", "0"), ("adashare", "1")]
    assert [float(row["semantic miou"]) for row in rows[2:4]] == [0.55, 0.5]


def test_hostile_names_are_text_everywhere(tmp_path):
    directions = {HOSTILE: {HOSTILE: True}}
    make_run(tmp_path / "<b>s", "single_task", 0, (0.5,), directions=directions, head=HOSTILE)
    make_run(tmp_path / "h", HOSTILE, 0, (0.6,), directions=directions, extra={"clip": HOSTILE}, tiles=True)
    result = table_of(tmp_path)
    files = comparing.contents(result, ["python", HOSTILE])
    html = files["comparison.html"]
    assert "<script" not in html and "<b>s" not in html and html.count("&lt;script&gt;") > 8
    assert (
        r"\input" not in files["comparison.tex"] and r"\textbackslash{}input\{a\}" in files["comparison.tex"]
    )
    assert "<script" not in files["comparison.md"]
    cells = [re.split(r"(?<!\\)\|", line) for line in files["comparison.md"].splitlines()[:4]]
    assert {len(row) for row in cells} == {len(result.overview) + 4}


def test_the_terminal_shows_every_column_and_keeps_to_its_width(runs):
    stream = io.StringIO()
    formats.terminal(table_of(runs), Console(file=stream, width=60))
    text = stream.getvalue().replace("\N{NO-BREAK SPACE}", " ")
    assert re.search(r"adashare +0\.5250 ± 0\.0354", text)
    for word in ("Test: semantic", "delta_m, %", "MACs", "latency", "images"):
        assert word in text
    assert max(map(len, text[: text.index("Mean ±")].splitlines())) <= 60


def test_the_page_shows_predictions_of_the_same_images_side_by_side(runs):
    tiles = side_by_side.read(runs / "hard0")
    moved = {**side_by_side.read(runs / "ada0"), "image": tiles["image"] + 1}
    html = side_by_side.side_by_side({"hard": runs / "hard0", "ada": runs / "ada1", "none": runs / "single0"})
    assert re.findall(r"<th>(.*?)</th>", html) == ["", "image", "ground truth", "hard", "ada"]
    assert html.count("<img") == 2 * 4
    (runs / "ada1" / side_by_side.FILE).write_bytes(side_by_side.encode(moved))
    assert side_by_side.side_by_side({"h": runs / "hard0", "a": runs / "ada1"}).count("<th>") == 4
    (runs / "ada1" / side_by_side.FILE).write_bytes(b"no archive")
    assert side_by_side.read(runs / "ada1") == {}
    np.savez(runs / "ada1" / side_by_side.FILE, image=np.array([{"a": 1}], dtype=object))
    assert side_by_side.read(runs / "ada1") == {}


def test_the_front_by_hand():
    points = {
        "cheap": Point(1, 0),
        "good": Point(2, 5),
        "same": Point(2, 5),
        "beaten": Point(3, 5),
        "worse": Point(2, 4),
        "dear": Point(4, 6, 1.0),
    }
    assert front(points) == ["cheap", "good", "same", "dear"]
    (axes,) = trade_off(points, "MACs", "gain").axes
    drawn = [line.get_gid() for line in axes.lines]
    assert drawn.count("front") == 4 and drawn.count("beaten") == 2
    (line,) = [line for line in axes.lines if line.get_gid() == "line"]
    assert sorted(set(zip(line.get_xdata(), line.get_ydata()))) == [(1, 0), (2, 5), (4, 6)]


# The commands


def test_the_command_writes_all_and_names_what_it_refuses(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert command.main([str(runs)]) == 0
    out = capsys.readouterr().out
    assert "Comparison: comparison.html, and .md, .tex and .csv" in out
    assert {"comparison_runs.csv", *(f"comparison.{kind}" for kind in ("html", "md", "tex", "csv"))} <= {
        path.name for path in runs.iterdir()
    }
    assert command.main(["ada0", "hard0", "--output", "out", "--split", "val"]) == 0
    assert "Validation data" in Path("out/comparison.md").read_text()
    make_run(runs / "long", "mtan", 0, images=2000)
    capsys.readouterr()
    assert command.main(["."]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("error: These runs cannot be compared: the weights of") and "--allow budget" in line
    )
    assert command.main([".", "--allow", "budget", "data"]) == 0
