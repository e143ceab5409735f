"""Files piece by piece, in bounded memory: a record of JSON lines, of a JSON array, CSV, parquet or Arrow, or a piece
of plain text is a document. `data/containers.py` tells what a file is.
"""

import codecs
import csv
import dataclasses
import functools
import io
import itertools
import lzma
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import zstandard

from data.containers import CONTROL, Kind, Readable, compression_of, decompressed, kind_of
from data.json_array import array_elements
from data.json_object import loads, objects_in, records_of
from data.sources import SourceFile
from tokenizer_lab.errors import UserError

_READ_BYTES = 1 << 20
_NO_CHARACTER = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\udc80-\udcff]")
_MAX_NO_CHARACTERS = 0.2  # of the bytes of a text, of which one is 0; of what is random there are half, in UTF-16 too
_PARQUET_BATCH_ROWS = 16  # few, because rows may be large
_NOT_READ = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, pa.ArrowException)

Record = tuple[int, bytes]  # its number from 1, and a document


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
      field: of a JSON record, or the column of a table.
      separator: where plain text is split; without one, a file is one document.
      read_as: "text" to take what is in a file as plain text, whatever it is.
      max_document_bytes: of a document, and of a line.
      max_window_bytes: memory that a zstd frame may ask for.
    """

    field: str
    separator: bytes | None
    read_as: Literal["auto", "text"]
    max_document_bytes: int
    max_window_bytes: int


def read_records(
    file: SourceFile, reading: Reading, report: Callable[[int], None]
) -> Iterator[tuple[int | None, bytes]]:
    """Yields (record number from 1, document); the number is None for a file that is one document. A null is empty.

    Args:
      report: called with the number of bytes of this file read so far.

    Raises:
      UserError: naming file and record, for one that is damaged, too large, has no such field, or is of a format in
        which there are no documents.
    """
    reached: int | None = 0
    try:
        compression = compression_of(file.path)
        kind: Kind = "text"
        if reading.read_as == "auto":
            kind = kind_of(file.path, compression, reading.field, reading.max_window_bytes)
        with io.BufferedReader(_ReportingFile(file, report), _READ_BYTES) as raw:
            stream = decompressed(raw, compression, file.path, reading.max_window_bytes)
            for number, document in _records(stream, file.path, kind, reading):
                yield number, document
                reached = number
    except _NOT_READ as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(
            f"{file.path} cannot be read on after record {reached}: {reason}; mend the file or leave it out"
        ) from error


def _records(stream: Any, path: pathlib.Path, kind: Kind, reading: Reading) -> Iterable[tuple[int | None, bytes]]:
    field, max_bytes = reading.field, reading.max_document_bytes
    match kind:
        case "jsonl":
            return _read_jsonl(stream, path, field, max_bytes)
        case "object":
            return _read_json_objects(stream, path, reading)
        case "json":
            return _read_json_array(stream, path, field, max_bytes)
        case "csv":
            return _read_csv(stream, path, field, max_bytes)
        case "parquet":
            return _read_parquet(stream, path, field, max_bytes)
        case "arrow":
            return _read_arrow(stream, path, field, max_bytes)
    return _read_text(stream, path, reading)


class _ReportingFile(io.FileIO):
    """A file that tells how much of it has been read."""

    def __init__(self, file: SourceFile, report: Callable[[int], None]):
        super().__init__(file.path, "rb")
        self._limit_bytes = file.num_bytes
        self._report = report
        self._num_bytes_read = 0

    def readinto(self, buffer: Any) -> int:
        num_bytes = super().readinto(buffer)
        self._num_bytes_read += num_bytes
        self._report(min(self._num_bytes_read, self._limit_bytes))  # parquet reads some parts twice
        return num_bytes


class _Text:
    """A stream of plain text. Raises UserError where it is something else: where a byte is in no text, and many
    others are no characters either."""

    def __init__(self, stream: Readable, path: pathlib.Path):
        self._stream, self._path, self._num_bytes = stream, path, 0
        self._before = b""

    def read(self, size: int = -1, /) -> bytes:
        text = self._stream.read(size)
        control = CONTROL.search(text)
        around = self._before + text if control else b""  # the last bytes alone say little
        if control and _share_of_no_characters(around) > _MAX_NO_CHARACTERS:
            at = text.find(b"\0") if b"\0" in text else control.start()
            raise UserError(
                f"{self._path} is no plain text and of no format known here: its byte {self._num_bytes + at + 1:,} is"
                f" {text[at]}, and many around it are no characters; leave it out, or take its bytes as they are:"
                " --read-as text"
            )
        self._num_bytes += len(text)
        self._before = text[-1000:] or self._before
        return text


def _share_of_no_characters(text: bytes) -> float:
    """Of bytes: controls that are not spaces, and what is not UTF-8."""
    return len(_NO_CHARACTER.findall(text.decode(errors="surrogateescape"))) / len(text)


def _split(stream: Readable, path: pathlib.Path, separator: bytes | None, max_bytes: int) -> Iterator[Record]:
    """Yields (number from 1, piece) for what is between separators; without one, for all there is.

    A separator at the very end begins no further piece. Reads no more than `max_bytes` and a bit before it raises.
    """
    buffer, number, searched = bytearray(), 1, 0
    while chunk := stream.read(_READ_BYTES):
        buffer += chunk
        start = 0
        while separator and (end := buffer.find(separator, max(start, searched))) >= 0:
            yield number, _checked_size(bytes(buffer[start:end]), path, number, max_bytes)
            number, start = number + 1, end + len(separator)
        del buffer[:start]
        searched = max(0, len(buffer) - len(separator) + 1) if separator else 0
        if len(buffer) > max_bytes:
            raise _too_large(len(buffer), path, number, max_bytes)
    if buffer or number == 1:
        yield number, _checked_size(bytes(buffer), path, number, max_bytes)


def _checked_size(document: bytes, path: pathlib.Path, number: int, max_bytes: int) -> bytes:
    if len(document) > max_bytes:
        raise _too_large(len(document), path, number, max_bytes)
    return document


def _too_large(num_bytes: int, path: pathlib.Path, number: int, max_bytes: int) -> UserError:
    return UserError(
        f"{path}, record {number}, has {num_bytes} bytes or more, over the limit of {max_bytes}; "
        "split it (text: --separator) or raise --max-document-bytes"
    )


def _read_text(stream: Any, path: pathlib.Path, reading: Reading) -> Iterable[tuple[int | None, bytes]]:
    if reading.read_as == "auto":
        stream = _Text(stream, path)
    pieces = _split(stream, path, reading.separator, reading.max_document_bytes)
    return pieces if reading.separator is not None else ((None, text) for _, text in pieces)


def _read_jsonl(stream: Readable, path: pathlib.Path, field: str, max_bytes: int) -> Iterator[Record]:
    """Yields (line number from 1, text in `field`); a line that is blank is none."""
    pieces = _split(stream, path, b"\n", max_bytes)
    lines = ((number, line.removeprefix(codecs.BOM_UTF8)) for number, line in pieces)  # also where files were joined
    lines = ((number, line) for number, line in lines if line and not line.isspace())
    first, second = list(itertools.islice(lines, 1)), list(itertools.islice(lines, 1))
    if first and not second and (found := records_of(_parse_json(first[0][1], path, 1)[0], path, field)):
        yield from _texts_of(found, path, field)
        return
    for number, line in itertools.chain(first, second, lines):
        yield number, _json_text(line, path, number, field)


def _read_json_objects(stream: Any, path: pathlib.Path, reading: Reading) -> Iterable[tuple[int | None, bytes]]:
    """Yields (number from 1, text) of objects of several lines each, or of the one list of records in the only object.
    What is none of both is plain text, such as the settings of a program."""
    [(_, content)] = _split(stream, path, None, reading.max_document_bytes)
    objects = objects_in(content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape"), path)
    if found := records_of(objects[0], path, reading.field) if len(objects) == 1 else objects:
        return _texts_of(found, path, reading.field)
    return _read_text(io.BytesIO(content), path, reading)


def _texts_of(records: Iterable[Any], path: pathlib.Path, field: str) -> Iterator[Record]:
    for number, record in enumerate(records, 1):
        yield number, _text_in(record, "surrogateescape", path, number, field)


def _read_json_array(stream: Readable, path: pathlib.Path, field: str, max_bytes: int) -> Iterator[Record]:
    """Yields (element number from 1, text in `field`)."""
    number = 0
    try:
        for element in array_elements(functools.partial(stream.read, _READ_BYTES), max_bytes):
            number += 1
            yield number, _json_text(_checked_size(element, path, number, max_bytes), path, number, field)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no JSON array behind record {number}: {error}; mend the file") from error


def _read_csv(stream: Readable, path: pathlib.Path, column: str, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text in `column`), of which the first line has the names."""
    lines = (line for _, line in _split(_Text(stream, path), path, b"\n", max_bytes))
    decode = lambda line: line.decode(errors="surrogateescape") + "\n"
    csv.field_size_limit(min(max_bytes, 2**31 - 1))
    number = 0
    try:
        first = decode(next(lines).removeprefix(codecs.BOM_UTF8))
        delimiter = next((mark for mark in ",;\t" if column in next(csv.reader([first], delimiter=mark), [])), ",")
        rows = csv.reader(itertools.chain([first], map(decode, lines)), delimiter=delimiter, strict=True)
        names = next(rows, [])
        _check_name(names, path, column)
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) != len(names):
                raise UserError(
                    f"{path}, record {number}, has {len(row)} values for {len(names)} names; mend or remove the line"
                )
            yield number, row[names.index(column)].encode(errors="surrogateescape")
    except csv.Error as error:
        reason, remedy = str(error), "mend the file"
        if "new-line character" in reason:
            reason, remedy = "a line ends in \\r alone", "let lines end in \\n, e.g. with tr '\\r' '\\n'"
        elif "field limit" in reason:
            reason, remedy = f"a value has more than {max_bytes} bytes", "raise --max-document-bytes"
        raise UserError(f"{path} cannot be read on as CSV after record {number}: {reason}; {remedy}") from error


