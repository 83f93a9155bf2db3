"""The report of a run: what its one page says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from mtlsearch import files
from mtlsearch.report.cells import layout
from mtlsearch.report.comparison import Comparison
from mtlsearch.report.comparison_page import overview
from mtlsearch.report.markup import Best, document, figure, section, table
from mtlsearch.report.summary import answers
from mtlsearch.report.tables import (
    COSTS,
    SPLITS,
    Metrics,
    backbone_cost,
    by_task,
    compare,
    costs,
    count,
    duration,
    networks,
    number,
    retrained,
    spread,
    words,
)

CAPTIONS = {
    "predictions": """Images, with the ground truth of each task beside what the finished network predicts.
Within a pair one colour means one value; chequered pixels are unlabelled. Of the boxes those with a score of 30 %
and more are shown.""",
    "architecture": """The layers of each task's backbone, the first at the top, grouped by stage. A purple
arrow is a chosen fusion edge: the layer at its tip also gets the features of the layer at its tail. Dashed
grey arrows are candidates that were left out. Every pair of tasks has a panel.""",
    "policy": """The blocks of the shared backbone from left to right, a row for each task. The darker a block,
the likelier it is that the task selects it. The outlined ones are selected, the rest are skipped.""",
    "channels": """The blocks of the backbone from left to right, a row for each task: how many of a block's hidden
channels the task runs. Where there are none, only the block's shortcut is left.""",
    "correlation": """The cosine similarity of two tasks' selection probabilities: at 1 both favour the same
blocks to the same degree. It is not defined (–) for a task whose probabilities are all 0.""",
    "cells": """The cells of the backbone and of each task's branch. A node adds up two operations on its inputs,
which are the outputs of the two cells before (at the left) and earlier nodes; thin lines join the nodes into the
cell's output.
A full line is 3x3 or maximum, a dashed one 5x5 or average. Reduction cells halve the resolution; a branch for
every pixel has none, though one was found for it.""",
    "operations": """The probability of each operation, its mean over the edges of a cell, after each epoch of each
search. All begin at 0.125; what leads at an edge may be none, which is left out when the cell is made.""",
    "probabilities": """How many candidate edges ended at which probability. The more of them lie at 0 or 1,
the less is lost when an edge is either taken or not; those right of the dotted line are more likely in than
out.""",
    "curves": """Losses, the first validation metric of each task and the search's progress over the steps
of the stages that have them, laid end to end; a dotted line marks where a stage starts. Of long series the running
mean is strong and single values are pale. At an entropy of 0.69 nat nothing is decided, at 0 all is.""",
}
SPREAD = ("mean ± deviation", "lowest", "highest")
UNITS = "Angles are in degrees, depth errors in metres, all else is a fraction from 0 to 1."


def write(run_dir: str | Path, comparison: Comparison | None = None) -> Path:
    """Write `report.html` from what the run's directory holds, and return its path.

    Args:
        run_dir: of a run.
        comparison: of its system with others, to be shown as well.
    """
    run_dir = Path(run_dir)
    metrics, architecture = _json(run_dir / "metrics.json"), _json(run_dir / "architecture.json")
    config = _text(run_dir / "config.yaml")
    settings = yaml.safe_load(config)
    settings = settings if isinstance(settings, dict) else {}
    row = comparison.row(run_dir) if comparison is not None else None
    summary = answers(settings, architecture, metrics, comparison, row)
    sections = [
        section("In short", summary and f'<dl class="answers">{summary}</dl>'),
        *(overview(comparison) if comparison is not None else ()),
        _comparison(metrics),
        _spread(metrics),
        _retrained(metrics),
        *_figures(run_dir / "figures", architecture),
        _cost(metrics),
        _seconds(metrics),
        _origin(_text(run_dir / ".hydra" / "overrides.yaml"), config),
    ]
    title, head = _head(run_dir.resolve().name, settings, architecture, metrics)
    page = document(title, head, sections)
    files.write(run_dir / "report.html", page)
    return run_dir / "report.html"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_text(path) or "{}")
    return content


def _head(
    run: str, config: Mapping[str, Any], architecture: Mapping[str, Any], metrics: Metrics
) -> tuple[str, str]:
    """The page's title, and its first lines: what was searched on what, and the main numbers."""
    searcher, dataset = _called(config.get("searcher")), _called(config.get("dataset"))
    backbone = _called(architecture.get("backbone")) or _called(config.get("backbone"))
    title = " on ".join(filter(None, [searcher, backbone])) or run
    about = {
        "Tasks": ", ".join(architecture.get("tasks", ())),
        "data": dataset,
        "seed": config.get("seed"),
        "run": run,
    }
    lead = "; ".join(f"{name} {value}" for name, value in about.items() if value not in (None, ""))
    facts = {}
    if candidates := architecture.get("candidates"):
        facts["fusion edges"] = f"{len(architecture['edges'])} of {len(candidates)}"
    if architecture.get("kind") == "policy":
        runs = ", ".join(f"{task} {sum(select)}" for task, select in architecture["select"].items())
        facts["blocks run"] = f"{runs} of {len(architecture['blocks'])}"
    for line in costs(metrics):
        facts.update(zip(COSTS, line[1:]))
        break
    if shared := backbone_cost(metrics):
        facts["backbone parameters, against single-task"] = shared[1]
    if seconds := metrics.get("seconds"):
        facts["time"] = duration(sum(seconds.values()))
    terms = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items()
    )
    return title, f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(lead)}</p>\n<dl>{terms}</dl>'


