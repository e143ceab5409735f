"""Where a long text is cut for `tokenizers`, so that the ids of the pieces are those of the whole text.

The library takes about 110 bytes of memory for each byte of a text, and its split patterns fail on ten megabytes of
spaces ("retry-limit-in-match"). So it gets pieces.

A cut is right where the tokenizer's own pre-tokenizer cuts, whatever stands further away; or where no token could lie
across. Both are asked of the tokenizer itself, on the text around the place: the ids and words of both sides together
have to be those of each. The sides are taken in two lengths, one character apart, since what depends on where a text
begins or ends (groups of three digits, pairs of spaces) cannot fit both.
"""

import bisect
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import models

from tokenizer_lab.subword.tokenizer_json import raise_unless_from_library

SEGMENT_CHARACTERS = 1 << 15
MAX_SEGMENT_CHARACTERS = 1 << 20
"""A text that has no place to cut for so long is cut anyway."""

_SIDE_CHARACTERS = 128
_SEARCH_CHARACTERS = 1 << 10
_TRIES_OF_A_KIND = 6
# Likely places, best first: between two words, behind a line, and anywhere but inside white space.
_PLACES = [re.compile(pattern) for pattern in (r"(?<=\S)(?= \S)", r"(?<=\n)(?=\S)", r"(?<=\S)(?=\S)", r"(?=\s)(?<=\S)")]


class Borders:
    """Finds the places to cut a text for one tokenizer. Immutable."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, tokens: Iterable[bytes]):
        """`tokens`: what the ids of the tokenizer stand for."""
        self._tokenizer = tokenizer
        self._tokens = tokens
        # The ids of these two do not change within a word where no token lies across.
        self._may_cut_words = isinstance(tokenizer.model, models.BPE | models.Unigram)
        added = tokenizer.get_added_tokens_decoder().values()
        self._side = _SIDE_CHARACTERS + max((len(token.content) for token in added), default=0)

    def pieces(self, text: str) -> Iterator[str]:
        """The text in one or more pieces of about `SEGMENT_CHARACTERS`, or more where it has no border for so long."""
        start = 0
        while len(text) - start > SEGMENT_CHARACTERS:
            end = self._last_border(text, start)
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]

    def _last_border(self, text: str, start: int) -> int:
        """The last border shortly before `SEGMENT_CHARACTERS` behind `start`, or a multiple of that."""
        longest = min(len(text) - start, MAX_SEGMENT_CHARACTERS)
        for length in range(SEGMENT_CHARACTERS, longest, SEGMENT_CHARACTERS):
            for place in _likely_places(text, start + length):
                if self._is_border(text, place):
                    return place
        return start + longest

    def _is_border(self, text: str, place: int) -> bool:
        return all(self._is_cut(text, place, side) for side in (self._side, self._side - 1))

    def _is_cut(self, text: str, place: int, side: int) -> bool:
        left, right = text[max(place - side, 0) : place], text[place : place + side]
        if left.isspace() or right.isspace():  # What comes of white space is known where it ends.
            return False
        try:
            whole, before, behind = self._tokenizer.encode_batch([left + right, left, right], add_special_tokens=False)
        except BaseException as error:
            raise_unless_from_library(error)
            return False
        num_before, words = len(before.ids), whole.word_ids
        if not before.ids or not behind.ids or whole.ids != before.ids + behind.ids:
            return False
        if _from_zero(words[:num_before]) != _from_zero(before.word_ids):
            return False
        if _from_zero(words[num_before:]) != _from_zero(behind.word_ids):
            return False
        between_words = words[num_before - 1] != words[num_before]
        return between_words or (self._may_cut_words and not self._is_in_token(left.encode(), right.encode()))

    @functools.cached_property
    def _sorted_tokens(self) -> list[bytes]:
        return sorted(set(self._tokens))

    def _is_in_token(self, left: bytes, right: bytes) -> bool:
        """Whether a token could lie across two texts."""
        for before in range(1, len(left) + 1):
            for behind in range(len(right) + 1):
                part = left[-before:] + right[:behind]
                place = bisect.bisect_left(self._sorted_tokens, part)
                if place == len(self._sorted_tokens) or not self._sorted_tokens[place].startswith(part):
                    break
                if behind and self._sorted_tokens[place] == part:
                    return True
        return False


def _from_zero(words: Sequence[int | None]) -> list[int]:
    numbers = [word for word in words if word is not None]  # None is a token of a template, which is off.
    return [number - numbers[0] for number in numbers]


def _likely_places(text: str, end: int) -> Iterator[int]:
    """A few places shortly before `end`, the likeliest first."""
    for pattern in _PLACES:
        places = [match.start() for match in pattern.finditer(text, end - _SEARCH_CHARACTERS, end)]
        yield from itertools.islice(reversed(places), _TRIES_OF_A_KIND)
