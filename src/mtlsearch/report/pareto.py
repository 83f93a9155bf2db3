"""Cost against gain: which systems nobody beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtlsearch.report.style import CHOSEN, INK, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A system: what it costs, and what it gains with which deviation (None: of one run)."""

    cost: float
    gain: float
    deviation: float | None = None


def front(points: Mapping[str, Point]) -> list[str]:
    """The names of those points for which no other costs as little and gains as much, and one of both better."""
    return [
        name
        for name, point in points.items()
        if not any(
            other.cost <= point.cost and other.gain >= point.gain and other[:2] != point[:2]
            for other in points.values()
        )
    ]


@styled
def trade_off(panels: Mapping[str, Mapping[str, Point]], gain: str) -> Figure:
    """A scatter for every kind of cost, side by side, with the Pareto front in colour and joined.

    Args:
        panels: the systems' points by name, by the label of the cost.
        gain: the label of what is gained.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    figure = Figure(figsize=(1.0 + 3.7 * len(panels), 3.5 + 0.18 * len(names)))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, (label, points) in zip(grid.flat, panels.items()):
        _scatter(axes, points, [names.index(name) + 1 for name in points])
        axes.set_xlabel(label)
    grid[0, 0].set_ylabel(gain)
    best = {name for points in panels.values() for name in front(points)}
    key = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=CHOSEN if name in best else "#BBBBBB",
            label=f"{i}  {name}",
        )
        for i, name in enumerate(names, start=1)
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=2)
    return figure


def _scatter(axes: Axes, points: Mapping[str, Point], numbers: Sequence[int]) -> None:
    """One panel: numbered points, and the front as a staircase."""
    best = front(points)
    for number, (name, point) in zip(numbers, points.items()):
        colour = CHOSEN if name in best else "#BBBBBB"
        axes.errorbar(
            point.cost, point.gain, yerr=point.deviation, color=colour, elinewidth=1.0, capsize=2.0, zorder=2
        )
        gid = "front" if name in best else "beaten"
        axes.plot(point.cost, point.gain, "o", color=colour, markersize=12, zorder=3, gid=gid)
        ink = "white" if name in best else INK
        axes.annotate(
            str(number),
            (point.cost, point.gain),
            ha="center",
            va="center_baseline",
            fontsize=8,
            color=ink,
            zorder=4,
        )
    stairs = sorted(points[name][:2] for name in best)
    axes.step(*zip(*stairs), where="post", color=CHOSEN, linewidth=1.0, linestyle="--", zorder=1, gid="line")
    axes.axhline(0, color="#888888", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(left=0)
    axes.margins(x=0.12, y=0.15)
