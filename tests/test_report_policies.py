"""The figures of select-or-skip policies."""

import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mtlsearch.report import figures, policies


def make_policy(tasks, blocks=8, stages=4):
    """Every second block or so is selected; probabilities rise from task to task and block to block."""
    random = np.random.default_rng(0)
    return {
        "kind": "policy",
        "version": 1,
        "tasks": dict.fromkeys(tasks),
        "backbone": {"name": "resnet18", "arguments": {}},
        "blocks": [f"layer{index * stages // blocks + 1}.{index}" for index in range(blocks)],
        "stages": [index * stages // blocks for index in range(blocks)],
        "probabilities": {task: np.sort(random.random(blocks)).tolist() for task in tasks},
        "select": {task: (random.random(blocks) < 0.5).tolist() for task in tasks},
    }


def drawn(figure, gid):
    return [patch for patch in figure.axes[0].patches if patch.get_gid() == gid]


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("tasks", "blocks", "stages"), [(1, 1, 1), (1, 8, 4), (2, 8, 4), (5, 50, 4)])
def test_what_is_selected_is_outlined(tasks, blocks, stages):
    names = [f"task{index}" for index in range(tasks)]
    architecture = make_policy(names, blocks, stages)
    figure = figures.policy_map(architecture)
    select = np.array([architecture["select"][name] for name in names])
    assert len(drawn(figure, "block")) == select.size
    assert len(drawn(figure, "selected")) == select.sum()

    def centre(patch):
        x, y = patch.get_center()
        return round(x, 6), round(y, 6)

    centres = np.array([centre(patch) for patch in drawn(figure, "block")])[select.ravel()]
    assert [centre(patch) for patch in drawn(figure, "selected")] == [tuple(c) for c in centres]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == architecture["blocks"]
    counts = [f"{row.sum()} of {blocks}" for row in select]
    assert set(counts) <= set(texts(figure.axes[0]))


def test_a_likelier_block_is_darker():
    tones = [
        np.mean(to_rgb(patch.get_facecolor()))
        for patch in drawn(figures.policy_map(make_policy(["a"])), "block")
    ]
    assert tones == sorted(tones, reverse=True)
    assert tones[0] > tones[-1]


def test_stages_are_apart_and_named():
    axes = figures.policy_map(make_policy(["a", "b"])).axes[0]
    assert [text for text in texts(axes) if text in "0123"] == ["0", "1", "2", "3"]
    assert len(axes.lines) == 3
    steps = np.diff(axes.get_xticks())
    assert steps[1::2].min() > steps[::2].max()


@pytest.mark.parametrize("blocks", [8, 50, 120])
def test_labels_do_not_touch(blocks):
    architecture = make_policy(["a"], blocks)
    architecture["blocks"] = [f"backbone.of.a.very.long.name.{path}" for path in architecture["blocks"]]
    figure = figures.policy_map(architecture)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert all(label.get_text().startswith("…") for label in labels)
    ends = [path[-15:] for path in architecture["blocks"]]
    assert [label.get_text()[-15:] for label in labels] == ends


def test_a_probability_that_is_not_there_is_white():
    architecture = make_policy(["a"])
    architecture["probabilities"]["a"][:2] = [None, math.nan]
    figure = figures.policy_map(architecture)
    assert [to_rgb(patch.get_facecolor()) for patch in drawn(figure, "block")[:2]] == [(1, 1, 1)] * 2
    assert texts(figure.axes[0]).count("–") == 2


def test_a_policy_for_each_image_says_so():
    words = [
        text.get_text() for text in figures.policy_map(make_policy(["a"])).axes[1].get_legend().get_texts()
    ]
    assert words == ["selected", "skipped"]
    figure = figures.policy_map({**make_policy(["a"]), "instance": True})
    assert figure.axes[1].get_legend().get_texts()[0].get_text() == "selected on most images"
    assert figure.axes[2].get_xlabel() == "mean probability of being selected"


def with_probabilities(**probabilities):
    return {"tasks": dict.fromkeys(probabilities), "probabilities": probabilities}


def test_the_correlation_is_the_cosine():
    architecture = with_probabilities(a=[1.0, 0.0], b=[0.5, 0.5], c=[0.0, 0.0], d=[0.6, 0.8])
    found = policies.cosines(architecture)
    half = math.sqrt(0.5)
    known = np.array([[1, half, 0.6], [half, 1, 1.4 * half], [0.6, 1.4 * half, 1]])
    assert found[np.ix_([0, 1, 3], [0, 1, 3])] == pytest.approx(known)
    assert np.isnan(found[2]).all()
    assert np.isnan(found[:, 2]).all()

    axes = figures.task_correlation(architecture).axes[0]
    assert np.ma.allequal(axes.images[0].get_array(), np.ma.masked_invalid(found))
    assert texts(axes)[:8] == ["1.00", "0.71", "–", "0.60", "0.71", "1.00", "–", "0.99"]
    assert texts(axes)[8:12] == ["–"] * 4


def test_policies_that_are_alike_are_told_apart():
    axes = figures.task_correlation(with_probabilities(a=[1.0, 0.1], b=[1.0, 0.2])).axes[0]
    cosine = 1.02 / math.sqrt(1.01 * 1.04)
    assert texts(axes) == ["1.000", f"{cosine:.3f}", f"{cosine:.3f}", "1.000"]


def test_one_task_correlates_with_none():
    assert not figures.task_correlation(with_probabilities(a=[1.0])).axes


def test_no_policy_selects_anything():
    figure = figures.task_correlation(with_probabilities(a=[0.0], b=[0.0]))
    assert texts(figure.axes[0]) == ["–"] * 4


def make_points(pairs, seeds=2):
    return [
        {
            "sparsity_weight": sparsity,
            "sharing_weight": sharing,
            "kept": 0.9 - sparsity + 0.1 * seed,
            "agreement": 0.5 + sharing + 0.1 * seed,
            "seed": seed,
        }
        for sparsity, sharing in pairs
        for seed in range(seeds)
    ]


def test_the_trade_off_has_a_dot_a_run_and_a_line_of_means():
    kept, agreement = policies.trade_off(make_points([(0, 0.05), (0.1, 0.05), (0.2, 0.05), (0.1, 0.3)])).axes
    dots, line = kept.lines
    assert sorted(dots.get_ydata()) == pytest.approx([0.7, 0.8, 0.8, 0.9, 0.9, 1.0])
    assert list(line.get_xdata()) == [0, 0.1, 0.2]
    assert list(line.get_ydata()) == pytest.approx([0.95, 0.85, 0.75])
    assert list(agreement.lines[1].get_xdata()) == [0.05, 0.3]
    assert list(agreement.lines[1].get_ydata()) == pytest.approx([0.6, 0.85])
    assert kept.get_legend() is None


def test_every_value_of_the_other_weight_has_its_line():
    kept, agreement = policies.trade_off(make_points([(a, b) for a in (0, 0.1) for b in (0, 0.1, 0.2)])).axes
    assert [text.get_text() for text in kept.get_legend().get_texts()] == ["0", "0.1", "0.2"]
    assert len(agreement.get_legend().get_texts()) == 2


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_one_task_agrees_with_none(nothing):
    points = [{**point, "agreement": nothing} for point in make_points([(0, 0), (1, 0)])]
    kept, agreement = policies.trade_off(points).axes
    assert len(kept.lines) == 2
    assert texts(agreement) == ["no values"]
