"""Where documents come from: files, directories and globs, read piece by piece in bounded memory.

A file's name says how it is read. `.gz`, `.zst` and `.xz` are decompressed. Under that, `.jsonl` and `.ndjson` are a
record a line (so is `.json` if compressed, as large text collections call it), `.parquet` is a record a row, and all
else is plain text.
"""

import codecs
import dataclasses
import glob
import gzip
import io
import json
import lzma
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tokenizer_lab.errors import UserError

_COMPRESSIONS = (".gz", ".zst", ".xz")
_READ_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 16  # few, because rows may be large


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to read. `name` is its path relative to the source that the person gave."""

    path: pathlib.Path
    name: str
    num_bytes: int


def find_files(source: str, leave_out: pathlib.Path) -> list[SourceFile]:
    """The files that a source stands for, sorted by name.

    In a directory, hidden files and symbolic links are left out; so is everywhere what is in the folder `leave_out`.

    Raises:
      UserError: there are none, or a directory cannot be read.
    """
    path = pathlib.Path(source)
    try:
        if os.path.isfile(source):
            found = {path: path.name}
        elif os.path.isdir(source):
            found = {file: file.relative_to(path).as_posix() for file in _walk(path)}
        elif glob.has_magic(source):
            found = _glob(source)
        else:
            raise UserError(
                f"{source!r} is neither a file nor a directory; name what is there, or a glob, or the word embedded"
            )
        inside = leave_out.resolve()
        files = [
            SourceFile(file, name, file.stat().st_size)
            for file, name in found.items()
            if not file.resolve().is_relative_to(inside)
        ]
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or source}: {error.strerror or error}; check its permissions"
        ) from error
    if not files:
        raise UserError(
            f"{source} stands for no files (hidden ones and symbolic links in a directory do not count); name others"
        )
    return sorted(files, key=lambda file: file.name)


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (pathlib.Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file() and not path.is_symlink():
                yield path


def _glob(pattern: str) -> dict[pathlib.Path, str]:
    """Path -> its name, relative to the part of the pattern that is before the first wildcard."""
    parts = pathlib.Path(pattern).parts
    root = pathlib.Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    matches = [pathlib.Path(match) for match in glob.glob(pattern, recursive=True)]
    files = [file for match in matches for file in (_walk(match) if match.is_dir() else [match]) if file.is_file()]
    return {file: file.relative_to(root).as_posix() for file in files}


def read_records(
    file: SourceFile, *, field: str, separator: bytes | None, max_document_bytes: int, report: Callable[[int], None]
) -> Iterator[tuple[int | None, bytes]]:
    """Yields (record number from 1, document); the number is None for a file that is one document.

    Args:
      field: of a JSON record, or the column of a parquet file.
      separator: where plain text is split.
      report: called with the number of bytes of this file read so far.

    Raises:
      UserError: naming file and record, for one that is damaged, too large, or has no such field.
    """
    reached: int | None = 0
    records: Iterable[tuple[int | None, bytes]]
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    try:
        with io.BufferedReader(_ReportingFile(file, report), _READ_BYTES) as raw:
            stream = _decompressed(raw, compression)
            if kind in (".jsonl", ".ndjson") or (kind == ".json" and compression):
                records = _read_jsonl(stream, file.path, field, max_document_bytes)
            elif kind == ".parquet":
                records = _read_parquet(stream, file.path, field, max_document_bytes)
            elif separator is not None:
                records = _split(stream, file.path, separator, max_document_bytes)
            else:
                records = ((None, text) for _, text in _split(stream, file.path, None, max_document_bytes))
            for number, document in records:
                yield number, document
                reached = number
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(
            f"{file.path} cannot be read on after record {reached}: {reason}; mend the file or leave it out"
        ) from error


class _Readable(Protocol):
    """A binary stream, as far as it is needed here."""

    def read(self, size: int = -1, /) -> bytes: ...


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


def _decompressed(raw: BinaryIO, compression: str) -> _Readable:
    """A stream of which any amount can be read in bounded memory, and that raises for a file that was cut off."""
    match compression:
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".xz":
            return lzma.LZMAFile(raw)
        case ".zst":
            # The zstandard package would take a file that was cut off for a whole one.
            return pa.CompressedInputStream(raw, "zstd")
        case _:
            return raw


def _split(
    stream: _Readable, path: pathlib.Path, separator: bytes | None, max_bytes: int
) -> Iterator[tuple[int, bytes]]:
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


def _read_jsonl(stream: _Readable, path: pathlib.Path, field: str, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, text in `field`); a line that is blank is none."""
    for number, line in _split(stream, path, b"\n", max_bytes):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line and not line.isspace():
            yield number, _json_text(line, path, number, field)


def _json_text(line: bytes, path: pathlib.Path, number: int, field: str) -> bytes:
    # Bytes that are not UTF-8 become lone surrogates and bytes again; in a valid line, lone surrogates are its text.
    try:
        text, errors = line.decode(), "surrogatepass"
    except UnicodeDecodeError:
        text, errors = line.decode(errors="surrogateescape"), "surrogateescape"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, record {number}, is not JSON: {error}; mend or remove the line") from error
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, record {number}, is no JSON object but of type {type(record).__name__}; mend or remove the line"
        )
    value = record.get(field)
    if not isinstance(value, str):
        found = f"is of type {type(value).__name__}, not text" if field in record else "is missing"
        raise UserError(f"{path}, record {number}: field {field!r} {found}; choose --field from {_listed(record)}")
    try:
        return value.encode(errors=errors)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, record {number}, has invalid UTF-8 and a lone surrogate escape; mend or remove the line"
        ) from error


def _read_parquet(stream: _Readable, path: pathlib.Path, column: str, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields (row number from 1, text in `column`). Holds a batch of rows, and a page of the file."""
    number = 0
    with pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False) as parquet:
        _check_column(parquet.schema_arrow, path, column)
        for batch in parquet.iter_batches(_PARQUET_BATCH_ROWS, columns=[column], use_threads=False):
            # As bytes, because text columns are not always valid UTF-8.
            for value in batch.column(0).cast(pa.large_binary()):
                number += 1
                if not value.is_valid:
                    raise UserError(f"{path}, record {number}: column {column!r} is null; drop such rows")
                yield number, _checked_size(value.as_py(), path, number, max_bytes)


def _check_column(schema: pa.Schema, path: pathlib.Path, column: str) -> None:
    if schema.names.count(column) != 1:
        raise UserError(f"{path} has no single column {column!r}; choose --field from {_listed(schema.names)}")
    if not _is_text(kind := schema.field(column).type):
        raise UserError(
            f"{path}: column {column!r} is of type {kind}, not text; choose --field from {_listed(schema.names)}"
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())


def _listed(names: Iterable[str]) -> str:
    names = [repr(name[:40]) for name in names]
    if not names:
        return "nothing: there are no fields"
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
