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
from mtlsearch.report import side_by_side
from mtlsearch.report.cells import cells, operations, owners, searches
from mtlsearch.report.channels import channel_map
from mtlsearch.report.curves import curves, panels
from mtlsearch.report.policies import policy_map, task_correlation
from mtlsearch.report.sheet import predictions, tiles
from mtlsearch.report.style import CANDIDATE, CHOSEN, INK, PALETTE, styled
from mtlsearch.task import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "cells",
    "curves",
    "fusion",
    "histograms",
    "operations",
    "policy_map",
    "predictions",
    "task_correlation",
    "write",
]

BINS = 25
SHOWN = 4  # images on the sheet of predictions
Point = tuple[float, float]


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


def examples(datamodule: Any) -> dict[str, Any]:
    """A batch for the sheet: images from all over the validation set, since neighbours are often alike.

    Args:
        datamodule: set up. Of one without a `val_dataset` that can be indexed, such as a data set a task, it is the
            first batch.
    """
    loader = datamodule.val_dataloader()
    dataset: Any = getattr(datamodule, "val_dataset", None)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return dict(next(iter(loader)))
    places = np.unique(np.linspace(0, len(dataset) - 1, SHOWN).round().astype(int))
    return dict(loader.collate_fn([dataset[int(place)] for place in places]))


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
        if architecture["kind"] == "policy":
            found = {p for row in architecture["probabilities"].values() for p in row}
            if found != {1.0}:  # of hard sharing: all is dark
                drawn["policy"] = policy_map(architecture)
            if len(architecture["tasks"]) > 1 and not found <= {0.0, 1.0}:  # they were searched
                drawn["correlation"] = task_correlation(architecture)
        if architecture["kind"] == "elastic":
            drawn["channels"] = channel_map(architecture)
        if architecture["kind"] == "cells" and owners(architecture):
            drawn["cells"] = cells(architecture)
    if (path := run_dir / "metrics.csv").exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if searches(rows):
            drawn["operations"] = operations(rows)
        if rows and panels(list(rows[0])):
            drawn["curves"] = curves(rows)
    if network is not None and batch is not None:
        some = {name: values[:SHOWN] for name, values in batch.items()}
        drawn["predictions"] = predictions(network, tasks, some)
        if pictures := tiles(network, tasks, some):
            files.write(run_dir / side_by_side.FILE, side_by_side.encode(pictures))
    paths = {name: run_dir / "figures" / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        content = io.BytesIO()
        figure.savefig(content, bbox_inches="tight", pad_inches=0.08)
        files.write(paths[name], content.getvalue())
    return list(paths.values())
