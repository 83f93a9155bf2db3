"""Cost against gain: which systems nobody beats in both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlsearch.report.style import CHOSEN, INK, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEATEN = "#BBBBBB"


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
def trade_off(points: Mapping[str, Point], cost: str, gain: str) -> Figure:
    """A scatter of systems, numbered, with the Pareto front in colour and joined.

    Args:
        points: by name.
        cost, gain: the labels of the axes.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(4.4, 3.4 + 0.18 * len(points)))
    axes = figure.subplots()
    best = front(points)
    colours = {name: CHOSEN if name in best else BEATEN for name in points}
    for number, (name, point) in enumerate(points.items(), start=1):
        style: dict[str, Any] = {"color": colours[name], "elinewidth": 1.0, "capsize": 2.0, "zorder": 2}
        axes.errorbar(point.cost, point.gain, yerr=point.deviation, **style)
        gid = "front" if name in best else "beaten"
        axes.plot(point.cost, point.gain, "o", color=colours[name], markersize=12, zorder=3, gid=gid)
        ink: dict[str, Any] = {
            "color": "white" if name in best else INK,
            "ha": "center",
            "va": "center_baseline",
        }
        axes.annotate(str(number), (point.cost, point.gain), fontsize=8, zorder=4, **ink)
    stairs = sorted(points[name][:2] for name in best)
    axes.step(*zip(*stairs), where="post", color=CHOSEN, linewidth=1.0, linestyle="--", zorder=1, gid="line")
    axes.axhline(0, color="#888888", linewidth=0.8, linestyle=":", zorder=0)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.1 * max(point.cost for point in points.values()) or 1)
    axes.set_xlabel(cost)
    axes.set_ylabel(gain)
    key = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{number}  {name}")
        for number, (name, colour) in enumerate(colours.items(), start=1)
    ]
    figure.legend(handles=key, loc="outside lower left", ncols=1)
    return figure
