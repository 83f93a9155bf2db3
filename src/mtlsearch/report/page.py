"""The report of a run: one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import json
import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import yaml  # type: ignore[import-untyped]

from mtlsearch import files
from mtlsearch.report.tables import COSTS, SPLITS, Metrics, by_task, compare, costs, networks, number, words

CAPTIONS = {
    "predictions": """Images, with the ground truth of each task beside what the finished network predicts.
Within a pair one colour means one value; chequered pixels are unlabelled.""",
    "architecture": """The layers of each task's backbone, the first at the top, grouped by stage. A purple
arrow is a chosen fusion edge: the layer at its tip also gets the features of the layer at its tail. Dashed
grey arrows are candidates that were left out. Every pair of tasks has a panel.""",
    "probabilities": """How many candidate edges ended at which probability. The more of them lie at 0 or 1,
the less is lost when an edge is either taken or not; those right of the dotted line are more likely in than
out.""",
    "curves": """Losses, the first validation metric of each task and the edges' mean entropy over the steps
of all stages, laid end to end; a dotted line marks where a stage starts. Of long series the running
mean is strong and single values are pale. At an entropy of 0.69 nat no edge is decided, at 0 all are.""",
}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
UNITS = "Angles are in degrees, depth errors in metres, all else is a fraction from 0 to 1."

STYLE = """
:root { --ink: #1f2430; --soft: #5b6474; --line: #e4e7ec; --back: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 20px 0 4px; }
p { margin: 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px;
  margin-top: 20px; }
dl { display: flex; flex-wrap: wrap; gap: 12px 36px; margin: 20px 0 0; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.soft { color: var(--soft); overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .88rem; margin-top: 12px; }
.scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 0 40px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; }
td + td { white-space: nowrap; }
section > .scroll > table { max-width: 680px; }
thead th { color: var(--soft); font-weight: 600; font-size: .82rem; }
tbody th { padding-top: 14px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
pre { margin: 0; padding: 14px 16px; background: var(--back); border-radius: 8px; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
@media (max-width: 600px) {
  main { padding: 24px 12px 40px; }
  section { padding: 16px 14px; }
  h1 { font-size: 1.5rem; }
  table { font-size: .8rem; }
  thead th { font-size: .75rem; }
  th, td { padding: 5px 4px; }
  dl { gap: 10px 24px; }
  .wide img { max-width: none; width: 720px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
"""


class Best(str):
    """A cell of a table that is set in bold."""


def write(run_dir: str | Path) -> Path:
    """Write `report.html` from what the run's directory holds, and return its path."""
    run_dir = Path(run_dir)
    metrics, architecture = _json(run_dir / "metrics.json"), _json(run_dir / "architecture.json")
    config = _text(run_dir / "config.yaml")
    sections = [
        _comparison(metrics),
        _spread(metrics),
        *_figures(run_dir / "figures"),
        _cost(metrics),
        _seconds(metrics),
        _origin(_text(run_dir / ".hydra" / "overrides.yaml"), config),
    ]
    title, head = _head(run_dir.resolve().name, yaml.safe_load(config), architecture, metrics)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{head}
{"".join(sections)}
</main>
</body>
</html>
"""
    files.write(run_dir / "report.html", page)
    return run_dir / "report.html"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_text(path) or "{}")
    return content


def _head(run: str, config: Any, architecture: Mapping[str, Any], metrics: Metrics) -> tuple[str, str]:
    """The page's title, and its first lines: what was searched on what, and the main numbers."""
    config = config if isinstance(config, dict) else {}
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
    for line in costs(metrics):
        facts.update(zip(COSTS, line[1:]))
        break
    if seconds := metrics.get("seconds"):
        facts["time"] = _duration(sum(seconds.values()))
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
            content += f"<div><h3>{title}</h3>{_table(head, groups)}</div>"
    note = f"The arrow points to the better; the best value is bold. {UNITS}"
    if compared:
        note += " Gain: of the derived network over the supernet, in percent of its value; + is better."
    return _section("Metrics", content and f'<div class="pair">{content}</div>', note)


def _spread(metrics: Metrics) -> str:
    samples = [by_task(sample) for sample in metrics.get("samples") or ()]
    groups: dict[str, list[list[str]]] = {}
    for task in samples[0] if samples else ():
        for name in samples[0][task]:
            values = [sample[task][name] for sample in samples]
            mean = f"{number(fmean(values))} ± {pstdev(values):.2g}"
            groups.setdefault(task, []).append([words(name), mean, number(min(values)), number(max(values))])
    note = (
        f"On validation data: {len(samples)} architectures drawn by the edges' probabilities, not retrained."
    )
    content = _table(["", "mean ± deviation", "lowest", "highest"], groups) if groups else ""
    return _section("Stochastic discretisations", content, note)


def _figures(folder: Path) -> list[str]:
    """A section for every figure, those that every run has first."""
    paths = {path.stem: path for path in sorted(folder.glob("*.png"))}
    order = [name for name in CAPTIONS if name in paths] + [name for name in paths if name not in CAPTIONS]
    return [
        _figure(words(name).capitalize(), paths[name].read_bytes(), CAPTIONS.get(name, "")) for name in order
    ]


def _figure(title: str, png: bytes, caption: str) -> str:
    # At 0.7 of their 160 dots an inch the figures' letters are as large as the captions'.
    width, height = (round(0.7 * pixels) for pixels in struct.unpack(">II", png[16:24]))
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img alt="{escape(title)}" width="{width}" height="{height}" src="{source}">'
    wide = " wide" if width > 700 else ""
    below = f'<figcaption class="note">{escape(caption)}</figcaption>'
    return _section(title, f'<figure><div class="scroll{wide}">{image}</div>{below}</figure>')


def _cost(metrics: Metrics) -> str:
    rows = [list(line) for line in costs(metrics)]
    note = (
        "Of the finished network: for all tasks at once, what they share counted once, and for what a task "
        "alone needs. MACs are multiply-accumulate operations for one image."
    )
    return _section("Cost", _table(["", *COSTS], {"": rows}) if rows else "", note)


def _seconds(metrics: Metrics) -> str:
    seconds = metrics.get("seconds") or {}
    rows = [
        [words(stage), _duration(value)]
        for stage, value in {**seconds, "total": sum(seconds.values())}.items()
    ]
    return _section("Time", _table(["stage", "wall time"], {"": rows}) if seconds else "")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _origin(overrides: str, config: str) -> str:
    content = ""
    if overrides:
        command = shlex.join(["python", "-m", "mtlsearch.run", *map(str, yaml.safe_load(overrides) or ())])
        content += f"<h3>Command</h3><pre>{escape(command)}</pre>"
    if config:
        content += f"<h3>Configuration</h3><pre>{escape(config)}</pre>"
    return _section("How it was made", content)


def _table(head: Sequence[str], groups: Mapping[str, Iterable[Sequence[str]]]) -> str:
    """A table of escaped cells, the rows in groups under a name."""
    body = ""
    for name, rows in groups.items():
        if name:
            body += f'<tr><th colspan="{len(head)}" scope="rowgroup">{escape(name)}</th></tr>'
        for row in rows:
            body += f"<tr>{''.join(map(_cell, row))}</tr>"
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<td><b>{escape(text)}</b></td>" if isinstance(text, Best) else f"<td>{escape(text)}</td>"


def _section(title: str, content: str, note: str = "") -> str:
    """A section of the page; nothing where it has no content."""
    if not content:
        return ""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{below}</section>\n"
