"""Which characters are letters, digits, white space, ...: as `tokenizers` itself says, so that its version of Unicode
counts. Of characters that Python's own version does not know, nothing is said."""

import functools
import unicodedata
from typing import Literal

import numpy as np
from tokenizers import Regex, normalizers

NUM_CODE_POINTS = 0x110000
_LONG_RUN = 500  # So many neighbours of one category, such as ideographs, are taken for what the first and last are.


@functools.cache
def known() -> np.ndarray:
    """bool[0x110000], the characters that are assigned."""
    return np.array([category not in ("Cn", "Cs") for category in _categories()])


@functools.cache
def _categories() -> list[str]:
    return list(map(unicodedata.category, map(chr, range(NUM_CODE_POINTS))))


@functools.cache
def characters_by_category() -> dict[str, list[str]]:
    """Every known character, but of long runs only the first and the last."""
    categories: dict[str, list[str]] = {}
    for character in _sample():
        categories.setdefault(unicodedata.category(character), []).append(character)
    return categories


@functools.cache
def _runs() -> list[tuple[int, int]]:
    """First and last code point of every run of characters of one category."""
    categories = np.array(_categories())
    starts = np.flatnonzero(np.append(True, categories[1:] != categories[:-1]))
    ends = np.append(starts[1:], NUM_CODE_POINTS) - 1
    is_known = known()
    return [(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True) if is_known[start]]


@functools.cache
def _sample() -> str:
    """Every known character, but of long runs only the first and the last."""
    points: list[int] = []
    for start, end in _runs():
        points += (start, end) if end - start >= _LONG_RUN else range(start, end + 1)
    return "".join(map(chr, points))


@functools.lru_cache(maxsize=64)
def named_set(pattern: str) -> np.ndarray:
    """bool[0x110000], the known characters that a regular expression such as `\\p{L}`, of one character, matches."""
    others = normalizers.Replace(Regex(pattern), "").normalize_str(_sample())
    return _with_runs(set(_sample()) - set(others))


@functools.cache
def changed_by(form: Literal["NFC", "NFKC"]) -> np.ndarray:
    """bool[0x110000], the characters that a Unicode normal form ("NFC", ...) may change, or may change others beside:
    a text without them is in this form."""
    changed = ~known()
    for character in _sample():
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            changed[int(parts[1], 16)] = True  # It may join the character before.
        if unicodedata.combining(character) or unicodedata.normalize(form, character) != character:
            changed[ord(character)] = True
    changed[0x1160:0x1200] = True  # Vowels and finals of Hangul join others by rule.
    return changed


def _with_runs(members: set[str]) -> np.ndarray:
    points = np.zeros(NUM_CODE_POINTS, bool)
    points[[ord(member) for member in members]] = True
    for start, end in _runs():
        if end - start >= _LONG_RUN:
            assert points[start] == points[end], f"{start:x} and {end:x} are of one category"
            points[start:end] = points[start]
    return points
