"""The figures of a run, drawn by matplotlib's object interface: no window, no global state."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import torch
from torch import Tensor, nn

from mtlsearch import files
from mtlsearch.report.tables import words
from mtlsearch.task import Task
from mtlsearch.tasks.classification import ImageLabel, true_class
from mtlsearch.tasks.segmentation import ClassMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Okabe and Ito's colours, told apart under every common colour blindness; purple is kept for chosen edges.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#999933")
CHOSEN, CANDIDATE, INK = "#7B2CBF", "#A8A8A8", "#222222"
STYLE = {
    "figure.dpi": 160,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.04,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a class name is a dollar
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
BINS = 25

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style, whatever the caller's is, and leave the caller's as it was."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        from matplotlib import style

        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return drawn


@_styled
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


@_styled
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


Point = tuple[float, float]


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
        axes.text(
            last + 0.17, float(np.mean(rows)), f"stage {stage}", fontsize=7.5, color="#666666", va="center"
        )
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


Panel = tuple[str, str, dict[str, str]]
"""A title, the y axis' label, and the columns to draw by what the legend calls them."""

SERIES = {"training, weights": PALETTE[0], "training, architecture": PALETTE[1], "validation": PALETTE[2]}


@_styled
def curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Losses, validation metrics and the edges' entropy over the steps of all stages, laid end to end.

    Args:
        rows: the rows of a `metrics.csv` by column: `step`, `stage`, `train/weights/TASK`, `train/arch/TASK`,
            `train/entropy`, `val/loss`, `val/TASK/METRIC`; what a row has no value for is empty.
    """
    from matplotlib.figure import Figure

    panels = _curve_panels(list(dict.fromkeys(name for row in rows for name in row)))
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
        axes.plot(
            steps,
            values,
            "o-" if len(values) < 20 else "-",
            color=colour,
            label=label,
            markersize=3,
            clip_on=False,
        )
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


@_styled
def predictions(network: nn.Module, tasks: Sequence[Task], batch: Mapping[str, Any]) -> Figure:
    """Images, and for each task ground truth and prediction: dense ones as pictures, others as text.

    Args:
        network: in eval mode; `network(image)` gives {task: prediction}.
        tasks: those to show.
        batch: as `mtlsearch.data.collate` makes it; every image of it becomes a row. A task that it lacks is
            shown as unlabelled.
    """
    from matplotlib.figure import Figure

    images = batch["image"]
    with torch.no_grad():
        outputs = {name: output.float().cpu() for name, output in network(images).items()}
    dense = [task for task in tasks if task.target.dense]
    whole = [task for task in tasks if not task.target.dense]
    rows, columns = len(images), 1 + 2 * len(dense) + bool(whole)
    height = max(1.75 * images.shape[-2] / images.shape[-1], 0.5 * len(whole))
    figure = Figure(figsize=(1.75 * columns, rows * height + 1.0), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    grid[0, 0].set_title("image")
    for axes, image in zip(grid[:, 0], images):
        axes.imshow(image.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
    for index, task in enumerate(dense):
        grid[0, 1 + 2 * index].set_title(f"{task.name}\nground truth")
        grid[0, 2 + 2 * index].set_title(f"{task.name}\nprediction")
        for row, guess in enumerate(task.target.decode(outputs[task.name])):
            label = _label(task, batch, row)
            pictures = _pictures(task, label, guess.numpy())
            for axes, picture in zip(grid[row, 1 + 2 * index :], pictures):
                axes.imshow(picture)
    for row, axes in enumerate(grid[:, -1] if whole else ()):
        lines = [_describe(task, _label(task, batch, row), outputs[task.name][row]) for task in whole]
        axes.text(0, 1, "\n\n".join(lines), fontsize=7.5, va="top", linespacing=1.3)
    if key := _class_key(dense, batch, outputs):
        figure.legend(handles=key, loc="outside lower center", ncols=max(1, columns))
    return figure


def _class_key(tasks: Sequence[Task], batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> list[Patch]:
    """The colours of the classes that labels or predictions hold."""
    from matplotlib.patches import Patch

    key = []
    for task in tasks:
        if isinstance(task.target, ClassMap):
            found = task.target.decode(outputs[task.name]).unique()
            if task.name in batch:
                target = batch[task.name].cpu()
                found = torch.cat([found, target[task.target.labelled(target)]]).unique()
            colours = task.target.picture(found.numpy()[None])[0] / 255
            names = [task.target.class_names[index] for index in found]
            key += [
                Patch(facecolor=tuple(colour), edgecolor="#999999", linewidth=0.5, label=name)
                for colour, name in zip(colours, names)
            ]
    return key


def _label(task: Task, batch: Mapping[str, Any], row: int) -> Tensor:
    """The label of one image of a batch, without the batch axis."""
    if task.name in batch:
        return torch.as_tensor(batch[task.name][row]).cpu()
    height, width = batch["image"].shape[-2:]
    return torch.from_numpy(task.target.unlabelled((height, width)))


def _pictures(task: Task, label: Tensor, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label and prediction as RGB, one colour meaning one value in both; unlabelled pixels are chequered."""
    both = task.target.picture(np.concatenate([label.numpy(), guess], axis=-1))
    height, width = guess.shape[-2:]
    known = task.target.labelled(label[None])[0].reshape(-1, height, width).any(dim=0).numpy()
    rows, columns = np.indices((height, width)) // max(1, min(height, width) // 16)
    board = np.where((rows + columns) % 2 == 0, 235, 195).astype(np.uint8)
    return np.where(known[..., None], both[:, :width], board[..., None]), both[:, width:]


def _describe(task: Task, label: Tensor, output: Tensor) -> str:
    """What is predicted for a whole image, and whether it is so."""
    target = task.target
    if not isinstance(target, ImageLabel):
        return f"{task.name}: {target.decode(output[None])[0].numpy().round(3)}"
    probability, guess = output.softmax(0).max(0)
    truth = true_class(label[None])[0]
    known = truth >= 0
    mark = "" if not known else " ✓" if guess == truth else " ✗"
    lines = [f"{task.name}{mark}", f"predicted: {target.class_names[guess]}, {probability:.0%}"]
    lines.append(f"truth: {target.class_names[truth]}" if known else "unlabelled")
    return "\n".join(textwrap.fill(line, 26, subsequent_indent="   ") for line in lines)


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
        batch: the images of the sheet.
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
        if rows:
            drawn["curves"] = curves(rows)
    if network is not None and batch is not None:
        drawn["predictions"] = predictions(network, tasks, batch)
    paths = {name: run_dir / "figures" / f"{name}.png" for name in drawn}
    for name, figure in drawn.items():
        content = io.BytesIO()
        figure.savefig(content, bbox_inches="tight", pad_inches=0.08)
        files.write(paths[name], content.getvalue())
    return list(paths.values())
