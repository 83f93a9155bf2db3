"""The page of a comparison: what it says."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from mtlsearch.report.comparison import COST, DELTA, TRAINING, Column, Comparison, caption
from mtlsearch.report.markup import Best, Second, details, document, picture, section, table
from mtlsearch.report.pareto import Point, trade_off
from mtlsearch.report.side_by_side import side_by_side
from mtlsearch.report.systems import System, class_of
from mtlsearch.report.tables import SPLITS, words
from mtlsearch.rundir import near

FOUND = ("architecture", "policy", "channels", "cells")
"""The figures that show what a search has found."""
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
CELLS = {"best": Best, "second": Second, "": str}


def page(comparison: Comparison, command: Sequence[str] = ()) -> str:
    """The HTML of a comparison, which needs no other file.

    Args:
        comparison: of systems whose folders are there.
        command: that led to it.
    """
    systems = comparison.systems
    title = f"{len(systems)} systems compared"
    sections = [
        section("In short", _table(comparison, comparison.overview), caption(comparison)),
        _remarks(comparison),
        _trade_off(comparison),
        _metrics(comparison),
        section(
            "Cost", _table(comparison, [c for c in comparison.columns if c.group in (COST, TRAINING)]), COSTS
        ),
        side_by_side({words(system.name): _folders(system) for system in systems}),
        section("What was found", "".join(map(_found, systems)), "Of the first seed of each system."),
        section("How it was made", _origin(systems, command)),
    ]
    return document(title, _head(comparison, title), sections)


def overview(comparison: Comparison) -> list[str]:
    """The sections that say on another page how systems compare."""
    text = caption(comparison)
    return [
        section("Compared with other systems", _table(comparison, comparison.overview), text),
        _trade_off(comparison),
    ]


COSTS = """Of the finished network: parameters, multiply-accumulates and time for one image, for all tasks at once.
The parameters of its backbone are in percent of those of the single-task networks' backbones. Images are the
labelled ones that the weights of this network have seen; those of the search were seen by other weights or by arch
parameters. Times are wall times of training."""


def _head(comparison: Comparison, title: str) -> str:
    run = comparison.systems[0].runs[0]
    tasks = [group for group in comparison.groups if group not in (DELTA, COST, TRAINING)]
    seeds = sorted({seed for system in comparison.systems for seed in system.finished})
    about = {
        "Tasks": ", ".join(tasks),
        "data": class_of(run.settings.get("dataset")),
        "evaluated on": f"{SPLITS[comparison.split].lower()} data",
        "seeds": ", ".join(map(str, seeds)),
        "budget": _budget(comparison),
    }
    lead = "; ".join(f"{name} {text}" for name, text in about.items() if text)
    return f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(lead)}</p>\n'


def _budget(comparison: Comparison) -> str:
    """How many labelled images the weights of all have seen."""
    column = comparison.column(TRAINING, "images")
    found = [mean for mean in column.means if mean is not None] if column is not None else []
    if not found:
        return ""
    least, most = f"{min(found):,.0f}", f"{max(found):,.0f}"
    return f"{least if least == most else f'{least} to {most}'} labelled images"


def _table(comparison: Comparison, columns: Sequence[Column], *, own: bool = False) -> str:
    """Some columns, with the systems before them, and their seeds where they differ."""
    if not columns:
        return ""
    titles = [
        column.title if own or column.group in (COST, TRAINING) else _full(column) for column in columns
    ]
    seeds = comparison.seeds if len(set(comparison.seeds)) > 1 else []  # the same for all: above the tables
    rows = [
        [name, *seeds[i : i + 1], *(CELLS[column.marks[i]](column.texts[i]) for column in columns)]
        for i, name in enumerate(comparison.names)
    ]
    return table(["system", *(["seeds"] if seeds else []), *titles], {"": rows}, named=True)


def _full(column: Column) -> str:
    """A column's title with what it belongs to."""
    return f"delta_m, % {column.title}" if column.group == DELTA else f"{words(column.group)} {column.title}"


def _remarks(comparison: Comparison) -> str:
    said = [*(f"Missing: {line}." for line in comparison.missing), *comparison.notes]
    return section("To keep in mind", "".join(f"<p>{escape(line)}</p>" for line in said))


def _trade_off(comparison: Comparison) -> str:
    gain = comparison.column(DELTA, "all")
    shown = ""
    for name in ("MACs", "parameters"):
        cost = comparison.column(COST, name)
        if gain is None or cost is None:
            continue
        scale, prefix = next((s for s in SCALES if s[0] <= max(c or 0 for c in cost.means)), SCALES[-1])
        found = zip(comparison.names, cost.means, gain.means, gain.deviations)
        points = {n: Point(c / scale, g, d) for n, c, g, d in found if c is not None and g is not None}
        if points:
            content = io.BytesIO()
            drawn = trade_off(points, f"{name}, {prefix}".rstrip(", "), "delta_m of all tasks, %")
            drawn.savefig(content, bbox_inches="tight", pad_inches=0.08)
            shown += picture(f"{name} against gain", content.getvalue())
    note = """Each system's gain over single-task networks against what its network costs, with the deviation over
seeds. Purple: the Pareto front, the systems that none beats in cost and gain at once. Upper left is best."""
    return section("Cost against gain", shown and f'<div class="pair">{shown}</div>', note)


def _metrics(comparison: Comparison) -> str:
    content = ""
    for group, columns in comparison.groups.items():
        if group not in (COST, TRAINING):
            content += f"<h3>{escape(words(group) if group != DELTA else DELTA)}</h3>"
            content += _table(comparison, columns, own=True)
    return section(f"All metrics, {SPLITS[comparison.split].lower()} data", content)


def _folders(system: System) -> Path:
    """The folder of the first finished run, or of the first."""
    runs = [run for run in system.runs if run.metrics is not None] or system.runs
    return runs[0].folder


def _found(system: System) -> str:
    """The figures of an architecture and of the training, folded away."""
    paths = [_folders(system) / "figures" / f"{name}.png" for name in (*FOUND, "curves")]
    shown = "".join(picture(words(path.stem), path.read_bytes()) for path in paths if path.exists())
    return details(words(system.name), shown) if shown else ""


def _origin(systems: Sequence[System], command: Sequence[str]) -> str:
    content = f"<h3>This page</h3><pre>{escape(shlex.join(command))}</pre>" if command else ""
    return content + "".join(_commands(systems))


def _commands(systems: Sequence[System]) -> Iterator[str]:
    """Of each system the command of its first run, and its settings."""
    for system in systems:
        run = system.runs[0]
        line = shlex.join(
            ["python", "-m", "mtlsearch.run", *(f"{name}={value}" for name, value in run.overrides.items())]
        )
        settings = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)
        where = f'<p class="soft">{escape(near(run.folder))}</p>'
        body = f"{where}<pre>{escape(line)}</pre><pre>{escape(settings)}</pre>"
        yield details(words(system.name), body)
