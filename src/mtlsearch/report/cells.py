"""Figures of cells: graphs as in Figures 3 and 4 of MTNAS, and what the search thought of each operation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlsearch.nn.operations import OPERATIONS
from mtlsearch.report.style import INK, PALETTE, SOFT, styled
from mtlsearch.report.tables import words
from mtlsearch.searchers.cells import BACKBONE, KINDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cells", "layout", "operations", "owners", "searches"]

BLUE, RED, GREEN, AMBER = PALETTE[:4]
LOOKS: dict[str, tuple[str, str, Any]] = {
    "none": ("none", "#999999", ":"),
    "max_pool_3x3": ("max pool", AMBER, "-"),
    "avg_pool_3x3": ("avg pool", AMBER, "--"),
    "skip_connect": ("skip", RED, "-"),
    "sep_conv_3x3": ("sep 3×3", BLUE, "-"),
    "sep_conv_5x5": ("sep 5×5", BLUE, "--"),
    "dil_conv_3x3": ("dil 3×3", GREEN, "-"),
    "dil_conv_5x5": ("dil 5×5", GREEN, "--"),
}
"""What an operation is called, its colour, which is that of its family, and its line."""

# Inches, as is all of a graph.
PLACES = (0.27, 0.82, 1.64, 2.5, 3.36, 4.22, 4.78)  # of the two inputs, the four nodes and the output
WIDE, NARROW, HALF = 0.21, 0.15, 0.11  # half the width of inputs and output, of a node; half the height
LEVEL, FIRST = 0.23, 0.25  # between two edges above one another; of the first
ROUND = 0.07
TITLE, KEY, GAP = 0.34, 0.3, 0.25


class Edge(NamedTuple):
    """An edge of a graph: it leaves its source upwards (side 1) or downwards (-1) and runs at a level's height."""

    operation: str
    source: int
    node: int
    side: int
    level: int


