"""Which documents are held out: one rule on a document's bytes, for a corpus and for a run over several of them.

A document has a place in [0, 1) by its hash. A corpus holds out those below its `test_fraction`. Corpora of one run may
hold out different shares, and a copy of a document may be in several of them: a run trains on none that any of its
corpora holds out.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterable

import numpy as np

RULE = "test if the first 8 bytes of sha256(document), big endian, / 2^64 < test_fraction"


KEY_BYTES = 16


def document_key(document: bytes) -> bytes:
    """What a corpus's documents are ordered by: the beginning of their hash, of which the beginning is their place."""
    return hashlib.sha256(document).digest()[:KEY_BYTES]


def is_held_out(document: bytes, fraction: float) -> bool:
    """Whether a document's place is below `fraction`: by its bytes alone, so that all its copies are on one side."""
    return key_is_held_out(document_key(document), fraction)


def key_is_held_out(key: bytes, fraction: float) -> bool:
    """`is_held_out` of the document with this key, which is that of the whole for a part of a document."""
    return int.from_bytes(key[:8]) < fraction * 2**64


def are_held_out(key_starts: np.ndarray, fraction: float) -> np.ndarray:
    """`key_is_held_out` of keys whose first 8 bytes are these u64[n]."""
    limit = math.ceil(fraction * 2**64)
    return key_starts < np.uint64(limit) if limit < 2**64 else np.ones(len(key_starts), bool)


@dataclasses.dataclass(frozen=True)
class RunSplit:
    """How a run divides text, whatever corpus the text is from.

    Attributes:
      trained_from: the run trains on no document with a place below this.
      scored_below: nor did any run it began from train on one with a place below this; those are fit to judge it.
    """

    trained_from: float
    scored_below: float


def run_split(test_fractions: Iterable[float], start_scored_below: float | None = None) -> RunSplit:
    """The split of a run.

    Args:
      test_fractions: of all its corpora.
      start_scored_below: `scored_below` of the run whose weights it began from; None where it began at random.
    """
    largest = max(test_fractions)
    if start_scored_below is None:
        return RunSplit(largest, largest)
    return RunSplit(max(largest, start_scored_below), start_scored_below)


def kept_share(test_fraction: float, trained_from: float) -> float:
    """The share of a corpus's train split that a run trains on."""
    return 1.0 if trained_from <= test_fraction else (1 - trained_from) / (1 - test_fraction)
