"""The curves of a run: losses, metrics, and what the search logs about its own progress."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlsearch.report.style import CHOSEN, PALETTE, styled
from mtlsearch.report.tables import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "panels"]

SERIES = {"training, weights": PALETTE[0], "training, architecture": PALETTE[1], "validation": PALETTE[2]}
Panel = tuple[str, str, dict[str, str]]
"""A title, the y axis' label, and the columns to draw by what the legend calls them."""
PROGRESS = {
    "train/entropy": "entropy of a decision [nat]",
    "train/sparsity": "sparsity loss",
    "train/sharing": "sharing loss",
    "train/open_blocks": "open blocks",
    "train/temperature": "temperature",
}
"""What a search may log about itself, by column."""


@styled
def curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Losses, validation metrics and the search's progress over the steps of stages, laid end to end.

    A panel has the stages that have a value for it.

    Args:
        rows: the rows of a `metrics.csv` by column: `step`, `stage`, `train/weights/TASK`, `train/arch/TASK`,
            `train/weight/TASK`, `val/loss`, `val/TASK/METRIC`, those of `PROGRESS`; where a row has no value it is
            empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = panels(list(rows[0]))
    stages: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        stages.setdefault(row.get("stage") or "", []).append(row)
    width, inches = (min(2, len(drawn)), 4.2) if len(drawn) <= 6 else (3, 3.1)
    height = math.ceil(len(drawn) / width)
    figure = Figure(figsize=(inches * width, 2.6 * height))
    for index, (title, unit, series) in enumerate(drawn):
        axes = figure.add_subplot(height, width, index + 1)
        found = {stage: part for stage, part in stages.items() if _points(part, series.values())} or stages
        # A stage counts its steps from zero.
        ends = np.cumsum([0.0] + [max(float(row["step"]) for row in part) for part in found.values()])
        for start, part in zip(ends, found.values()):
            for label, name in series.items():
                points = [(start + step, value) for step, value in _points(part, [name])]
                _draw_series(axes, points, SERIES.get(label, CHOSEN))
        names = [words(stage.removesuffix(f"_{title}")) for stage in found]
        lines = _mark_stages(axes, names, ends.tolist(), 0.08 / inches)
        axes.set_title(title, loc="left", pad=6 + 10 * lines)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(unit)
    used = {label for _, _, series in drawn for label in series}
    key = [Line2D([], [], color=colour, label=label) for label, colour in SERIES.items() if label in used]
    if len(key) > 1:
        figure.legend(handles=key, loc="outside lower center", ncols=len(key))
    return figure


def panels(names: Sequence[str]) -> list[Panel]:
    """What these columns allow to draw: each task's losses and first metric, the total loss, the progress."""
    parts = [name.split("/") for name in names]
    trained = [part[2] for part in parts if part[:2] in (["train", "weights"], ["train", "arch"])]
    judged = [part[1] for part in parts if part[0] == "val" and len(part) == 3]
    found: list[Panel] = []
    for task in dict.fromkeys(trained + judged):
        sources = (f"train/weights/{task}", f"train/arch/{task}", f"val/{task}/loss")
        losses = {label: name for label, name in zip(SERIES, sources) if name in names}
        found.append((task, "loss", losses))
        metrics = [name for name in names if name.startswith(f"val/{task}/") and name not in sources]
        for name in metrics[:1]:
            unit = " [°]" if name.endswith("_angle") else ""
            found += [(task, words(name.split("/")[2]) + unit, {"validation": name})]
    if "val/loss" in names:
        found.append(("all tasks", "weighted loss", {"validation": "val/loss"}))
    factors = {part[2]: "/".join(part) for part in parts if part[:2] == ["train", "weight"]}
    found += [(task, "factor of the loss", {"factor": name}) for task, name in factors.items()]
    found += [("progress", unit, {unit: name}) for name, unit in PROGRESS.items() if name in names]
    return [panel for panel in found if panel[2]]


def _points(rows: Sequence[Mapping[str, str]], names: Iterable[str]) -> list[tuple[float, float]]:
    """The finite values in these columns, each with its step."""
    points = [(float(row["step"]), float(row[name])) for row in rows for name in names if row.get(name)]
    return [point for point in points if math.isfinite(point[1])]


def _draw_series(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    """A line; a long one pale, with its running mean over a twentieth of its length."""
    if not points:
        return
    steps, values = np.array(sorted(points)).T
    window = len(values) // 20
    if window < 3:
        dots = "o-" if len(values) < 20 else "-"
        axes.plot(steps, values, dots, color=colour, markersize=3, clip_on=False)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    axes.plot(steps[window // 2 :][: len(mean)], mean, color=colour)


def _mark_stages(axes: Axes, names: Sequence[str], ends: Sequence[float], letter: float) -> int:
    """The stages' names above the axes, the first at the left, the last at the right; lines between them.

    What would overlap goes to a second line, or where that is full away: names of longer stages stay.

    Args:
        axes: what to mark.
        names: the stages' names.
        ends: where the first begins, then where each ends.
        letter: the width of a letter, as a share of the axes' width.

    Returns:
        How many lines the names take.
    """
    above = axes.get_xaxis_transform()
    length = max(ends[-1] - ends[0], 1)
    taken: list[list[tuple[float, float]]] = [[], []]
    for index in sorted(range(len(names)), key=lambda index: ends[index] - ends[index + 1]):
        name, start, end = names[index], ends[index], ends[index + 1]
        side = "left" if index == 0 else "right" if index == len(names) - 1 else "center"
        place = {"left": start, "right": end, "center": (start + end) / 2}[side]
        wide = (len(name) + 1) * letter * length
        left = place - wide * {"left": 0, "right": 1, "center": 0.5}[side]
        for line, others in enumerate(taken):
            if all(left + wide <= other or left >= other_end for other, other_end in others):
                others.append((left, left + wide))
                style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": "#666666"}
                axes.annotate(name, (place, 1), (0, 4 + 10 * line), xycoords=above, ha=side, **style)
                break
        if index:
            axes.axvline(start, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlim(ends[0], ends[0] + length)
    return sum(map(bool, taken))
