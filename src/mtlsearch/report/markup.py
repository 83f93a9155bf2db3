"""The parts of a page of HTML that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { --ink: #1f2430; --soft: #5b6474; --line: #e4e7ec; --back: #f6f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 20px 0 4px; }
p { margin: 0; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px;
  margin-top: 20px; }
dl { display: flex; flex-wrap: wrap; gap: 12px 36px; margin: 20px 0 0; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; font-size: 1.25rem; font-weight: 600; }
.answers { display: grid; grid-template-columns: max-content 1fr; gap: 8px 20px; margin: 0; }
.answers dt { font-size: .92rem; font-weight: 600; }
.answers dd { font-size: .95rem; font-weight: 400; overflow-wrap: anywhere; }
.soft { color: var(--soft); overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .88rem; margin-top: 12px; }
.scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 0 40px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: right; }
td + td { white-space: nowrap; }
section > .scroll > table:not(.named, .tiles) { max-width: 680px; }
.named td:first-child, .named th:first-child { position: sticky; left: 0; background: #fff; z-index: 1;
  min-width: 8em; max-width: 14em; padding-right: 12px; }
.named thead th { vertical-align: bottom; }
.tiles td, .tiles th { text-align: center; padding: 3px 4px; border: 0; font-size: .82rem; min-width: 96px; }
.tile { width: 104px; image-rendering: pixelated; border-radius: 4px; }
details { border-top: 1px solid var(--line); padding: 8px 0; }
summary { cursor: pointer; font-weight: 600; font-size: .95rem; }
details > * + * { margin-top: 10px; }
section > p + p { margin-top: 6px; }
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
  .answers { display: block; }
  .answers dd { margin-bottom: 10px; }
  .wide img { max-width: none; width: 720px; }
}
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
"""


class Best(str):
    """A cell of a table that is set in bold."""


class Second(str):
    """A cell of a table that is underlined."""


def document(title: str, head: str, sections: Iterable[str]) -> str:
    """The whole page.

    Args:
        title: as plain text.
        head: the HTML above the sections.
        sections: their HTML, as `section` makes it.
    """
    return f"""<!doctype html>
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


def figure(title: str, png: bytes, caption: str) -> str:
    """A section with a picture, which the page holds itself."""
    below = f'<figcaption class="note">{escape(caption)}</figcaption>'
    return section(title, f"<figure>{picture(title, png)}{below}</figure>")


def picture(title: str, png: bytes) -> str:
    """A picture as large as it was drawn, in a frame that scrolls where it is too wide."""
    # At 0.7 of their 160 dots an inch the figures' letters are as large as the captions'.
    width, height = (round(0.7 * pixels) for pixels in struct.unpack(">II", png[16:24]))
    image = f'<img alt="{escape(title)}" width="{width}" height="{height}" src="{_source(png)}">'
    wide = " wide" if width > 700 else ""
    return f'<div class="scroll{wide}">{image}</div>'


def tile(title: str, png: bytes) -> str:
    """A small picture whose pixels may be seen."""
    return f'<img class="tile" alt="{escape(title)}" src="{_source(png)}">'


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def details(title: str, content: str) -> str:
    """What is folded away under a title."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def table(head: Sequence[str], groups: Mapping[str, Iterable[Sequence[str]]], *, named: bool = False) -> str:
    """A table of escaped cells, the rows in groups under a name.

    Args:
        head: of the columns.
        groups: rows by the name of their group; under an empty name there is no line for it.
        named: whether the first cells name rows of a table that may be wide: they stay while it scrolls.
    """
    body = ""
    for name, rows in groups.items():
        if name:
            body += f'<tr><th colspan="{len(head)}" scope="rowgroup">{escape(name)}</th></tr>'
        for row in rows:
            body += f"<tr>{''.join(map(_cell, row))}</tr>"
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    kind = ' class="named"' if named else ""
    head_row = f"<thead><tr>{columns}</tr></thead>"
    return f'<div class="scroll"><table{kind}>{head_row}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    mark = "b" if isinstance(text, Best) else "u" if isinstance(text, Second) else ""
    inner = f"<{mark}>{escape(text)}</{mark}>" if mark else escape(text)
    return f"<td>{inner}</td>"


def section(title: str, content: str, note: str = "") -> str:
    """A section of the page; nothing where it has no content."""
    if not content:
        return ""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{content}{below}</section>\n"
