"""The figures of a run, drawn by matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mtlsearch import files
from mtlsearch.report.sheet import predictions
from mtlsearch.report.style import CANDIDATE, CHOSEN, INK, PALETTE, styled
from mtlsearch.report.tables import words
from mtlsearch.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "fusion", "histograms", "predictions", "write"]

BINS = 25
SHOWN = 4  # images on the sheet of predictions
SERIES = {"training, weights": PALETTE[0], "training, architecture": PALETTE[1], "validation": PALETTE[2]}
Point = tuple[float, float]
Panel = tuple[str, str, dict[str, str]]
"""A title, the y axis' label, and the columns to draw by what the legend calls them."""


@styled
def histograms(panels: Mapping[str, Sequence[float]]) -> Figure:
    """Histograms of edge probabilities side by side, in 25 bins on [0, 1] (MTL-NAS, Figures 2 and S1).

    Args:
        panels: the probabilities of each panel, by its title.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = len(panels) if len(panels) <= 3 else math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(5.2, 3.2 * columns), 2.6 * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (title, probabilities) in zip(grid.flat, panels.items()):
        values = np.asarray(probabilities, dtype=float)
        decided = np.mean(np.minimum(values, 1 - values) <= 0.05) if len(values) else 0.0
        axes.hist(values, bins=BINS, range=(0, 1), color=PALETTE[0], edgecolor="white", linewidth=0.5)
        axes.axvline(0.5, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_title(title, loc="left", pad=16)
        note = f"{decided:.0%} of {len(values)} edges within 0.05 of 0 or 1"
        axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=8, color="#555555")
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.supxlabel("edge probability (bins of 0.04)", fontsize=9)
    figure.supylabel("number of edges", fontsize=9)
    return figure


@styled
def fusion(architecture: Mapping[str, Any]) -> Figure:
    """A fusion architecture as in Figure S2 of MTL-NAS: its nodes, its candidate edges and the chosen ones.

    Every pair of tasks has a panel of its own, so that no edge runs across a third task's nodes. Layers run
    from top to bottom.

    Args:
        architecture: the content of an `architecture.json` of kind "fusion".
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    nodes, names = architecture["nodes"], list(architecture["tasks"])
    pairs = list(combinations(names, 2)) or [tuple(names)]
    colours = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}
    columns = min(len(pairs), 3)
    rows = math.ceil(len(pairs) / columns)
    figure = Figure(figsize=(1.8 + 2.9 * columns, rows * (1.0 + 0.4 * len(nodes)) + 0.6))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, pair in zip(grid.flat, pairs):
        _draw_nodes(axes, nodes, {name: colours[name] for name in pair})
        chosen = [_ends(edge, pair) for edge in architecture["edges"] if _within(edge, pair)]
        candidates = [_ends(edge, pair) for edge in architecture["candidates"] if _within(edge, pair)]
        for ends in candidates:
            if ends not in chosen:
                _arrow(axes, *ends, gid="candidate", color=CANDIDATE, linewidth=0.8, linestyle=(0, (4, 3)))
        for ends in chosen:
            _arrow(axes, *ends, gid="chosen", color=CHOSEN, linewidth=1.7, zorder=3)
    for axes in grid.flat[len(pairs) :]:
        axes.remove()
    chosen_count, candidate_count = len(architecture["edges"]), len(architecture["candidates"])
    figure.suptitle(f"{chosen_count} of {candidate_count} candidate edges chosen", fontsize=10)
    key = [
        Line2D([], [], color=CHOSEN, linewidth=1.7, label="chosen"),
        Line2D([], [], color=CANDIDATE, linewidth=0.8, linestyle="--", label="candidate"),
        Line2D([], [], color=INK, linewidth=1.0, label="backbone"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=3)
    return figure


def _within(edge: Mapping[str, Any], pair: Sequence[str]) -> bool:
    return edge["task"] in pair and edge["source_task"] in pair


def _ends(edge: Mapping[str, Any], pair: Sequence[str]) -> tuple[Point, Point]:
    """Where an edge starts and ends in the panel of a pair of tasks."""
    source = (pair.index(edge["source_task"]), edge["source_layer"])
    return source, (pair.index(edge["task"]), edge["layer"])


def _arrow(axes: Axes, source: Point, sink: Point, **style: Any) -> None:
    from matplotlib.patches import FancyArrowPatch

    # Edges between two tasks bend a little, so that the two directions at one layer lie apart.
    bend = "arc3,rad=0" if source[0] == sink[0] else "arc3,rad=0.09"
    style = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 6, "shrinkB": 6, **style}
    axes.add_patch(FancyArrowPatch(source, sink, connectionstyle=bend, **style))


