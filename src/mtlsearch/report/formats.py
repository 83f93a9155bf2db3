"""A comparison as text: for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from html import escape

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlsearch.report.comparison import COST, DELTA, TRAINING, Column, Comparison, caption
from mtlsearch.report.tables import SPLITS, words

OTHERS = (DELTA, COST, TRAINING)
Headed = tuple[Column, str]
"""A column and what stands above it."""
STYLES = {"best": "bold green", "second": "underline", "": ""}
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{NO-BREAK SPACE}": "~",
    "\n": " ",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def terminal(comparison: Comparison, console: Console | None = None) -> None:
    """Print a table for each group of columns, one of the first of each, then what has to be said."""
    console = console or Console()
    tables = [*_groups(comparison), (f"{SPLITS[comparison.split]}: overview", _overview(comparison))]
    for title, columns in tables:
        for part in _fitting(columns, console.width - max(map(len, comparison.names)) - 4):
            table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            table.add_column("system", no_wrap=True)
            for column, head in part:
                lines_of_head = textwrap.wrap(head, _width(column, head), break_on_hyphens=False)
                table.add_column(Text("\n".join(lines_of_head)), justify="right")
            for row, name in enumerate(comparison.names):
                cells = [Text(_solid(c.texts[row]), STYLES[c.marks[row]]) for c, _ in part]
                table.add_row(Text(name), *cells)
            console.print(table)
            title = ""
    for line in lines(comparison):
        console.print(Text(line), soft_wrap=True)


def _overview(comparison: Comparison) -> list[Headed]:
    return [(c, c.title if c.group == COST else f"{_named(c.group)} {c.title}") for c in comparison.overview]


def _groups(comparison: Comparison) -> list[tuple[str, list[Headed]]]:
    """Each group's columns, under a title that says which data they are of."""
    split = SPLITS[comparison.split]
    return [
        (group if group in OTHERS else f"{split}: {words(group)}", [(c, c.title) for c in columns])
        for group, columns in comparison.groups.items()
    ]


def _named(group: str) -> str:
    return group if group in OTHERS else words(group)


def _fitting(columns: Sequence[Headed], width: int) -> Iterator[list[Headed]]:
    """The columns in parts of which each is at most so many characters wide, or a column alone."""
    part: list[Headed] = []
    used = 0
    for column, head in columns:
        own = 3 + _width(column, head)
        if part and used + own > width:
            yield part
            part, used = [], 0
        part.append((column, head))
        used += own
    yield part


def _width(column: Column, head: str) -> int:
    return max(map(len, [*column.texts, *head.split(" ")]))


def _solid(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def lines(comparison: Comparison) -> list[str]:
    """What has to be said beside the table."""
    absent = f"Missing: {'; '.join(comparison.missing)}." if comparison.missing else ""
    return [caption(comparison), *filter(None, [absent]), *comparison.notes]


def markdown(comparison: Comparison) -> str:
    """The overview, what has to be said, and a table for each group; the best bold, the second best underlined."""
    overview = _grid(comparison, _overview(comparison))
    said = [markdown_escaped(line) for line in lines(comparison)]
    groups = [
        f"### {markdown_escaped(_named(group))}\n\n{_grid(comparison, [(c, c.title) for c in columns])}"
        for group, columns in comparison.groups.items()
    ]
    return "\n\n".join([overview, *said, *groups]) + "\n"


def _grid(comparison: Comparison, columns: Sequence[Headed]) -> str:
    """A table of Markdown."""
    marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    rows = [["system", "seeds", *(markdown_escaped(head) for _, head in columns)]]
    rows.append(["---", "---", *(["---:"] * len(columns))])
    for i, (name, seeds) in enumerate(zip(comparison.names, comparison.seeds)):
        cells = [marks[c.marks[i]].format(markdown_escaped(c.texts[i])) for c, _ in columns]
        rows.append([markdown_escaped(name), seeds, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def markdown_escaped(text: str) -> str:
    """Plain text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", escape(text.replace("\n", " "), quote=False))


def latex(comparison: Comparison) -> str:
    """The overview and a table for each group, with booktabs, none wider than the text."""
    said = " ".join(latex_escaped(line) for line in lines(comparison))
    tables = [_latex_table(comparison, _overview(comparison), said)]
    tables += [
        _latex_table(comparison, columns, latex_escaped(title)) for title, columns in _groups(comparison)
    ]
    return "\n".join([r"% \usepackage{booktabs, adjustbox}", *tables])


def _latex_table(comparison: Comparison, columns: Sequence[Headed], said: str) -> str:
    marks = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    rows = [["system", "seeds", *(latex_escaped(head) for _, head in columns)]]
    for i, (name, seeds) in enumerate(zip(comparison.names, comparison.seeds)):
        cells = [marks[c.marks[i]].format(latex_escaped(c.texts[i])) for c, _ in columns]
        rows.append([latex_escaped(name), latex_escaped(seeds), *cells])
    head, *body = (f"{' & '.join(row)} \\\\" for row in rows)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{said}}}",
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{ll{'r' * len(columns)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{table}",
            "",
        ]
    )


def latex_escaped(text: str) -> str:
    """Plain text that LaTeX sets as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def csv_of_runs(comparison: Comparison) -> str:
    """All digits of every finished run: a row a system and seed, empty where a run lacks a number."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["system", "seed", *(f"{column.group} {column.name}" for column in comparison.columns)])
    for i, system in enumerate(comparison.systems):
        for j, seed in enumerate(system.finished):
            values = [column.values[i][j] for column in comparison.columns]
            writer.writerow([words(system.name), seed, *("" if v is None else repr(v) for v in values)])
    return stream.getvalue()


def csv_of_systems(comparison: Comparison) -> str:
    """All digits: two columns a number, its mean and its deviation."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    titles = [f"{column.group} {column.name}" for column in comparison.columns]
    writer.writerow(["system", "seeds", *(t for title in titles for t in (title, f"{title}, deviation"))])
    for i, (name, seeds) in enumerate(zip(comparison.names, comparison.seeds)):
        pairs = [(column.means[i], column.deviations[i]) for column in comparison.columns]
        writer.writerow([name, seeds, *("" if v is None else repr(v) for pair in pairs for v in pair)])
    return stream.getvalue()
