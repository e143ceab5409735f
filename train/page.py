"""What our HTML pages are made of: numbers as people read them, tables that sort, and the template around them.

Every text that is not ours goes through `escape`, and a page's own policy lets no script run but the page's.
"""

import base64
import dataclasses
import hashlib
import html
import pathlib
import string
from collections.abc import Sequence

from train import report_chart

NOTHING = "–"


def render(name: str, parts: dict[str, str], *, styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The template `NAME.html` of this folder, filled, as a page that loads nothing.

    Args:
      name: of the template.
      parts: what it names, as finished HTML, besides css, script and script_hash.
      styles, scripts: names of files in this folder, put into the page one after the other.
    """
    template, css, script = (
        "".join(pathlib.Path(__file__).with_name(file).read_text(encoding="utf-8") for file in files)
        for files in ((f"{name}.html",), styles, scripts)
    )
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(template).substitute(parts, css=css, script=script, script_hash=script_hash)


def fixed(value: float | None, decimals: int = 0) -> str:
    """`1234.5, 2 -> "1,234.50"`; a dash for None."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def si(value: float | None, unit: str = "") -> str:
    """`12_000_000, "B" -> "12.0 MB"`; a dash for None."""
    return NOTHING if value is None else report_chart.si(value, unit)


def percent(value: float | None) -> str:
    """`0.021 -> "2.1 %"`; a dash for None."""
    return NOTHING if value is None else f"{100 * value:.1f}\N{NARROW NO-BREAK SPACE}%"


def short(content_hash: str) -> str:
    """Enough of a content hash, or of several joined by `+`, to tell them apart."""
    return "+".join(part[:12] for part in content_hash.split("+"))


def escape(value: object) -> str:
    return html.escape(str(value))


def some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclasses.dataclass(frozen=True)
class Column:
    """The head of a column; `note` is its small print, `sorted` says that the rows are in its order at first."""

    title: str
    note: str = ""
    number: bool = True
    sorted: bool = False


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls in its own frame and whose headings sort; `rows` hold finished cells."""
    heads = ""
    for column in columns:
        attributes = (' class="number"' if column.number else "") + (' aria-sort="ascending"' if column.sorted else "")
        note = f"<small>{escape(column.note)}</small>" if column.note else ""
        title = f"<span>{escape(column.title)}</span>{note}"
        heads += f'<th scope="col"{attributes}><button type="button">{title}</button></th>'
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def row_head(label: str, before: str = "", after: str = "") -> str:
    return f'<th scope="row" data-value="{escape(label)}">{before}{escape(label)}{after}</th>'


def cell(value: float | str | None, shown: str) -> str:
    """A cell that shows some HTML; `data-value`, absent for None, is what it sorts by."""
    kind = "" if isinstance(value, str) else ' class="number"'
    order = "" if value is None else f' data-value="{escape(value)}"'
    return f"<td{kind}{order}>{shown}</td>"
