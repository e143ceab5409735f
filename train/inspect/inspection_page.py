"""The page of `toklab inspect`: the metrics as tables that sort, and a text cut into tokens by each representation.

Every text goes through `escape`, and what of a shown text cannot be seen is spelled out (`visible`).
"""

import pathlib
import unicodedata

from train.inspect.findings import METRICS, Inspected, Inspection
from train.report import page
from train.report.page import Column, cell, escape, fixed, row_head, some, table

_LISTED_IDS = 8
_MARKS = {" ": "␣", "\n": "⏎\n", "\t": "⇥"}
_NOTHING_CARRIED = "∅"


def render(inspection: Inspection) -> str:
    """The whole page as HTML that loads nothing."""
    here = pathlib.Path(__file__).parent
    return page.render(
        here / "inspection.html",
        {
            "title": f"{some(len(inspection.representations), 'representation')} of a text",
            "about": escape(inspection.about),
            "machine": escape(inspection.machine),
            "notes": _notes(inspection),
            "metrics": _metrics_table(inspection),
            "shown": "".join(map(_cut, inspection.representations)),
            "languages": _languages(inspection),
        },
        styles=[here / "inspection.css"],
        scripts=[here / "inspection.js"],
    )


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


def _notes(inspection: Inspection) -> str:
    if not inspection.notes:
        return ""
    return (
        '<section class="warnings"><h2>What is'
        f" missing</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in inspection.notes)}</ul></section>"
    )


def _metrics_table(inspection: Inspection) -> str:
    shown = {name: metric for name, metric in METRICS.items() if inspection.has(name)}
    columns = [Column("Representation", number=False), Column("Kind", number=False)]
    columns += [
        Column(metric.name[0].upper() + metric.name[1:], metric.note, number=name != "fitted_on")
        for name, metric in shown.items()
    ]
    rows = []
    for found in inspection.representations:
        cells = [row_head(found.label), cell(found.row["kind"], escape(found.row["kind"]))]
        rows.append(
            cells + [cell(found.row[name], escape(metric.show(found.row[name]))) for name, metric in shown.items()]
        )
    return table("Metrics. A heading sorts by its column.", columns, rows)


def _languages(inspection: Inspection) -> str:
    """A section each for premiums and MorphScores, where they were asked for."""
    found, sections = inspection.representations, ""
    if inspection.languages:
        columns = [Column("Language", number=False, sorted=True), *(Column(each.label) for each in found)]
        rows = [
            [row_head(language), *(cell(each.premium[language], fixed(each.premium[language], 2)) for each in found)]
            for language in inspection.languages
            if language != inspection.pivot
        ]
        sections += (
            f"<section><h2>Premium</h2><p>Tokens for each token of the same lines in {escape(inspection.pivot)}; 1 is"
            " parity.</p>"
        )
        sections += f"{table('Premium by language', columns, rows)}</section>"
    if inspection.morph_languages:
        columns = [Column("Language", number=False, sorted=True), *(Column(each.label, "of words") for each in found)]
        rows = [
            [row_head(language), *(_morph_cell(each, language) for each in found)]
            for language in inspection.morph_languages
        ]
        sections += (
            "<section><h2>MorphScore</h2><p>Share of words with a token boundary at the boundary of morphemes, of those"
            " that are more "
        )
        sections += (
            f"than one token, whose number is below.</p>{table('MorphScore by language', columns, rows)}</section>"
        )
    return sections


def _morph_cell(found: Inspected, language: str) -> str:
    if language not in found.morph_score:
        return cell(None, fixed(None))
    score = found.morph_score[language]
    return cell(score.share, f"{fixed(score.share, 3)}<small>{score.num_scored:,}</small>")


def _cut(found: Inspected) -> str:
    """The shown text with a span a token, and the same as a list."""
    label, num_tokens = escape(found.label), sum(len(ids) for ids, _ in found.pieces)
    spans = "".join(
        f'<i title="{escape(_tip(ids, piece))}">{escape(visible(piece)) or _NOTHING_CARRIED}</i>'
        for ids, piece in found.pieces
    )
    listed = "\n".join(escape(f"{_tip(ids, piece)}  {visible(piece).rstrip()}") for ids, piece in found.pieces)
    return (
        f'<figure><figcaption>{label}: {some(num_tokens, "token")}</figcaption><div class="cut" tabindex="0"'
        f' role="group" aria-label="The text cut by {label} into {some(num_tokens, "token")}; arrow keys go from one to'
        f' the next">{spans}</div><details><summary>As a list</summary><pre>{listed}</pre></details></figure>'
    )


def _tip(ids: list[int], piece: bytes) -> str:
    """What a piece is made of: `id 5123: 20 74 68 65`."""
    more = f" and {len(ids) - _LISTED_IDS:,} more" if len(ids) > _LISTED_IDS else ""
    carried = piece.hex(" ") if piece else "no bytes"
    return f"{'id' if len(ids) == 1 else 'ids'} {' '.join(map(str, ids[:_LISTED_IDS]))}{more}: {carried}"
