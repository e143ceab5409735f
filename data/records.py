"""The documents of a file, in bounded memory: a record of JSON lines, of a JSON array, CSV, parquet, Arrow or WET, or a
piece of plain text is one. `data/containers.py` tells what a file is.
"""

import dataclasses
import functools
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import zstandard

from data.bad_records import BadRecord
from data.containers import Kind, Readable, compression_of, decompressed, kind_of
from data.long_documents import LongDocument, key_of, parts_of
from data.sources import SourceFile
from data.table_records import read_arrow, read_parquet
from data.text_records import (
    READ_BYTES,
    PlainText,
    read_csv,
    read_json_array,
    read_jsonl,
    records_in_objects,
    split_text,
    whole_text,
)
from data.warc_records import read_wet
from tokenizer_lab.errors import UserError

_NOT_READ = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, pa.ArrowException)

Report = Callable[[int], None]
Document = bytes | LongDocument | BadRecord


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
      field: of a JSON record, or the column of a table.
      separator: where plain text is split; without one, a file is one document.
      read_as: "text" to take what is in a file as plain text, whatever it is.
      max_document_bytes: of a record, and of a line.
      max_window_bytes: memory that a zstd frame may ask for.
      max_part_bytes: where a file is one document and has more, it is read in parts; 0 never.
    """

    field: str
    separator: bytes | None
    read_as: Literal["auto", "text"]
    max_document_bytes: int
    max_window_bytes: int
    max_part_bytes: int = 0


def read_records(
    file: SourceFile, reading: Reading, report: Report, stretch: tuple[int, int] | None = None
) -> Iterator[tuple[int | None, Document]]:
    """Yields (record number from 1, document); the number is None for a file that is one document. A null is empty.

    Args:
      report: called with the number of bytes of this file read so far.
      stretch: of JSON lines, those that begin in these bytes; numbers then count from there.

    Raises:
      UserError: naming file and record, for one that is damaged, has changed, or is of a format in which there are no
        documents.
    """
    reached: int | None = 0
    try:
        if stretch:
            documents: Iterable[tuple[int | None, Document]] = _read_stretch(file, stretch, reading, report)
        else:
            documents = _records(file, reading, report)
        for number, document in documents:
            yield number, document
            reached = number
    except _NOT_READ as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(
            f"{file.path} cannot be read on after record {reached}: {reason}; mend the file or leave it out"
        ) from error
    file.check_unchanged()


def is_json_lines(file: SourceFile, reading: Reading) -> bool:
    """Whether a file is JSON lines that are not compressed, so that it can be read from any byte on."""
    if reading.read_as != "auto":
        return False
    with _opened(file, lambda num_bytes: None) as raw:
        compression = compression_of(raw, file)
        return not compression and kind_of(raw, file, None, reading.field, reading.max_window_bytes) == "jsonl"


def _records(file: SourceFile, reading: Reading, report: Report) -> Iterator[tuple[int | None, Document]]:
    with _opened(file, report) as raw:
        compression = compression_of(raw, file)
        kind: Kind = "text"
        if reading.read_as == "auto":
            kind = kind_of(raw, file, compression, reading.field, reading.max_window_bytes)
        stream = decompressed(raw, compression, file, reading.max_window_bytes)
        if kind == "object":
            content = whole_text(stream, file.path, reading.max_document_bytes)
            if found := records_in_objects(content, file.path, reading.field):
                yield from found
                return
            kind, stream = "text", io.BytesIO(cast(bytes, content))
        if kind != "text":
            yield from _read(kind)(stream, file.path, reading)
            return
        text = PlainText(stream, file.path) if reading.read_as == "auto" else stream
        if reading.separator is not None:
            yield from split_text(text, file.path, reading.separator, reading.max_document_bytes)
        elif reading.max_part_bytes:
            yield None, _in_parts(text, file, compression, reading)
        else:
            yield None, whole_text(text, file.path, reading.max_document_bytes)


def _read(kind: Kind) -> Callable[[Any, str, Reading], Iterator[tuple[int, bytes | BadRecord]]]:
    """What reads the records of a file of some kind."""
    if kind == "warc":
        return lambda stream, path, reading: read_wet(stream, path, reading.max_document_bytes)
    readers: dict[str, Callable[..., Any]] = {
        "jsonl": read_jsonl,
        "json": read_json_array,
        "csv": read_csv,
        "parquet": read_parquet,
        "arrow": read_arrow,
    }
    return lambda stream, path, reading: readers[kind](stream, path, reading.field, reading.max_document_bytes)


def _in_parts(text: Readable, file: SourceFile, compression: str | None, reading: Reading) -> bytes | LongDocument:
    """All of a text: as it is where it is one part; else it is read here for its key, and later again."""
    begins = bytearray()
    while len(begins) <= reading.max_part_bytes and (chunk := text.read(READ_BYTES)):
        begins += chunk
    if len(begins) <= reading.max_part_bytes:
        return bytes(begins)

    def parts() -> Iterator[bytes]:
        with _opened(file, lambda num_bytes: None) as raw:
            stream = decompressed(raw, compression, file, reading.max_window_bytes)
            yield from parts_of(_chunks(stream), reading.max_part_bytes)

    return LongDocument(key_of(itertools.chain([bytes(begins)], _chunks(text))), parts)


def _chunks(stream: Readable) -> Iterator[bytes]:
    return iter(functools.partial(stream.read, READ_BYTES), b"")


def _read_stretch(
    file: SourceFile, stretch: tuple[int, int], reading: Reading, report: Report
) -> Iterator[tuple[int, Document]]:
    """The JSON lines that begin in some bytes of a file."""
    where = f"{file.path} from byte {stretch[0]:,} on" if stretch[0] else file.path
    with _opened(file, report) as raw:
        lines = _Stretch(raw, *stretch)
        yield from read_jsonl(lines, where, reading.field, reading.max_document_bytes, is_whole_file=False)


class _Stretch:
    """The whole lines of a file that begin in its bytes `start` to `end`."""

    def __init__(self, raw: BinaryIO, start: int, end: int):
        self._raw, self._left, self._is_line_over = raw, end - max(0, start - 1), True
        if start:
            raw.seek(start - 1)
            self._pass_line()  # which begins before; or just the end of one

    def read(self, size: int = -1, /) -> bytes:
        if self._left > 0:
            content = self._raw.read(min(size, self._left))
        else:
            content = b"" if self._is_line_over else self._raw.readline(size)
        self._left -= len(content)
        self._is_line_over = not content or content.endswith(b"\n")
        return content

    def _pass_line(self) -> None:
        while passed := self._raw.readline(READ_BYTES):
            self._left -= len(passed)
            if passed.endswith(b"\n"):
                return


def _opened(file: SourceFile, report: Report) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Reported(file, report), READ_BYTES))


class _Reported(io.RawIOBase):
    """A file that tells how much of it has been read."""

    def __init__(self, file: SourceFile, report: Report):
        self._file = file.open()
        self._limit_bytes, self._report, self._num_bytes_read = file.num_bytes, report, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        num_bytes = self._file.readinto(buffer)
        self._num_bytes_read += num_bytes
        self._report(min(self._num_bytes_read, self._limit_bytes))  # parquet reads some parts twice
        return num_bytes

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
