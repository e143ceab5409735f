"""A document's bytes as pieces that `tokenizers` can take: short segments, and in each the runs of valid UTF-8 and of
other bytes."""

import re
from collections.abc import Iterable, Iterator

# What is learned from comes in segments, for memory's sake, cut where every common tokenizer cuts: between two words.
# (What is encoded is cut where its own tokenizer cuts, see borders.py; here there is none yet.)
SEGMENT_BYTES = 1 << 15
_WORD_BORDER = re.compile(rb"(?<=[A-Za-z]) (?=[A-Za-z])")
_WORD_BORDER_SEARCH_BYTES = 1 << 10

# Decoded with "surrogateescape", a byte that is not UTF-8 is one of these characters, which no valid text has.
_VALID_OR_INVALID_RUN = re.compile("[^\udc80-\udcff]+|[\udc80-\udcff]+")


def segments_of(document: bytes) -> Iterator[bytes]:
    """The document, in one or more pieces of at most `SEGMENT_BYTES`, none of which ends inside a UTF-8 character."""
    start = 0
    while len(document) - start > SEGMENT_BYTES:
        end = _last_border(document, start + SEGMENT_BYTES)
        yield document[start:end]
        start = end
    yield document[start:]


def _last_border(document: bytes, end: int) -> int:
    """The last border between words shortly before `end`; else `end`, moved back to where a UTF-8 character begins."""
    borders = [match.start() for match in _WORD_BORDER.finditer(document, end - _WORD_BORDER_SEARCH_BYTES, end)]
    if borders:
        return borders[-1]
    longest_character_bytes = 4
    starts = (i for i in range(end, end - longest_character_bytes, -1) if document[i] & 0xC0 != 0x80)
    return next(starts, end)


def runs_of(segment: bytes) -> list[str]:
    """The runs of valid UTF-8 and of other bytes, in turn."""
    return _VALID_OR_INVALID_RUN.findall(segment.decode("utf-8", "surrogateescape"))


def is_invalid(run: str) -> bool:
    return "\udc80" <= run[0] <= "\udcff"


def valid_texts(documents: Iterable[bytes]) -> Iterator[str]:
    """The valid UTF-8 runs of the documents, in segments."""
    for document in documents:
        for segment in segments_of(document):
            yield from (run for run in runs_of(segment) if not is_invalid(run))
