"""The page of `toklab inspect`: the metrics as tables that sort, and a text cut into tokens by each representation.

What of a shown text cannot be seen is spelled out (`visible`).
"""

import unicodedata

from train.inspect.findings import METRICS, Inspected, Inspection
from train.report import page
from train.report.page import Cell, Column, Table, fixed, row_head, some, text_cell

_LISTED_IDS = 8
_MARKS = {" ": "␣", "\n": "⏎\n", "\t": "⇥"}


def render(inspection: Inspection) -> str:
    """The whole page as HTML that loads nothing."""
    parts = {
        "title": f"{some(len(inspection.representations), 'representation')} of a text",
        "inspection": inspection,
        "metrics": _metrics_table(inspection),
        "premiums": _premium_table(inspection) if inspection.languages else None,
        "morph_scores": _morph_table(inspection) if inspection.morph_languages else None,
        "num_tokens": lambda found: some(sum(len(ids) for ids, _ in found.pieces), "token"),
        "tip": _tip,
        "visible": visible,
    }
    files = {"styles": ["inspect/inspection.css"], "scripts": ["inspect/inspection.js"]}
    return page.render("inspect/inspection.html", parts, **files)


def visible(piece: bytes) -> str:
    """Bytes as text in which everything can be seen: spaces and ends of lines as signs, what is not UTF-8 as \\xff,
    other invisible characters as U+200D. A combining character that begins a piece stands on a circle."""
    signs = [_sign(character) for character in piece.decode("utf-8", "surrogateescape")]
    return ("◌" if signs and unicodedata.combining(signs[0][0]) else "") + "".join(signs)


def _sign(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _MARKS:
        return _MARKS[character]
    return f"U+{ord(character):04X}" if unicodedata.category(character)[0] in "CZ" else character


def _metrics_table(inspection: Inspection) -> Table:
    shown = {name: metric for name, metric in METRICS.items() if inspection.has(name)}
    columns = [Column("Representation", number=False), Column("Kind", number=False)]
    columns += [
        Column(metric.name[0].upper() + metric.name[1:], metric.note, number=name != "fitted_on")
        for name, metric in shown.items()
    ]
    rows = [
        [
            row_head(found.label),
            text_cell(found.row["kind"]),
            *(Cell(found.row[name], metric.show(found.row[name])) for name, metric in shown.items()),
        ]
        for found in inspection.representations
    ]
    return Table("Metrics. A heading sorts by its column.", columns, rows)


def _premium_table(inspection: Inspection) -> Table:
    found = inspection.representations
    columns = [Column("Language", number=False, sorted=True), *(Column(each.label) for each in found)]
    rows = [
        [row_head(language), *(Cell(each.premium[language], fixed(each.premium[language], 2)) for each in found)]
        for language in inspection.languages
        if language != inspection.pivot
    ]
    return Table("Premium by language", columns, rows)


def _morph_table(inspection: Inspection) -> Table:
    found = inspection.representations
    columns = [Column("Language", number=False, sorted=True), *(Column(each.label, "of words") for each in found)]
    rows = [
        [row_head(language), *(_morph_cell(each, language) for each in found)]
        for language in inspection.morph_languages
    ]
    return Table("MorphScore by language", columns, rows)


def _morph_cell(found: Inspected, language: str) -> Cell:
    if language not in found.morph_score:
        return Cell(None, fixed(None))
    score = found.morph_score[language]
    return Cell(score.share, fixed(score.share, 3), [f"{score.num_scored:,}"])


def _tip(ids: list[int], piece: bytes) -> str:
    """What a piece is made of: `id 5123: 20 74 68 65`."""
    more = f" and {len(ids) - _LISTED_IDS:,} more" if len(ids) > _LISTED_IDS else ""
    carried = piece.hex(" ") if piece else "no bytes"
    return f"{'id' if len(ids) == 1 else 'ids'} {' '.join(map(str, ids[:_LISTED_IDS]))}{more}: {carried}"
