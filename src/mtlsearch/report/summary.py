"""The five questions that a page on a run answers first."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from mtlsearch.architecture import KINDS
from mtlsearch.budget import training_seconds
from mtlsearch.report.cells import layout
from mtlsearch.report.comparison import DELTA, Comparison
from mtlsearch.report.tables import (
    ARROWS,
    SPLITS,
    Metrics,
    backbone_cost,
    compare,
    count,
    duration,
    number,
    words,
)


def answers(
    config: Mapping[str, Any],
    architecture: Mapping[str, Any],
    metrics: Metrics,
    comparison: Comparison | None = None,
    row: int | None = None,
) -> str:
    """What was searched, on what, what was found, what it costs and how it compares, as HTML.

    Args:
        config, architecture, metrics: the contents of the run's files.
        comparison: with other systems.
        row: of the run's own system in it.
    """
    found = {
        "What was searched": searched(config, metrics),
        "On what": data(config, architecture),
        "What was found": outcome(architecture),
        "What it costs": " ".join(costs(metrics)),
        "How it compares": " ".join(standing(metrics, comparison, row)),
    }
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in found.items() if text)


def searched(config: Mapping[str, Any], metrics: Metrics) -> str:
    """What the searcher says of itself."""
    made = _class(config.get("searcher"))
    if made is None:
        return ""
    from mtlsearch.searcher import Searcher

    stages = metrics.get("seconds") or {}
    idle = not issubclass(made, Searcher) and len(stages) < 2
    order = f" Stages: {', '.join(map(words, stages))}." if len(stages) > 1 else ""
    return f"{'Nothing, this is a comparison system. ' if idle else ''}{_first(made)}{order}"


def data(config: Mapping[str, Any], architecture: Mapping[str, Any]) -> str:
    """The data set in its own words, and what else was given."""
    node = config.get("dataset")
    made = _class(node)
    parts = [_first(made)] if made is not None else []
    sizes = (
        [f"{node[split]} {split}" for split in ("train", "val", "test") if isinstance(node.get(split), int)]
        if isinstance(node, dict)
        else []
    )
    backbone = architecture.get("backbone") or config.get("backbone")
    name = backbone.get("name") if isinstance(backbone, Mapping) else backbone
    given = {
        "Images": ", ".join(sizes),
        "Tasks": ", ".join(architecture.get("tasks") or ()),
        "Backbone": name,
        "Seed": config.get("seed"),
    }
    parts += [f"{key}: {value}." for key, value in given.items() if value not in (None, "")]
    return " ".join(parts)


def outcome(architecture: Mapping[str, Any]) -> str:
    """The architecture in a sentence."""
    if candidates := architecture.get("candidates"):
        return f"{len(architecture['edges'])} of {len(candidates)} candidate fusion edges were chosen."
    if architecture.get("kind") == "policy":
        blocks = len(architecture["blocks"])
        runs = (f"{task} runs {sum(select)}" for task, select in architecture["select"].items())
        return f"Of {blocks} blocks {', '.join(runs)}."
    if architecture.get("kind") == "elastic":
        whole = sum(architecture["channels"])
        runs = (f"{task} runs {sum(kept) / whole:.0%}" for task, kept in architecture["kept"].items())
        return f"Of the blocks' {whole} hidden channels {', '.join(runs)}."
    if architecture.get("kind") == "cells":
        return layout(architecture)
    made = KINDS.get(architecture.get("kind", ""))
    return _first(made) if made is not None else ""


def costs(metrics: Metrics) -> Iterator[str]:
    """The network's size, and what went into it."""
    if cost := metrics.get("cost"):
        latency = f", {number(cost['latency_ms'])} ms an image" if cost.get("latency_ms") else ""
        yield f"{count(cost.get('params'))} parameters, {count(cost.get('macs'))} multiply-accumulates{latency}."
    if metrics.get("seconds"):
        own, search = training_seconds(metrics)
        yield f"Its weights took {duration(own)} to train" + (
            f", the search beside it {duration(search)}." if search else "."
        )
    if budget := metrics.get("budget"):
        yield f"They have seen {budget['images']:,} labelled images" + (
            f"; the search saw {budget['search_images']:,} more." if budget["search_images"] else "."
        )


def standing(metrics: Metrics, comparison: Comparison | None, row: int | None) -> Iterator[str]:
    """Against other systems where they are known, else against its own supernet and size."""
    gains = comparison.column(DELTA, "all") if comparison is not None else None
    if gains is not None and row is not None and (own := gains.means[row]) is not None:
        known = [mean for mean in gains.means if mean is not None]
        place = 1 + sum(mean > own for mean in known)
        yield f"delta_m {gains.texts[row]} % against single-task networks, number {place} of {len(known)} systems."
    split = next((split for split in reversed(SPLITS) if metrics.get(split)), "val")
    for measure in compare(metrics, split)[:1]:
        if measure.gain is not None:
            side = "worse" if measure.gain < 0 else "better"
            yield (
                f"{words(measure.metric)} of {measure.task} {ARROWS[measure.higher_is_better]} is "
                f"{number(measure.values[-1])}, {abs(measure.gain):.1f} % {side} than the supernet's."
            )
    if shared := backbone_cost(metrics):
        yield f"Its backbone has {shared[0]} parameters, {shared[1]} against single-task networks."
    if comparison is None:
        yield "python -m mtlsearch.compare puts this run beside others, such as those of searcher=single_task."


def _class(node: Any) -> Any:
    """The class of this package that a node of the settings names. Nothing else is imported."""
    target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
    module, _, name = target.rpartition(".")
    if not re.fullmatch(r"mtlsearch(\.data(\.[a-z_]+)?)?", module):
        return None
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if inspect.isclass(found) else None


def _first(made: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((inspect.getdoc(made) or "").split("\n\n")[0].split())