@styled
def cells(architecture: Mapping[str, Any]) -> Figure:
    """The cells as graphs, a row for the backbone and for each branch, normal and reduction cell side by side.

    Each node has one of its two edges from above and one from below, labelled where it comes in, so that no
    label meets another in any cell. Thin lines lead from the nodes to the output.

    Args:
        architecture: the content of an `architecture.json` of kind "cells".
    """
    from matplotlib.figure import Figure

    graphs = [
        (f"{words(owner)[:40]}, {kind}", routes(own[kind]))
        for owner, own in owners(architecture).items()
        for kind in KINDS
    ]
    edges = [edge for _, graph in graphs for edge in graph]
    above, below = (max(edge.level for edge in edges if edge.side == side) for side in (1, -1))
    top, bottom = FIRST + LEVEL * (above + 0.5), -FIRST - LEVEL * (below + 1.2)
    side, height = PLACES[-1] + PLACES[0], top - bottom + TITLE
    rows = math.ceil(len(graphs) / 2)
    size = (2 * side + GAP, rows * height + KEY)
    figure = Figure(figsize=size)
    figure.set_layout_engine("none")  # all is placed by the inch
    for index, (title, graph) in enumerate(graphs):
        left, low = (index % 2) * (side + GAP), KEY + (rows - 1 - index // 2) * height
        box = (left / size[0], low / size[1], side / size[0], (height - TITLE) / size[1])
        axes = figure.add_axes(box, xlim=(0, side), ylim=(bottom, top))
        axes.axis("off")
        axes.set_title(title, loc="left", pad=4)
        _draw_graph(axes, graph, bottom)
    _draw_key(figure, ["sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect"], families=True)
    return figure


def owners(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The pairs of cells that there are, by their owner."""
    found = {BACKBONE: architecture["backbone_cells"], **architecture["branch_cells"]}
    return {owner: own for owner, own in found.items() if own is not None}


def routes(pairs: Sequence[Sequence[Any]]) -> list[Edge]:
    """The edges of a cell, one from above and one from below into each node, so that few lines cross.

    Args:
        pairs: eight of [operation, input], two a node.
    """
    choices = [_levels(pairs, flips) for flips in product((0, 1), repeat=len(pairs) // 2)]
    return min(choices, key=lambda edges: (_crossings(edges), max(edge.level for edge in edges)))


def _levels(pairs: Sequence[Sequence[Any]], flips: Sequence[int]) -> list[Edge]:
    """The edges where the first of a node's comes from above, or with a flip the second."""
    edges: list[Edge] = []
    for index, (operation, source) in enumerate(pairs):
        node = 2 + index // 2
        side = 1 if index % 2 == flips[index // 2] else -1
        under = [edge.level for edge in edges if edge.side == side and edge.node > source]
        edges.append(Edge(operation, source, node, side, 1 + max(under, default=-1)))
    return edges


def _crossings(edges: Sequence[Edge]) -> int:
    """How often an edge that leaves its source crosses one that passes over it."""
    return sum(
        other.source < edge.source < other.node and other.level < edge.level and other.side == edge.side
        for edge in edges
        for other in edges
    )


def _draw_graph(axes: Axes, graph: Sequence[Edge], bottom: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    for node in range(2, 6):
        x = PLACES[node] + 0.7 * NARROW
        corners = [(x, -HALF), (x, bottom + 0.05), (PLACES[-1], bottom + 0.05), (PLACES[-1], -HALF)]
        _draw_line(axes, corners, gid="output", color=SOFT, linewidth=0.6, zorder=0.5)
    for edge in graph:
        start = _port(edge, graph)
        end = PLACES[edge.node] - 0.6 * NARROW
        y = edge.side * (FIRST + LEVEL * edge.level)
        name, colour, line = LOOKS[edge.operation]
        corners = [(start, edge.side * HALF), (start, y), (end, y), (end, edge.side * HALF)]
        _draw_line(axes, corners, gid="edge", color=colour, linestyle=line, linewidth=1.4, zorder=2)
        middle = (
            PLACES[edge.node - 1] + PLACES[edge.node] + (WIDE if edge.node == 2 else NARROW) - NARROW
        ) / 2
        pill = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8}
        axes.text(
            middle,
            y,
            name,
            fontsize=7,
            ha="center",
            va="center_baseline",
            bbox=pill,
            gid="operation",
            zorder=4,
        )
    names = ["$c_{k-2}$", "$c_{k-1}$", "0", "1", "2", "3", "$c_k$"]
    for number, (name, x) in enumerate(zip(names, PLACES)):
        inner = 2 <= number < 6
        half = NARROW if inner else WIDE
        style: dict[str, Any] = {
            "facecolor": "white" if inner else "#E8E8E8",
            "edgecolor": INK,
            "linewidth": 0.9,
        }
        style |= {"boxstyle": "round,pad=0,rounding_size=0.05", "zorder": 3, "gid": "node"}
        axes.add_patch(FancyBboxPatch((x - half, -HALF), 2 * half, 2 * HALF, **style))
        axes.text(x, 0, name, fontsize=8, ha="center", va="center", parse_math=True, zorder=5)


def _port(edge: Edge, graph: Sequence[Edge]) -> float:
    """Where an edge leaves its source: the higher it runs, the further left, but right of what comes in."""
    own = sorted(e.level for e in graph if e.source == edge.source and e.side == edge.side)
    left, right = (-WIDE, WIDE) if edge.source < 2 else (-0.3 * NARROW, NARROW)
    if edge.source >= 2 and edge.side < 0:
        right = 0.5 * NARROW  # beside the line to the output
    place = (len(own) - own.index(edge.level)) / (len(own) + 1)
    return PLACES[edge.source] + left + (right - left) * place


def _draw_line(axes: Axes, corners: Sequence[tuple[float, float]], **style: Any) -> None:
    """A line of right angles with rounded corners, and an arrow's head at its end."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points, codes = [corners[0]], [Path.MOVETO]
    for before, corner, after in zip(corners, corners[1:], corners[2:]):
        points += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*points, corners[-1]], [*codes, Path.LINETO])
    axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=6, fill=False, **style))


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """A little from a corner."""
    return tuple(a + math.copysign(min(ROUND, abs(b - a) / 2), b - a) for a, b in zip(corner, other))  # type: ignore[return-value]


def _draw_key(figure: Figure, names: Sequence[str], *, families: bool = False) -> None:
    """What the colours mean, below the figure."""
    from matplotlib.lines import Line2D

    long = {
        "sep": "separable convolution",
        "dil": "dilated convolution",
        "max": "pooling",
        "skip": "skip connection",
    }
    key = []
    for name in names:
        label, colour, line = LOOKS[name]
        label = long[name.partition("_")[0]] if families else label
        key.append(Line2D([], [], color=colour, linestyle=line, label=label))
    figure.legend(handles=key, loc="lower center" if families else "outside lower center", ncols=len(key))


@styled
def operations(rows: Sequence[Mapping[str, str]]) -> Figure:
    """The mean probability of each operation over the edges of a cell, epoch by epoch.

    A row for each search and each of the pairs of cells that it searches, normal and reduction cell side by side.

    Args:
        rows: those of a `metrics.csv` by column: `stage`, `epoch` and `arch/OWNER/KIND/OPERATION`, empty where a
            stage does not search these.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    searched = searches(rows)
    figure = Figure(figsize=(8.4, 1.9 * len(searched) + 0.4))
    grid = figure.subplots(len(searched), 2, squeeze=False, sharey=True)
    for (stage, owner), line in zip(searched, grid):
        for kind, axes in zip(KINDS, line):
            for name, (_, colour, style) in LOOKS.items():
                column = f"arch/{owner}/{kind}/{name}"
                own = [row for row in rows if (row.get("stage") or "") == stage and row.get(column)]
                epochs = [int(row["epoch"]) + 1 for row in own]
                values = [float(row[column]) for row in own]
                dots = "o" if len(own) < 8 else ""
                axes.plot(
                    epochs, values, color=colour, linestyle=style, marker=dots, markersize=2.5, label=name
                )
            axes.set_title(_title(stage, owner, kind), loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("epoch")
        line[0].set_ylabel("mean probability")
    _draw_key(figure, OPERATIONS)
    return figure


def searches(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """The stages that search cells, each with the owner of the cells, in their order."""
    found: dict[tuple[str, str], None] = {}
    for row in rows:
        for name, value in row.items():
            owner, _, rest = name.removeprefix("arch/").partition("/normal/")
            if name.startswith("arch/") and rest in LOOKS and value:
                found[row.get("stage") or "", owner] = None
    return list(found)


def _title(stage: str, owner: str, kind: str) -> str:
    """A stage that is called as what it searches need not say it twice."""
    own = "" if stage in (owner, f"branch_{owner}") else f", {words(owner)[:30]}"
    return f"{words(stage)[:40]}{own}, {kind}"


def layout(architecture: Mapping[str, Any]) -> str:
    """How the cells are stacked, in words.

    Args:
        architecture: the content of an `architecture.json` of kind "cells".
    """
    form = architecture["layout"]
    if architecture["backbone_cells"] is None:
        return f"The backbone is {(architecture['backbone'] or {}).get('name', 'one of your own')}, not of cells."
    text = f"The backbone stacks {form['cells']} cells, a node of the first has {form['channels']} channels"
    if form["reductions"]:
        numbers = ", ".join(str(number + 1) for number in form["reductions"])
        text += (
            f"; reduction cells halve the resolution and double the channels: in the stack number {numbers}"
        )
    return f"{text}."
