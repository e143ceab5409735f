"""What an inspection found, and how its numbers read."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from tokenizer_lab import metrics
from train.report.page import fixed, percent, short, si


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of the page and a row in the terminal: its name, small print, and how its numbers read."""

    name: str
    note: str
    show: Callable[[Any], str]


def _decimals(count: int) -> Callable[[float | None], str]:
    return lambda value: fixed(value, count)


def _rate(megabytes_per_second: float | None) -> str:
    return si(None if megabytes_per_second is None else 1e6 * megabytes_per_second, "B/s")


METRICS = {
    "vocab_size": Metric("vocabulary", "ids, special ones too", fixed),
    "bytes_per_token": Metric("bytes/token", "", _decimals(2)),
    "fertility": Metric("fertility", "tokens a word", _decimals(2)),
    "renyi_efficiency": Metric("Rényi efficiency", "alpha 2.5", _decimals(3)),
    "uniform_bits_per_byte": Metric("uniform bits/byte", "", _decimals(3)),
    "unigram_bits_per_byte": Metric("unigram bits/byte", "", _decimals(3)),
    "used_share": Metric("vocabulary use", "share of ids", percent),
    "dead_ids": Metric("dead tokens", "ids not in the text", fixed),
    "spelled_share": Metric("spelled in bytes", "share of the text", percent),
    "round_trip_share": Metric("round trip", "share of documents", percent),
    "premium_median": Metric("premium", "median of languages", _decimals(2)),
    "premium_max": Metric("highest premium", "of all languages", _decimals(2)),
    "morph_score": Metric("MorphScore", "mean of languages", _decimals(3)),
    "encode_megabytes_per_second": Metric("encode", "one thread", _rate),
    "decode_megabytes_per_second": Metric("decode", "one thread", _rate),
    "fitted_on": Metric("fitted on", "", str),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspected:
    """What was found of one representation.

    Attributes:
      row: what tables and CSV say of it, by name. None where there is no such number.
      why: name in the row -> why there is none.
      premium: language -> premium.
      morph_score: language -> score, and how many words it is of.
      spelled: how much text is spelled in bytes, and why; None where there is none.
      left_out: of `Representation`.
      encoded_by: what encodes; None where there is but one way.
      pieces: of the shown text, in order, ids and the bytes they carry together.
    """

    row: dict[str, Any]
    why: dict[str, str]
    premium: dict[str, float | None]
    morph_score: dict[str, metrics.MorphScore]
    spelled: str | None
    left_out: str
    encoded_by: str | None
    pieces: list[tuple[list[int], bytes]]

    @property
    def label(self) -> str:
        return self.row["artifact"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` found: of each representation, and about the text and the machine."""

    representations: list[Inspected]
    text: dict[str, Any]
    pivot: str
    languages: list[str]
    morph_languages: list[str]
    num_left_out: dict[str, int]
    machine: str
    shown: bytes

    def has(self, name: str) -> bool:
        """Whether any representation has a number of this name, or a reason that it has none."""
        return any(found.row[name] is not None or name in found.why for found in self.representations)

    @property
    def about(self) -> str:
        """The text, in a sentence."""
        text = self.text
        return (
            f"{text['num_documents']:,} of {text['held_out_documents']:,} held-out documents of {text['corpus']}"
            f" ({short(text['content_hash'])}), {text['num_bytes']:,} of {text['held_out_bytes']:,} bytes: whole"
            " documents in a fixed random order."
        )

    @property
    def notes(self) -> list[str]:
        """What a reader must know of missing numbers and of entries left out."""
        lacking = collections.defaultdict(list)
        for found in self.representations:
            for name, reason in found.why.items():
                lacking[name, reason].append(found.label)
        notes = [
            f"No {METRICS[name].name} of {', '.join(labels)}: {reason}." for (name, reason), labels in lacking.items()
        ]
        notes += [f"{found.label}: {found.spelled}." for found in self.representations if found.spelled]
        notes += [f"{found.label}: {found.left_out}." for found in self.representations if found.left_out]
        notes += [f"{found.label}: {found.encoded_by}." for found in self.representations if found.encoded_by]
        left_out = ", ".join(f"{count:,} of {language}" for language, count in self.num_left_out.items() if count)
        return notes + (
            [f"MorphScore: entries that are not two parts of their word were left out: {left_out}."] if left_out else []
        )
