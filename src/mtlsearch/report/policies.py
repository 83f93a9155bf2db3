"""Figures of select-or-skip policies, as in Figures 3 and 4 of AdaShare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsearch.report.style import CANDIDATE, CHOSEN, INK, PALETTE, SOFT, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cosines", "policy_map", "task_correlation", "trade_off"]

ROW = 0.42  # inches
LETTER = 0.07  # inches, of the labels' mean letter
MARGIN = 0.035  # inches between a block and the edge of its cell; an outline lies half way
GAP = 0.1  # inches between two stages
Run = Mapping[str, Any]


@styled
def policy_map(architecture: Mapping[str, Any]) -> Figure:
    """A policy as in Figure 3a of AdaShare: blocks by tasks, the darker the likelier, the selected outlined.

    Args:
        architecture: the content of an `architecture.json` of kind "policy". A block whose probability is None or
            NaN is white.
    """
    from matplotlib.figure import Figure

    tasks, blocks = list(architecture["tasks"]), architecture["blocks"]
    names = [_short(name) for name in tasks]
    paths = [_short(path) for path in blocks]
    cell = min(0.48, max(0.15, 7.4 / len(blocks)))  # inches; at 0.15 upright labels do not touch yet
    places = _places(architecture["stages"], GAP / cell)
    fits = max(map(len, paths)) * LETTER < cell
    margin = LETTER * max(map(len, names)) + 0.9
    extent = max(places[-1] + 1.1, (5.6 - margin) / cell)  # the key needs its room below few blocks as well
    height = ROW * len(tasks) + (0.2 if fits else LETTER * max(map(len, paths))) + 1.25
    figure = Figure(figsize=(cell * extent + margin, height))
    grid = figure.add_gridspec(2, 2, height_ratios=[ROW * len(tasks), 0.12], hspace=0.04)
    axes = figure.add_subplot(grid[0, :])
    for row, task in enumerate(tasks):
        probabilities, select = architecture["probabilities"][task], architecture["select"][task]
        _draw_row(axes, row, places, _floats(probabilities), select, cell)
    axes.set_xticks(places, paths, rotation=0 if fits else 90, fontsize=7.5)
    axes.set_yticks(range(len(tasks)), names, fontsize=9)
    axes.set_xlim(-0.55, extent - 0.55)
    axes.set_ylim(len(tasks) - 0.45, -0.55)
    _mark_stages(axes, places, architecture["stages"], GAP / cell)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_summary(architecture), loc="left", pad=24)
    _draw_key(figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1]), architecture)
    return figure


def _short(name: str) -> str:
    """The end of a name that is too long for a label."""
    return name if len(name) <= 28 else "…" + name[-27:]


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """None becomes NaN."""
    return np.asarray(values, dtype=float)


def _places(stages: Sequence[int], gap: float) -> np.ndarray:
    """Where each block lies on the x axis, with a gap before the first of a stage."""
    starts = np.diff(stages, prepend=stages[0]) != 0
    return np.arange(len(stages)) + gap * np.cumsum(starts)


def _draw_row(
    axes: Axes, row: int, places: np.ndarray, probabilities: np.ndarray, select: Sequence[bool], cell: float
) -> None:
    """The blocks of a task, and how many of them are selected."""
    from matplotlib import colormaps

    for place, probability, is_selected in zip(places, probabilities, select):
        known = math.isfinite(probability)
        colour = colormaps["Greys"](probability) if known else "white"
        block = {"facecolor": colour, "edgecolor": CANDIDATE, "linewidth": 0.5, "gid": "block"}
        _draw_box(axes, place, row, (MARGIN / cell, MARGIN / ROW), **block)
        if is_selected:
            outline = {"fill": False, "edgecolor": CHOSEN, "linewidth": 1.5, "gid": "selected"}
            _draw_box(axes, place, row, (MARGIN / cell / 2, MARGIN / ROW / 2), **outline)
        if cell >= 0.3:
            ink = "white" if probability > 0.5 else INK
            note = f"{probability:.2f}" if known else "–"
            axes.text(place, row, note, color=ink, fontsize=6.5, ha="center", va="center_baseline")
    count = f"{sum(select)} of {len(select)}"
    axes.text(places[-1] + 0.5 + 0.1 / cell, row, count, fontsize=8, color=SOFT, va="center_baseline")


def _draw_box(axes: Axes, place: float, row: int, margin: tuple[float, float], **style: Any) -> None:
    """The cell of a block, less a margin at the sides and one above and below."""
    from matplotlib.patches import Rectangle

    x, y = margin
    axes.add_patch(Rectangle((place - 0.5 + x, row - 0.5 + y), 1 - 2 * x, 1 - 2 * y, **style))


def _mark_stages(axes: Axes, places: np.ndarray, stages: Sequence[int], gap: float) -> None:
    """The stages' numbers above the blocks, and lines between them."""
    above = axes.get_xaxis_transform()
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": SOFT}
    axes.annotate("stage", (0, 1), (-4, 5), xycoords="axes fraction", ha="right", **style)
    bottom, top = axes.get_ylim()
    for stage, run in groupby(zip(places, stages), key=lambda item: item[1]):
        columns = [place for place, _ in run]
        middle = (columns[0] + columns[-1]) / 2
        axes.annotate(str(stage), (middle, 1), (0, 5), xycoords=above, ha="center", **style)
        if columns[0] > 0:
            edge = columns[0] - 0.5 - gap / 2
            axes.axvline(edge, ymax=1 + 0.35 / (bottom - top), color=SOFT, linewidth=0.8, clip_on=False)