def _json_text(line: bytes, path: pathlib.Path, number: int, field: str) -> bytes:
    return _text_in(*_parse_json(line, path, number), path, number, field)


def _parse_json(line: bytes, path: pathlib.Path, number: int) -> tuple[Any, str]:
    """The value, and how its text becomes bytes again."""
    # Bytes that are not UTF-8 become lone surrogates and bytes again; in a valid line, lone surrogates are its text.
    try:
        text, errors = line.decode(), "surrogatepass"
    except UnicodeDecodeError:
        text, errors = line.decode(errors="surrogateescape"), "surrogateescape"
    try:
        return loads(text), errors
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, record {number}, is not JSON: {error}; mend or remove the line") from error


def _text_in(record: Any, errors: str, path: pathlib.Path, number: int, field: str) -> bytes:
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, record {number}, is no JSON object but of type {type(record).__name__}; mend or remove the line"
        )
    value = "" if field in record and record[field] is None else record.get(field)
    if not isinstance(value, str):
        found = f"is of type {type(value).__name__}, not text" if field in record else "is missing"
        raise UserError(f"{path}, record {number}: field {field!r} {found}; {_choose_other(record, field)}")
    try:
        return value.encode(errors=errors)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, record {number}, has invalid UTF-8 and a lone surrogate escape; mend or remove the line"
        ) from error


