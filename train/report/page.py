"""What our pages and their CSV are made of: texts and numbers as people read them, tables that sort, the templates.

Templates are the .html files of `train/`. They escape every text that does not come from them, and a page's own policy
lets no script run but the page's.
"""

import base64
import csv
import dataclasses
import functools
import hashlib
import io
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from train.report import chart

NOTHING = "–"
_TRAIN = pathlib.Path(__file__).parents[1]

# Control characters, text-direction overrides and halves of surrogate pairs: they belong on no page and no terminal.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def render(template: str, parts: dict[str, Any], *, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """A page that loads nothing, from a template that extends `report/page.html`.

    Args:
      template: its path below `train/`, as those of styles and scripts.
      parts: what it names, besides css, script and script_hash.
      styles, scripts: files that are put into the page behind those that all pages have.
    """
    css, script = (
        "".join((_TRAIN / file).read_text(encoding="utf-8") for file in files)
        for files in (["report/report.css", *styles], ["report/report.js", *scripts])
    )
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fragment(template, parts | {"css": Markup(css), "script": Markup(script), "script_hash": script_hash})


def fragment(template: str, parts: dict[str, Any]) -> Markup:
    """A part of a page, from a template."""
    return Markup(_environment().get_template(template).render(parts))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TRAIN),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"with_code": with_code}
    environment.globals |= {"key": chart.key}
    return environment


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


def with_code(text: str) -> Markup:
    """The text escaped, and what is between backticks in it as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclasses.dataclass(frozen=True)
class Column:
    """The head of a column; `note` is its small print, `sorted` says that the rows are in its order at first."""

    title: str
    note: str = ""
    number: bool = True
    sorted: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      value: what it sorts by; None comes last.
      shown: what it says.
      small: lines of small print below.
      strong: whether it stands out.
      is_head: whether it names its row.
      style: the look of an arm in the charts, shown beside its name.
      badge: a word behind a name.
      whisker: an interval to draw, its low end, middle and high end in percent of the width.
    """

    value: float | str | None
    shown: str
    small: Sequence[str] = ()
    strong: bool = False
    is_head: bool = False
    style: int | None = None
    badge: str = ""
    whisker: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that scrolls in its own frame and whose headings sort."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def row_head(label: str, style: int | None = None, badge: str = "") -> Cell:
    return Cell(label, label, is_head=True, style=style, badge=badge)


def text_cell(text: str) -> Cell:
    return Cell(text, text)
