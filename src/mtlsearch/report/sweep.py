"""What a sweep shows: a table of its runs and the histograms of their edge probabilities side by side; or, where
the searcher varies, their comparison."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlsearch import files
from mtlsearch.report import comparing, figures, page
from mtlsearch.report.systems import overrides_of
from mtlsearch.report.tables import ARROWS, Metrics, number, words
from mtlsearch.rundir import near, read_metrics, value
from mtlsearch.rundir import read as read_settings


class Run(NamedTuple):
    """A run of a sweep: its folder, what was set for it, and what it came to if it is finished."""

    folder: Path
    settings: dict[str, str]
    objective: str
    metrics: Metrics | None


def show(dir: str | Path, console: Console | None = None) -> None:
    """Print the runs of a sweep and draw its `probabilities.png`, if there are any; or compare its searchers.

    A run is described by the settings that are not the same in all of them. Beside the objective the first
    metric of every task is shown. Where the searcher or the system varies, `comparison.html` is written, with what
    is missing named, and the reports of the runs say how they compare.
    """
    console = console or Console()
    runs = read(Path(dir))
    if not runs:
        return
    if any(len({run.settings.get(name) for run in runs}) > 1 for name in ("searcher", "system")):
        try:
            compare(Path(dir), console)
            return
        except ValueError as error:
            console.print(Text(f"No comparison: {error}", "red"), soft_wrap=True)
    varied = varying(runs)
    directions: Mapping[str, Any] = next(
        (run.metrics["directions"] for run in runs if run.metrics is not None), {}
    )
    main = [f"val/{task}/{next(iter(metrics))}" for task, metrics in directions.items()]
    columns = {name: _is_higher_better(name, directions) for name in (runs[0].objective, *main)}
    table = Table(title="Sweep", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("job", *varied):
        table.add_column(name.rpartition(".")[2])
    for name, higher in columns.items():
        table.add_column(
            f"{words(name.removeprefix('val/')).replace('/', ' ')} {ARROWS[higher]}", justify="right"
        )
    best = {name: _best(runs, name, higher) for name, higher in columns.items()}
    for run in runs:
        cells = [Text(run.folder.name), *(Text(run.settings.get(name, "")) for name in varied)]
        if run.metrics is None:
            cells.append(Text("not finished", "red"))
        else:
            values = {name: value(run.metrics, name) for name in columns}
            cells += [Text(number(v), "bold green" if v == best[name] else "") for name, v in values.items()]
        table.add_row(*cells)
    console.print(table)
    path = draw(Path(dir), runs)
    console.print(Text(f"Runs: {dir}" + (f"\nProbabilities: {path}" if path else "")), soft_wrap=True)


def compare(dir: Path, console: Console) -> None:
    """Compare the searchers of a sweep, and have their reports say how they compare."""
    wanted = swept(dir)
    seeds = [int(seed) for seed in wanted.get("seed", ()) if seed.isdecimal()]
    names = wanted.get("system") or wanted.get("searcher") or []
    command = ["python", "-m", "mtlsearch.compare", near(dir)]
    result = comparing.run([dir], output=dir, names=names, seeds=seeds, command=command, console=console)
    for system in result.systems:
        for run in system.runs:
            if run.metrics is not None and (run.folder / "report.html").exists():
                page.write(run.folder, comparison=result)


def swept(dir: Path) -> dict[str, list[str]]:
    """The values of the settings that a sweep varies, where they are a plain list: "searcher=mtan,den"."""
    path = dir / "multirun.yaml"
    node = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("hydra", {}) if path.exists() else {}
    params = (node.get("sweeper") or {}).get("params") or {}
    given = overrides_of((node.get("overrides") or {}).get("task") or ())
    pairs = {**params, **given}.items()
    return {
        name: [part.strip() for part in str(value).split(",")]
        for name, value in pairs
        if re.fullmatch(r"[\w\s,./-]+", str(value))
    }


def read(dir: Path) -> list[Run]:
    """The runs below a folder, in the order of their numbers."""
    runs = []
    folders = [path.parent.parent for path in dir.rglob(".hydra/overrides.yaml")]
    begun = [folder for folder in folders if (folder / "config.yaml").exists()]
    for folder in sorted(begun, key=lambda path: (len(path.name), path)):
        overrides = yaml.safe_load((folder / ".hydra/overrides.yaml").read_text())
        settings = overrides_of(overrides)
        metrics = read_metrics(folder) if (folder / "metrics.json").exists() else None
        runs.append(Run(folder, settings, read_settings(folder)["objective"], metrics))
    return runs


def varying(runs: list[Run]) -> list[str]:
    """The settings in which runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({run.settings.get(name) for run in runs}) > 1]


def _is_higher_better(name: str, directions: Mapping[str, Mapping[str, bool]]) -> bool:
    """The direction of `val/loss` or `val/TASK/METRIC`."""
    _, task, *metric = name.split("/")
    return directions.get(task, {}).get(metric[0], False) if metric else False


def _best(runs: list[Run], name: str, higher: bool) -> float | None:
    """The best value of any run; none where there is nothing to choose."""
    values = {
        found for run in runs if run.metrics is not None and (found := value(run.metrics, name)) is not None
    }
    return (max(values) if higher else min(values)) if len(values) > 1 else None


def draw(dir: Path, runs: list[Run]) -> Path | None:
    """`probabilities.png` of the runs that have edge probabilities."""
    panels = {}
    varied = varying(runs)
    for run in runs:
        path = run.folder / "architecture.json"
        edges = json.loads(path.read_text()).get("candidates", ()) if path.exists() else ()
        if probabilities := [edge["probability"] for edge in edges if "probability" in edge]:
            settings = [f"{n.rpartition('.')[2]} {run.settings[n]}" for n in varied if n in run.settings]
            panels[", ".join(settings) or run.folder.name] = probabilities
    if not panels:
        return None
    content = io.BytesIO()
    figures.histograms(panels).savefig(content, bbox_inches="tight", pad_inches=0.08)
    files.write(dir / "probabilities.png", content.getvalue())
    return dir / "probabilities.png"
