"""What is told of a record that is no document."""

import dataclasses
from collections.abc import Iterable

RAW_BYTES = 4 << 10  # that are kept of a record


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that is no document.

    Attributes:
      file, record: where it is; `record` counts from 1, and is None where a file is one document.
      reason: one line for people, with the remedy.
      raw: its first bytes, each a character of Latin-1, of `num_bytes` that it has or of which it is known that it has
        more.
    """

    file: str
    record: int | None
    reason: str
    raw: str
    num_bytes: int

    @classmethod
    def of(cls, path: object, number: int | None, content: bytes | bytearray, reason: object) -> "BadRecord":
        return cls(str(path), number, str(reason), content[:RAW_BYTES].decode("latin-1"), len(content))


Record = tuple[int, bytes | BadRecord]  # its number from 1, and a document


def sized(document: bytes | bytearray, path: object, number: int, max_bytes: int) -> bytes | BadRecord:
    """The document, unless it is too large."""
    if len(document) <= max_bytes:
        return bytes(document)
    reason = (
        f"{path}, record {number}, has {len(document)} bytes or more, over the limit of {max_bytes}; "
        "split it (text: --separator) or raise --max-document-bytes"
    )
    return BadRecord.of(path, number, document, reason)


def choose_other(names: Iterable[str], field: str) -> str:
    """What to do where a field is not to be used."""
    others = [repr(name[:40]) for name in names if name != field]
    if not others:
        return "there are no other fields: mend the file or leave it out"
    more = f" and {len(others) - 20} more" if len(others) > 20 else ""
    return f"choose --field from {', '.join(others[:20])}{more}"