def _draw_nodes(axes: Axes, nodes: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """The backbones' nodes and own arrows, a column for each task, over a band for each stage."""
    last = len(colours) - 1
    stages = [node["stage"] for node in nodes]
    for index, stage in enumerate(dict.fromkeys(stages)):
        rows = [row for row, other in enumerate(stages) if other == stage]
        if index % 2 == 0:
            axes.axhspan(rows[0] - 0.5, rows[-1] + 0.5, color="#F3F3F3", linewidth=0, zorder=-1)
        middle = (rows[0] + rows[-1]) / 2
        axes.text(last + 0.17, middle, f"stage {stage}", fontsize=7.5, color="#666666", va="center")
    for column, (name, colour) in enumerate(colours.items()):
        axes.plot([column] * len(nodes), range(len(nodes)), "o", color=colour, markersize=10, zorder=4)
        for row in range(len(nodes) - 1):
            _arrow(axes, (column, row), (column, row + 1), gid="backbone", color=INK, linewidth=1.0)
        axes.text(column, -0.75, name, color=colour, fontsize=10, weight="bold", ha="center", va="bottom")
    axes.set_xlim(-0.2, last + 0.55)
    axes.set_ylim(len(nodes) - 0.4, -1.4)
    axes.set_yticks(range(len(nodes)), [node["path"] for node in nodes])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@styled
def curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Losses, validation metrics and the edges' entropy over the steps of all stages, laid end to end.

    Args:
        rows: the rows of a `metrics.csv` by column: `step`, `stage`, `train/weights/TASK`, `train/arch/TASK`,
            `train/entropy`, `val/loss`, `val/TASK/METRIC`; where a row has no value it is empty.
    """
    from matplotlib.figure import Figure

    panels = _curve_panels(list(rows[0]))
    stages: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        stages.setdefault(row.get("stage") or "", []).append(row)
    # A stage counts its steps from zero.
    ends = np.cumsum([0.0] + [max(float(row["step"]) for row in part) for part in stages.values()])
    height, width = math.ceil(len(panels) / 2), min(2, len(panels))
    figure = Figure(figsize=(4.2 * width, 2.6 * height))
    for index, (title, unit, series) in enumerate(panels):
        axes = figure.add_subplot(height, width, index + 1)
        for start, part in zip(ends, stages.values()):
            for label, name in series.items():
                points = [(start + float(row["step"]), float(row[name])) for row in part if row.get(name)]
                _draw_series(axes, points, label)
        _mark_stages(axes, list(stages), ends.tolist())
        axes.set_title(title, loc="left", pad=16)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(unit)
        if len(series) > 1:
            axes.legend()
    return figure


def _curve_panels(names: Sequence[str]) -> list[Panel]:
    """What these columns allow to draw: the losses and the first metric of each task, then the totals."""
    parts = [name.split("/") for name in names]
    trained = [part[2] for part in parts if part[:2] in (["train", "weights"], ["train", "arch"])]
    judged = [part[1] for part in parts if part[0] == "val" and len(part) == 3]
    panels: list[Panel] = []
    for task in dict.fromkeys(trained + judged):
        sources = (f"train/weights/{task}", f"train/arch/{task}", f"val/{task}/loss")
        losses = {label: name for label, name in zip(SERIES, sources) if name in names}
        panels.append((task, "loss", losses))
        metrics = [name for name in names if name.startswith(f"val/{task}/") and name not in sources]
        for name in metrics[:1]:
            unit = " [°]" if name.endswith("_angle") else ""
            panels += [(task, words(name.split("/")[2]) + unit, {"validation": name})]
    if "val/loss" in names:
        panels.append(("all tasks", "weighted loss", {"validation": "val/loss"}))
    if "train/entropy" in names:
        panels.append(("edges", "mean entropy [nat]", {"edges": "train/entropy"}))
    return [panel for panel in panels if panel[2]]


def _draw_series(axes: Axes, points: Sequence[tuple[float, float]], label: str) -> None:
    """A line; a long one pale, with its running mean over a twentieth of its length."""
    if not points:
        return
    colour = SERIES.get(label, CHOSEN)
    if label in axes.get_legend_handles_labels()[1]:
        label = ""
    steps, values = np.array(sorted(points)).T
    window = len(values) // 20
    if window < 3:
        dots = "o-" if len(values) < 20 else "-"
        axes.plot(steps, values, dots, color=colour, label=label, markersize=3, clip_on=False)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    axes.plot(steps[window // 2 :][: len(mean)], mean, color=colour, label=label)


def _mark_stages(axes: Axes, names: Sequence[str], ends: Sequence[float]) -> None:
    """The stages' names above the axes, the first at the left, the last at the right; lines between them."""
    above = axes.get_xaxis_transform()
    for index, (name, start, end) in enumerate(zip(names, ends, ends[1:])):
        side = "left" if index == 0 else "right" if index == len(names) - 1 else "center"
        place = {"left": start, "right": end, "center": (start + end) / 2}[side]
        axes.text(place, 1.03, words(name), transform=above, fontsize=7.5, color="#666666", ha=side)
        if index:
            axes.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, max(ends[-1], 1))


def write(
    run_dir: str | Path,
    *,
    network: nn.Module | None = None,
    tasks: Sequence[Task] = (),
    batch: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Draw what the files of a run allow into `figures/` and return the paths.

    Args:
        run_dir: the run's directory.
        network: with `tasks` and `batch`, for the sheet of predictions; see `predictions`.
        tasks: those to show on the sheet.
        batch: the sheet shows its first images.
    """
    run_dir = Path(run_dir)
    drawn: dict[str, Figure] = {}
    if (path := run_dir / "architecture.json").exists():
        architecture = json.loads(path.read_text(encoding="utf-8"))
        probabilities = [edge.get("probability") for edge in architecture.get("candidates", ())]
        if probabilities and None not in probabilities:  # they are None where all edges are there unsearched
            drawn["probabilities"] = histograms({"Candidate edges": probabilities})
        if architecture["kind"] == "fusion" and architecture["candidates"]:
            drawn["architecture"] = fusion(architecture)
    if (path := run_dir / "metrics.csv").exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if rows and _curve_panels(list(rows[0])):
            drawn["curves"] = curves(rows)
    if network is not None and batch is not None:
        some = {name: values[:SHOWN] for name, values in batch.items()}
        drawn["predictions"] = predictions(network, tasks, some)
    paths = {name: run_dir / "figures" / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        content = io.BytesIO()
        figure.savefig(content, bbox_inches="tight", pad_inches=0.08)
        files.write(paths[name], content.getvalue())
    return list(paths.values())
