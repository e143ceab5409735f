"""What a person may have meant."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """', did you mean X?' for the closest of some words, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f", did you mean {close[0]}?" if close else ""
