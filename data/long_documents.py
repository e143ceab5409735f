"""Documents of any length in parts, in bounded memory.

Where a part ends is decided by the document's bytes and `max_bytes` alone: behind the last empty line in the second
half of what a part may have, else behind the last line's end there, else before the last character that does not fit.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

from data.split import KEY_BYTES

_EMPTY_LINE = re.compile(rb"\n\r?\n")
_CHARACTER_BYTES = 4  # of UTF-8, at most


@dataclasses.dataclass(frozen=True)
class LongDocument:
    """One that is not held as a whole.

    Attributes:
      key: of its bytes.
      parts: reads it again, part by part.
    """

    key: bytes
    parts: Callable[[], Iterator[bytes]]


def key_of(chunks: Iterable[bytes]) -> bytes:
    """The key of a document (`data/split.py`)."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()[:KEY_BYTES]


def parts_of(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """A document's parts, of at most `max_bytes` each; all of them together are the document."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start > max_bytes:
            window = bytes(memoryview(buffer)[start : start + max_bytes])
            part = window[: _end_of_part(window, buffer[start + max_bytes])]
            yield part
            start += len(part)
        del buffer[:start]
    yield bytes(buffer)


def _end_of_part(window: bytes, next_byte: int) -> int:
    """Where a part ends, of which no more than `window` fits; behind it comes `next_byte`."""
    half = len(window) // 2
    if empty_lines := [match.end() for match in _EMPTY_LINE.finditer(window, half)]:
        return empty_lines[-1]
    if line_end := window.rfind(b"\n", half) + 1:
        return line_end
    begins_character = lambda end: (window[end] if end < len(window) else next_byte) & 0xC0 != 0x80
    ends = range(len(window), max(half, len(window) - _CHARACTER_BYTES), -1)
    return next((end for end in ends if begins_character(end)), len(window))