def _read_parquet(stream: Readable, path: pathlib.Path, column: str, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text in `column`). Holds a batch of rows, and a page of the file."""
    with pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False) as parquet:
        _check_column(parquet.schema_arrow, path, column)
        batches = parquet.iter_batches(_PARQUET_BATCH_ROWS, columns=[column], use_threads=False)
        yield from _texts((batch.column(0) for batch in batches), path, max_bytes)


def _read_arrow(stream: Any, path: pathlib.Path, column: str, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text in `column`), of Arrow's files and streams. Holds a batch of the file."""
    is_file = stream.peek(1).startswith(b"ARROW1")
    reader: Any = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
    _check_column(reader.schema, path, column)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    yield from _texts((batch.column(column) for batch in batches), path, max_bytes)


def _texts(columns: Iterable[pa.Array], path: pathlib.Path, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text)."""
    number = 0
    for column in columns:
        for value in column.cast(pa.large_binary()):  # as bytes, because text columns are not always valid UTF-8
            number += 1
            yield number, _checked_size(value.as_py() or b"", path, number, max_bytes)


def _check_column(schema: pa.Schema, path: pathlib.Path, column: str) -> None:
    _check_name(schema.names, path, column)
    if not _is_text(kind := schema.field(column).type):
        raise UserError(f"{path}: column {column!r} is of type {kind}, not text; {_choose_other(schema.names, column)}")


def _check_name(names: Sequence[str], path: pathlib.Path, column: str) -> None:
    if names.count(column) != 1:
        raise UserError(f"{path} has no single column {column!r}; {_choose_other(names, column)}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_null(kind) or kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
    )


def _choose_other(names: Iterable[str], field: str) -> str:
    """What to do where a field is not to be used."""
    others = [repr(name[:40]) for name in names if name != field]
    if not others:
        return "there are no other fields: mend the file or leave it out"
    more = f" and {len(others) - 20} more" if len(others) > 20 else ""
    return f"choose --field from {', '.join(others[:20])}{more}"
