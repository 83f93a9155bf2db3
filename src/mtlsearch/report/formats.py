"""A comparison as text: for the terminal, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlsearch.report.comparison import COST, DELTA, TRAINING, Column, Comparison, caption
from mtlsearch.report.tables import SPLITS, words

OTHERS = (DELTA, COST, TRAINING)
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
    """Print a table for each group of columns, then what has to be said."""
    console = console or Console()
    for group, columns in comparison.groups.items():
        title = group if group in OTHERS else f"{SPLITS[comparison.split]}: {words(group)}"
        for part in _fitting(columns, console.width - max(map(len, comparison.names)) - 4):
            table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            table.add_column("system", no_wrap=True)
            for column in part:
                table.add_column(Text(column.title), justify="right")
            for row, name in enumerate(comparison.names):
                cells = [Text(_solid(c.texts[row]), STYLES[c.marks[row]]) for c in part]
                table.add_row(Text(name), *cells)
            console.print(table)
            title = ""
    for line in lines(comparison):
        console.print(Text(line), soft_wrap=True)


def _fitting(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """The columns in parts of which each is at most so many characters wide, or a column alone."""
    part: list[Column] = []
    used = 0
    for column in columns:
        own = 3 + max(map(len, [*column.texts, *column.title.split(" ")]))
        if part and used + own > width:
            yield part
            part, used = [], 0
        part.append(column)
        used += own
    yield part


def _solid(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def lines(comparison: Comparison) -> list[str]:
    """What has to be said beside the table."""
    absent = f"Missing: {'; '.join(comparison.missing)}." if comparison.missing else ""
    return [caption(comparison), *filter(None, [absent]), *comparison.notes]


def markdown(comparison: Comparison) -> str:
    """The whole table, the best in bold and the second best underlined, and below it what has to be said."""
    marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    rows = _rows(comparison, markdown_escaped, marks)
    head, *body = rows
    rule = ["---", "---", *(["---:"] * len(comparison.columns))]
    text = "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))
    said = "\n\n".join(markdown_escaped(line) for line in lines(comparison))
    return f"{text}\n\n{said}\n"


def markdown_escaped(text: str) -> str:
    """Plain text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", escape(text.replace("\n", " "), quote=False))


def latex(comparison: Comparison) -> str:
    """A table with booktabs, as wide as the text: \\usepackage{booktabs, graphicx}."""
    marks = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    _, *body = _rows(comparison, latex_escaped, marks)
    above, rules, start = ["", ""], [], 3
    for group, columns in comparison.groups.items():
        end = start + len(columns) - 1
        above.append(rf"\multicolumn{{{len(columns)}}}{{c}}{{{latex_escaped(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{end}}}")
        start = end + 1
    titles = ["system", "seeds", *(latex_escaped(column.title) for column in comparison.columns)]
    said = " ".join(latex_escaped(line) for line in lines(comparison))
    return "\n".join(
        [
            r"% \usepackage{booktabs, graphicx}",
            r"\begin{table}",
            r"\centering",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{ll{'r' * len(comparison.columns)}}}",
            r"\toprule",
            f"{' & '.join(above)} \\\\",
            "".join(rules),
            f"{' & '.join(titles)} \\\\",
            r"\midrule",
            *(f"{' & '.join(row)} \\\\" for row in body),
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\caption{{{said}}}",
            r"\end{table}",
            "",
        ]
    )


def latex_escaped(text: str) -> str:
    """Plain text that LaTeX sets as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def _rows(comparison: Comparison, escaped: Callable[[str], str], marks: dict[str, str]) -> list[list[str]]:
    """Titles, then a row a system, as cells of marked-up text."""
    titles = [f"{column.group} {column.title}" for column in comparison.columns]
    rows = [["system", "seeds", *map(escaped, titles)]]
    for i, (name, seeds) in enumerate(zip(comparison.names, comparison.seeds)):
        cells = [marks[column.marks[i]].format(escaped(column.texts[i])) for column in comparison.columns]
        rows.append([escaped(name), escaped(seeds), *cells])
    return rows


def csv_text(comparison: Comparison) -> str:
    """All digits: two columns a number, its mean and its deviation."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    titles = [f"{column.group} {column.name}" for column in comparison.columns]
    writer.writerow(["system", "seeds", *(t for title in titles for t in (title, f"{title}, deviation"))])
    for i, (name, seeds) in enumerate(zip(comparison.names, comparison.seeds)):
        pairs = [(column.means[i], column.deviations[i]) for column in comparison.columns]
        writer.writerow([name, seeds, *("" if v is None else repr(v) for pair in pairs for v in pair)])
    return stream.getvalue()
