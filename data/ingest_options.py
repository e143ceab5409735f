"""What `toklab ingest` is told."""

import dataclasses
from typing import Literal

import tyro
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import check_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Add text to a corpus."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Files, directories, globs, or "embedded": text that is in Python. Their first bytes say what files are: JSON
    lines or arrays, CSV, parquet, Arrow, plain text; also in gzip, zstd, xz, lzma or bzip2."""

    out: epath.Path
    """The corpus folder, here or in an object store: a new one, or one that gets a further domain."""

    domain: str = "text"
    """Name under which these documents are counted and evaluated."""

    field: str = "text"
    """Field of a JSON record, or column of a parquet file, that is the document."""

    separator: str | None = None
    r"""Split plain text files at this string, e.g. '\n\n'. Without it, a file is a document."""

    read_as: Literal["auto", "text"] = "auto"
    """"text": take what is in a file as plain text, whatever it is."""

    test_fraction: float = 1 / 16
    """Share of the documents to hold out for evaluation, by a fixed rule on a document's hash, so that a copy is on the
    same side."""

    on_empty: Literal["error", "skip", "keep"] = "error"
    """What to do with a document that has no bytes, such as a null, or a file without records."""

    max_document_bytes: int = 128 << 20
    """A document, or a line of JSON, that is larger is an error."""

    max_window_bytes: int = 1 << 31
    """Memory that a zstd frame may ask for; one of `zstd --long=31` asks for 2 GiB."""

    def __post_init__(self) -> None:
        check_name(self.domain, "domain")
        if not 0 <= self.test_fraction <= 1:
            raise UserError(f"--test-fraction {self.test_fraction} is not a share; use a number from 0 to 1")
        if self.max_document_bytes < 1:
            raise UserError(f"--max-document-bytes {self.max_document_bytes} allows no document; use a positive number")
        if not 1 << 10 <= self.max_window_bytes <= 1 << 31:
            raise UserError(f"--max-window-bytes {self.max_window_bytes} is not from 1024 to {1 << 31}, zstd's limits")
        if self.separator is not None:
            parse_separator(self.separator)


def parse_separator(text: str) -> bytes:
    r"""The bytes of a separator in which escapes such as \n mean what they mean in Python. Raises UserError."""
    try:
        separator = text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode()
    except UnicodeError as error:
        raise UserError(f"--separator {text!r} is not understood: {error}; write a backslash as \\\\") from error
    if not separator:
        raise UserError("--separator is empty; leave it out to take a file as one document")
    return separator