def _summary(architecture: Mapping[str, Any]) -> str:
    """How many blocks all tasks run, and how many none does."""
    runs = np.sum([architecture["select"][task] for task in architecture["tasks"]], axis=0)
    blocks, tasks = len(runs), len(architecture["tasks"])
    if tasks == 1:
        return f"{np.sum(runs)} of {blocks} blocks selected"
    shared = f"{np.sum(runs == tasks)} of {blocks} blocks selected by every task"
    return f"{shared}, {np.sum((runs > 0) & (runs < tasks))} by some, {np.sum(runs == 0)} by none"


def _draw_key(left: Axes, right: Axes, architecture: Mapping[str, Any]) -> None:
    """What an outline means, and the bar of grey tones."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Patch

    mean, on_most = ("mean ", " on most images") if architecture.get("instance", False) else ("", "")
    left.axis("off")
    key = [
        Patch(facecolor="none", edgecolor=CHOSEN, linewidth=1.5, label=f"selected{on_most}"),
        Patch(facecolor="none", edgecolor=CANDIDATE, linewidth=0.5, label="skipped"),
    ]
    left.legend(handles=key, loc="center left", ncols=2, borderpad=0, handlelength=1.2, handleheight=1.2)
    bar = right.figure.colorbar(ScalarMappable(cmap="Greys"), cax=right, orientation="horizontal")
    bar.set_label(f"{mean}probability of being selected", fontsize=8)
    bar.outline.set_linewidth(0.5)
    right.tick_params(labelsize=7, length=2)


def cosines(architecture: Mapping[str, Any]) -> np.ndarray:
    """(K, K) cosine similarities between the tasks' selection probabilities; NaN where a task's are all 0."""
    vectors = np.stack([_floats(architecture["probabilities"][task]) for task in architecture["tasks"]])
    norms = np.linalg.norm(vectors, axis=1)
    norms[norms == 0] = math.nan
    units = vectors / norms[:, None]
    return np.asarray(units @ units.T)


@styled
def task_correlation(architecture: Mapping[str, Any]) -> Figure:
    """The similarity of the tasks' policies as a matrix (AdaShare, Figures 3b and 4); empty for one task.

    Args:
        architecture: the content of an `architecture.json` of kind "policy".
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    tasks = [_short(name) for name in architecture["tasks"]]
    if len(tasks) < 2:
        return Figure(figsize=(1, 1))
    values = cosines(architecture)
    apart = values[~np.eye(len(tasks), dtype=bool)]
    lowest = np.nanmin(apart) if np.isfinite(apart).any() else 0.0
    low = min(0.9, math.floor(10 * lowest) / 10)
    digits = 3 if lowest > 0.95 else 2
    margin = LETTER * max(map(len, tasks))
    side = len(tasks) * (0.58 if len(tasks) > 3 else 0.8)
    figure = Figure(figsize=(side + margin + 1.2, side + margin))
    axes = figure.subplots()
    colours = colormaps["Blues"].with_extremes(bad="#EEEEEE")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        note = f"{value:.{digits}f}" if math.isfinite(value) else "–"
        ink = "white" if value > low + 0.6 * (1 - low) else "black"
        axes.text(column, row, note, color=ink, fontsize=8, ha="center", va="center_baseline")
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(tasks)), tasks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.hlines(np.arange(1, len(tasks)) - 0.5, -0.5, len(tasks) - 0.5, color="white", linewidth=1.5)
    axes.vlines(np.arange(1, len(tasks)) - 0.5, -0.5, len(tasks) - 0.5, color="white", linewidth=1.5)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, label="cosine similarity")
    bar.outline.set_visible(False)
    return figure