def _called(entry: Any) -> str:
    """What a group of the configuration is called: its name, or that of its class."""
    if isinstance(entry, Mapping):
        entry = entry.get("name") or str(entry.get("_target_", "")).rpartition(".")[2]
    return str(entry or "")


def _comparison(metrics: Metrics) -> str:
    content = ""
    names = list(networks(metrics))
    compared = names[-2:] == ["supernet", "derived"]
    for split, title in SPLITS.items():
        groups: dict[str, list[list[str]]] = {}
        for row in compare(metrics, split):
            values = [Best(number(v)) if best else number(v) for v, best in zip(row.values, row.best)]
            gain = [f"{row.gain:+.2f}%" if row.gain is not None else "–"] if compared else []
            groups.setdefault(row.task, []).append([row.name, *values, *gain])
        if groups:
            head = ["", *names, *(["gain"] if compared else [])]
            content += f"<div><h3>{title}</h3>{table(head, groups)}</div>"
    note = f"The arrow points to the better; the best value is bold. {UNITS}"
    if compared:
        note += " Gain: of the derived network over the supernet, in percent of its value; + is better."
    return section("Metrics", content and f'<div class="pair">{content}</div>', note)


def _spread(metrics: Metrics) -> str:
    samples = [by_task(sample) for sample in metrics.get("samples") or ()]
    groups: dict[str, list[list[str]]] = {}
    for task in samples[0] if samples else ():
        for name in samples[0][task]:
            values = [sample[task][name] for sample in samples]
            groups.setdefault(task, []).append([words(name), *spread(values)])
    note = f"On validation data: {len(samples)} architectures drawn by their probabilities, not retrained."
    content = table(["", *SPREAD], groups) if groups else ""
    return section("Stochastic discretisations", content, note)


def _retrained(metrics: Metrics) -> str:
    """How much the samples of a policy differ once they are trained, and where the chosen one lies."""
    samples = metrics.get("retrained") or ()
    if len(samples) < 2:
        return ""
    chosen, content = metrics["chosen"], ""
    for split, title in SPLITS.items():
        groups: dict[str, list[list[str]]] = {}
        for row in retrained(metrics, split):
            cells = [row.name, *spread(row.values), Best(number(row.values[chosen]))]
            groups.setdefault(row.task, []).append(cells)
        if groups:
            content += f"<div><h3>{title}</h3>{table(['', *SPREAD, 'chosen'], groups)}</div>"
    sizes = [sample["backbone_params"] for sample in samples]
    note = (
        f"{len(samples)} samples of the policy were retrained, and the best was chosen on validation data, by "
        "its loss: the validation values flatter it, the test values do not. The samples' backbones have "
        f"{count(min(sizes))} to {count(max(sizes))} parameters, that of the chosen one {count(sizes[chosen])}."
    )
    return section("Retrained samples", content and f'<div class="pair">{content}</div>', note)


def _figures(folder: Path, architecture: Mapping[str, Any]) -> list[str]:
    """A section for every figure, those that every run has first."""
    paths = {path.stem: path for path in sorted(folder.glob("*.png"))}
    captions = dict(CAPTIONS)
    if architecture.get("kind") == "cells":
        captions["cells"] = f"{layout(architecture)} {captions['cells']}"
    order = [name for name in CAPTIONS if name in paths] + [name for name in paths if name not in CAPTIONS]
    return [
        figure(words(name).capitalize(), paths[name].read_bytes(), captions.get(name, "")) for name in order
    ]


def _cost(metrics: Metrics) -> str:
    rows = [list(line) for line in costs(metrics)]
    note = (
        "Of the finished network: for all tasks at once, what they share counted once, and for what a task "
        "alone needs. MACs are multiply-accumulate operations for one image."
    )
    if shared := backbone_cost(metrics):
        note += (
            f" Its backbone alone, what tasks share counted once, has {shared[0]} parameters: {shared[1]} against "
            "the backbones of single-task networks."
        )
    return section("Cost", table(["", *COSTS], {"": rows}) if rows else "", note)


def _seconds(metrics: Metrics) -> str:
    seconds = metrics.get("seconds") or {}
    rows = [
        [words(stage), duration(value)]
        for stage, value in {**seconds, "total": sum(seconds.values())}.items()
    ]
    return section("Time", table(["stage", "wall time"], {"": rows}) if seconds else "")


def _origin(overrides: str, config: str) -> str:
    content = ""
    if overrides:
        command = shlex.join(["python", "-m", "mtlsearch.run", *map(str, yaml.safe_load(overrides) or ())])
        content += f"<h3>Command</h3><pre>{escape(command)}</pre>"
    if config:
        content += f"<h3>Configuration</h3><pre>{escape(config)}</pre>"
    return section("How it was made", content)
