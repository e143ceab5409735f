"""Records of tables: parquet, and Arrow's files and streams."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from data.bad_records import Record, choose_other, sized
from data.containers import Readable
from tokenizer_lab.errors import UserError

_BUFFER_BYTES = 1 << 20
_PARQUET_BATCH_ROWS = 16  # few, because rows may be large


def read_parquet(stream: Readable, path: object, column: str, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text in `column`). Holds a batch of rows, and a page of the file."""
    with pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
        _check_column(parquet.schema_arrow, path, column)
        batches = parquet.iter_batches(_PARQUET_BATCH_ROWS, columns=[column], use_threads=False)
        yield from _texts((batch.column(0) for batch in batches), path, max_bytes)


def read_arrow(stream: Any, path: object, column: str, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text in `column`), of Arrow's files and streams. Holds a batch of the file."""
    is_file = stream.peek(1).startswith(b"ARROW1")
    reader: Any = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
    _check_column(reader.schema, path, column)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    yield from _texts((batch.column(column) for batch in batches), path, max_bytes)


def _texts(columns: Iterable[pa.Array], path: object, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text)."""
    number = 0
    for column in columns:
        for value in column.cast(pa.large_binary()):  # as bytes, because text columns are not always valid UTF-8
            number += 1
            yield number, sized(value.as_py() or b"", path, number, max_bytes)


def _check_column(schema: pa.Schema, path: object, column: str) -> None:
    check_name(schema.names, path, column)
    if not _is_text(kind := schema.field(column).type):
        raise UserError(f"{path}: column {column!r} is of type {kind}, not text; {choose_other(schema.names, column)}")


def check_name(names: Sequence[str], path: object, column: str) -> None:
    """Raises UserError unless there is one column of this name."""
    if names.count(column) != 1:
        raise UserError(f"{path} has no single column {column!r}; {choose_other(names, column)}")


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
