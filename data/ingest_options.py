"""The options of `toklab ingest`."""

import dataclasses
from typing import Literal

import tyro
from etils import epath

from data.manifest import Split
from tokenizer_lab.errors import FROM_0, SHARE, Range, UserError, check_numbers
from tokenizer_lab.files import check_name

_LEAST_PART_BYTES = 16  # of which half is searched for a line's end


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Add text to a corpus."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Files, directories, globs, also gs://, s3://, hf:// and http(s):// ones; or "embedded": text that is in Python.
    Their first bytes say what files are: JSON lines or arrays, CSV, parquet, Arrow, WET, plain text; also in gzip,
    zstd, xz, lzma or bzip2."""

    out: epath.Path
    """The corpus folder, here or in an object store: a new one, or one that gets a further domain."""

    domain: str = "text"
    """Name under which these documents are counted and evaluated."""

    split: Split | None = None
    """The published split that all of these documents are. By default a document's hash decides, see
    --test-fraction."""

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

    max_bad: float = 0.0
    """Share of the records, e.g. 1e-6, that may be bad: damaged, too large, without text, empty with --on-empty error.
    They go to a quarantine file in the corpus folder. By default the first one ends the ingest."""

    max_part_bytes: int = 1 << 20
    """A longer document is cut into parts of at most this, in order and all in one split, each a document from then on;
    0 keeps documents whole."""

    drop_duplicates: Literal["exact", "near"] | None = None
    """Leave out all but one of the documents that are the same, or also near copies (pip install
    'tokenizer-lab[dedup]'): held-out text then has no near copy in what is trained on."""

    max_document_bytes: int = 128 << 20
    """A record, or a line, that is larger is bad. A file that is one document has no limit where it is cut into
    parts."""

    max_window_bytes: int = 1 << 31
    """Memory that a zstd frame may ask for; one of `zstd --long=31` asks for 2 GiB."""

    def __post_init__(self) -> None:
        check_name(self.domain, "domain")
        zstd_takes = Range(least=1 << 10, most=1 << 31)
        check_numbers(
            self, "--", test_fraction=SHARE, max_bad=SHARE, max_window_bytes=zstd_takes, max_part_bytes=FROM_0
        )
        if self.max_part_bytes and self.max_part_bytes < _LEAST_PART_BYTES:
            raise UserError(
                f"--max-part-bytes {self.max_part_bytes} is too little to cut at a line's end; use at least"
                f" {_LEAST_PART_BYTES}, or 0 for whole documents"
            )
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
