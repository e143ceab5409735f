"""What our pages and their CSV are made of: texts and numbers as people read them, tables that sort, the template
around them.

Every text that is not ours goes through `escape`, and a page's own policy lets no script run but the page's.
"""

import base64
import csv
import dataclasses
import hashlib
import html
import io
import pathlib
import re
import string
from collections.abc import Sequence
from typing import Any

from train.report import chart

NOTHING = "–"
_HERE = pathlib.Path(__file__).parent

# Control characters, text-direction overrides and halves of surrogate pairs: they belong on no page and no terminal.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(
    template_file: pathlib.Path,
    parts: dict[str, str],
    *,
    styles: Sequence[pathlib.Path] = (),
    scripts: Sequence[pathlib.Path] = (),
) -> str:
    """A template, filled, as a page that loads nothing.

    Args:
      template_file: the template.
      parts: what it names, as finished HTML, besides css, script and script_hash.
      styles, scripts: files that are put into the page behind those that all pages have.
    """
    template, css, script = (
        "".join(file.read_text(encoding="utf-8") for file in files)
        for files in ([template_file], [_HERE / "report.css", *styles], [_HERE / "report.js", *scripts])
    )
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(template).substitute(parts, css=css, script=script, script_hash=script_hash)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same keys as CSV; none of its cells is a formula."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """A spreadsheet would run a text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def printable(text: str) -> str:
    """The text without what would confuse a page or a terminal."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def fixed(value: float | None, decimals: int = 0) -> str:
    """`1234.5, 2 -> "1,234.50"`; a dash for None."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def si(value: float | None, unit: str = "") -> str:
    """`12_000_000, "B" -> "12.0 MB"`; a dash for None."""
    return NOTHING if value is None else chart.si(value, unit)


def percent(value: float | None) -> str:
    """`0.021 -> "2.1 %"`; a dash for None."""
    return NOTHING if value is None else f"{100 * value:.1f}\N{NARROW NO-BREAK SPACE}%"


def short(content_hash: str) -> str:
    """Enough of a content hash, or of several joined by `+`, to tell them apart."""
    return "+".join(part[:12] for part in content_hash.split("+"))


def escape(value: object) -> str:
    return html.escape(str(value))


def with_code(text: str) -> str:
    """The text escaped, and what is between backticks in it as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


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