@styled
def trade_off(points: Sequence[Run]) -> Figure:
    """What the two weights of a policy's loss do: blocks kept by sparsity, agreement of tasks by sharing.

    Every run is a dot, a line joins the means over seeds. Where the other weight varies as well, each of its
    values has a line of its own, unless it was tried with one value of the axis only.

    Args:
        points: runs with `sparsity_weight`, `sharing_weight`, `kept` (the mean share of blocks that a task
            selects), `agreement` (the mean share of blocks on which two tasks decide alike; None or NaN for
            one task) and `seed`.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8.4, 3.1))
    panels = figure.subplots(1, 2)
    _draw_effect(panels[0], points, "kept", "sparsity_weight", "sharing_weight")
    _draw_effect(panels[1], points, "agreement", "sharing_weight", "sparsity_weight")
    panels[0].set_title("blocks kept", loc="left")
    panels[1].set_title("blocks on which two tasks agree", loc="left")
    for axes in panels:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _draw_effect(axes: Axes, points: Sequence[Run], measure: str, weight: str, other: str) -> None:
    """A measure over a weight, a line for each value of the other weight."""
    axes.set_xlabel(weight.replace("_", " "))
    series: dict[float, dict[float, list[float]]] = {}
    for point in points:
        if point[measure] is not None and math.isfinite(point[measure]):
            series.setdefault(point[other], {}).setdefault(point[weight], []).append(point[measure])
    if any(len(by_weight) > 1 for by_weight in series.values()):
        series = {key: by_weight for key, by_weight in series.items() if len(by_weight) > 1}
    for index, key in enumerate(sorted(series)):
        weights = sorted(series[key])
        colour = PALETTE[index % len(PALETTE)]
        dots = [(x, y) for x in weights for y in series[key][x]]
        axes.plot(*zip(*dots), "o", color=colour, alpha=0.45, markersize=4, mew=0, clip_on=False)
        means = [np.mean(series[key][x]) for x in weights]
        axes.plot(weights, means, color=colour, label=f"{key:g}", zorder=3)
    ticks = sorted({x for by_weight in series.values() for x in by_weight})
    positive = [x for x in ticks if x > 0]
    if positive and positive[-1] > 8 * positive[0]:
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if len(ticks) > 7 else 0)
    axes.set_xticks([], minor=True)
    if len(series) > 1:
        axes.legend(title=other.replace("_", " "), title_fontsize=8)
    if not series:
        axes.text(0.5, 0.5, "no values", color=SOFT, ha="center", transform=axes.transAxes)
