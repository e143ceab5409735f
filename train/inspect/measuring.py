"""Measures one representation on the texts, and cuts the shown text into its tokens."""

import os
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from tokenizer_lab import metrics
from tokenizer_lab.representation import Representation
from train.inspect.findings import Inspected
from train.inspect.texts import Texts

SPEED_BYTES = 1 << 16

# Why a number is missing.
NO_UNITS = "an id does not stand for the same bytes wherever it is, so that tokens have no boundaries of their own"
NO_WORDS = "the text has no words"
NOT_LOSSLESS = "texts do not come back from their ids, so that it would be of another text"
FEW_IDS = "fewer than two ids occur"
NO_SPLIT_WORDS = "no word is more than one token"
EMPTY_PIVOT = "the pivot has no tokens"


def measure(
    representation: Representation,
    texts: Texts,
    pivot: str,
    about: dict[str, str],
    advance: metrics.Progress = lambda num_bytes: None,
) -> Inspected:
    """Computes all metrics of one representation. `about`, its names, becomes the beginning of the row."""
    text = metrics.encode(representation, texts.documents, advance)
    spelled = metrics.spelled(representation, texts.documents)
    use, speed = metrics.vocabulary_use(text), metrics.speed(representation, _beginning(texts.documents, SPEED_BYTES))
    tokens = {
        language: metrics.encode(representation, lines, advance).num_tokens for language, lines in texts.lines.items()
    }
    premium = {
        language: metrics.premium(count, tokens[pivot]) for language, count in tokens.items() if language != pivot
    }
    scores = {}
    if text.units is not None:
        scores = {
            language: metrics.morph_score(representation, items, advance) for language, items in texts.words.items()
        }
    premiums = [value for value in premium.values() if value is not None]
    shares = [score.share for score in scores.values() if score.share is not None]
    row = about | {
        "vocab_size": representation.vocab_size,
        "num_tokens": text.num_tokens,
        "bytes_per_token": metrics.bytes_per_token(text.num_bytes, text.num_tokens),
        "fertility": metrics.fertility(text),
        "renyi_efficiency": metrics.renyi_efficiency(text.id_counts),
        "uniform_bits_per_byte": None,
        "unigram_bits_per_byte": None,
        "text_ids": use.size,
        "used_ids": use.used,
        "used_share": use.used / use.size,
        "dead_ids": use.size - use.used,
        "spelled_share": None if spelled is None else spelled.share,
        "round_trip_share": metrics.round_trip_share(text, advance),
        "premium_median": statistics.median(premiums) if premiums else None,
        "premium_max": max(premiums, default=None),
        "morph_score": statistics.fmean(shares) if shares else None,
        "encode_megabytes_per_second": speed.encode_megabytes_per_second,
        "decode_megabytes_per_second": speed.decode_megabytes_per_second,
    }
    if representation.is_lossless:
        row["uniform_bits_per_byte"] = metrics.uniform_bits_per_byte(text.id_counts, text.num_bytes)
        row["unigram_bits_per_byte"] = metrics.unigram_bits_per_byte(text.id_counts, text.num_bytes)
    return Inspected(
        row=row,
        why=_why(row, texts, has_premium=bool(premium), has_units=text.units is not None),
        premium=premium,
        morph_score=scores,
        spelled=str(spelled) if spelled and spelled.reasons else None,
        left_out=representation.left_out,
        encoded_by=representation.encoded_by,
        pieces=shown_pieces(representation, texts.shown),
    )


def _why(row: dict[str, Any], texts: Texts, has_premium: bool, has_units: bool) -> dict[str, str]:
    """By metric, why it has no value."""
    reasons = {
        "uniform_bits_per_byte": NOT_LOSSLESS,
        "unigram_bits_per_byte": NOT_LOSSLESS,
        "fertility": NO_WORDS,
        "renyi_efficiency": FEW_IDS,
        "premium_median": EMPTY_PIVOT if has_premium else None,
        "morph_score": None if not texts.words else NO_SPLIT_WORDS if has_units else NO_UNITS,
    }
    return {name: reason for name, reason in reasons.items() if row[name] is None and reason}


def shown_pieces(representation: Representation, text: bytes) -> list[tuple[list[int], bytes]]:
    """Cuts a text into pieces: ids, and the bytes they carry together. An id without bytes joins the next piece; at the
    end of the text it makes a piece without bytes."""
    [(ids, lengths)] = representation.encode_many([text])
    pieces: list[tuple[list[int], bytes]] = []
    waiting: list[int] = []
    for id_, piece in zip(ids.tolist(), metrics.cut(text, lengths), strict=True):
        waiting.append(id_)
        if piece:
            pieces.append((waiting, piece))
            waiting = []
    return pieces + ([(waiting, b"")] if waiting else [])


def machine() -> str:
    """The processor, as the system names it, and how many cores there are."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _beginning(documents: Sequence[bytes], num_bytes: int) -> list[bytes]:
    """The first `num_bytes` of some documents, as documents."""
    beginning: list[bytes] = []
    for document in documents:
        if num_bytes <= 0:
            break
        beginning.append(document[:num_bytes])
        num_bytes -= len(document)
    return beginning
