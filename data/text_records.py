"""Records of text files, piece by piece, in the memory of one: JSON lines, a JSON array, CSV, or plain text."""

import codecs
import csv
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from data.bad_records import BadRecord, Record, choose_other, sized
from data.containers import CONTROL, Readable
from data.json_array import array_elements
from data.json_object import loads, objects_in, records_of
from data.table_records import check_name
from tokenizer_lab.errors import UserError

READ_BYTES = 1 << 20
_NO_CHARACTER = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f\x7f\udc80-\udcff]")
_MAX_NO_CHARACTERS = 0.2  # of the bytes of a text, of which one is 0; of what is random there are half, in UTF-16 too


class PlainText:
    """A stream of plain text. Raises UserError where it is something else: where a byte is in no text, and many
    others are no characters either."""

    def __init__(self, stream: Readable, path: object):
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


def split_text(stream: Readable, path: object, separator: bytes, max_bytes: int) -> Iterator[Record]:
    """Yields (number from 1, piece) for what is between separators.

    A separator at the very end begins no further piece. Of a piece that is too large, no more than `max_bytes` and a
    bit are held.
    """
    buffer, number, searched, is_told = bytearray(), 1, 0, False
    while chunk := stream.read(READ_BYTES):
        buffer += chunk
        start = 0
        while (end := buffer.find(separator, max(start, searched))) >= 0:
            if not is_told:
                yield number, sized(memoryview(buffer)[start:end].tobytes(), path, number, max_bytes)
            number, start, is_told = number + 1, end + len(separator), False
        del buffer[:start]
        if len(buffer) > max_bytes and not is_told:
            yield number, sized(buffer, path, number, max_bytes)
            is_told = True
        if is_told:  # of which only what may begin a separator is needed
            del buffer[: max(0, len(buffer) - len(separator) + 1)]
        searched = max(0, len(buffer) - len(separator) + 1)
    if not is_told and (buffer or number == 1):
        yield number, sized(buffer, path, number, max_bytes)


def whole_text(stream: Readable, path: object, max_bytes: int) -> bytes | BadRecord:
    """All there is. Reads no more than `max_bytes` and a bit."""
    buffer = bytearray()
    while len(buffer) <= max_bytes and (chunk := stream.read(READ_BYTES)):
        buffer += chunk
    return sized(buffer, path, 1, max_bytes)


def read_jsonl(
    stream: Readable, path: object, field: str, max_bytes: int, is_whole_file: bool = True
) -> Iterator[Record]:
    """Yields (line number from 1, text in `field`); a line that is blank is none.

    A file of one line may have a list of records in it (`data/json_object.py`).
    """
    pieces = split_text(stream, path, b"\n", max_bytes)
    lines = ((number, _without_mark(line)) for number, line in pieces)
    lines = ((number, line) for number, line in lines if isinstance(line, BadRecord) or line.strip())
    first, second = list(itertools.islice(lines, 1)), list(itertools.islice(lines, 1))
    if is_whole_file and first and not second and (found := _records_in_line(first[0][1], path, field)):
        yield from found
        return
    for number, line in itertools.chain(first, second, lines):
        yield number, line if isinstance(line, BadRecord) else _json_text(line, path, number, field)


def _without_mark(line: bytes | BadRecord) -> bytes | BadRecord:
    """Byte order marks stand also where files were put together."""
    return line if isinstance(line, BadRecord) else line.removeprefix(codecs.BOM_UTF8)


def _records_in_line(line: bytes | BadRecord, path: object, field: str) -> list[Record]:
    """Of the only line of a file; none where it is no object or has no list of records."""
    if isinstance(line, BadRecord) or isinstance(parsed := _parsed(line, path, 1), BadRecord):
        return []
    return _texts_of(records_of(parsed[0], path, field), path, field)


def records_in_objects(content: bytes | BadRecord, path: object, field: str) -> list[Record]:
    """Records of a file that has objects of several lines each, or the one list of records in its only object. None
    for what is neither, such as the settings of a program."""
    if isinstance(content, BadRecord):
        return [(1, content)]
    objects = objects_in(content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape"), path)
    return _texts_of(records_of(objects[0], path, field) if len(objects) == 1 else objects, path, field)


def _texts_of(records: Iterable[Any], path: object, field: str) -> list[Record]:
    return [
        (number, _text_in(record, "surrogateescape", path, number, field)) for number, record in enumerate(records, 1)
    ]


def read_json_array(stream: Readable, path: object, field: str, max_bytes: int) -> Iterator[Record]:
    """Yields (element number from 1, text in `field`)."""
    number = 0
    try:
        for element in array_elements(functools.partial(stream.read, READ_BYTES), max_bytes):
            number += 1
            checked = sized(element, path, number, max_bytes)
            yield number, checked if isinstance(checked, BadRecord) else _json_text(checked, path, number, field)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no JSON array behind record {number}: {error}; mend the file") from error


def read_csv(stream: Readable, path: object, column: str, max_bytes: int) -> Iterator[Record]:
    """Yields (row number from 1, text in `column`), of which the first line has the names."""
    decode = lambda line: line.decode(errors="surrogateescape") + "\n"
    lines = _lines(stream, path, max_bytes)
    csv.field_size_limit(min(max_bytes, 2**31 - 1))
    number = 0
    try:
        first = decode(next(lines).removeprefix(codecs.BOM_UTF8))
        delimiter = next((mark for mark in ",;\t" if column in next(csv.reader([first], delimiter=mark), [])), ",")
        rows = csv.reader(itertools.chain([first], map(decode, lines)), delimiter=delimiter, strict=True)
        names = next(rows, [])
        check_name(names, path, column)
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) == len(names):
                yield number, row[names.index(column)].encode(errors="surrogateescape")
                continue
            reason = f"{path}, record {number}, has {len(row)} values for {len(names)} names; mend or remove the line"
            raw = delimiter.join(row).encode(errors="surrogateescape")
            yield number, BadRecord.of(path, number, raw, reason)
    except csv.Error as error:
        reason, remedy = str(error), "mend the file"
        if "new-line character" in reason:
            reason, remedy = "a line ends in \\r alone", "let lines end in \\n, e.g. with tr '\\r' '\\n'"
        elif "field limit" in reason:
            reason, remedy = f"a value has more than {max_bytes} bytes", "raise --max-document-bytes"
        raise UserError(f"{path} cannot be read on as CSV after record {number}: {reason}; {remedy}") from error


def _lines(stream: Readable, path: object, max_bytes: int) -> Iterator[bytes]:
    """Lines of CSV. Raises UserError for one that is too large: nobody can tell where its record ends."""
    for _, line in split_text(PlainText(stream, path), path, b"\n", max_bytes):
        if isinstance(line, BadRecord):
            raise UserError(line.reason)
        yield line


def _json_text(line: bytes, path: object, number: int, field: str) -> bytes | BadRecord:
    parsed = _parsed(line, path, number)
    return parsed if isinstance(parsed, BadRecord) else _text_in(*parsed, path, number, field, line)


def _parsed(line: bytes, path: object, number: int) -> tuple[Any, str] | BadRecord:
    """The value, and how its text becomes bytes again."""
    # Bytes that are not UTF-8 become lone surrogates and bytes again; in a valid line, lone surrogates are its text.
    try:
        text, errors = line.decode(), "surrogatepass"
    except UnicodeDecodeError:
        text, errors = line.decode(errors="surrogateescape"), "surrogateescape"
    try:
        return loads(text), errors
    except (ValueError, RecursionError) as error:
        reason = f"{path}, record {number}, is not JSON: {error}; mend or remove the line"
        return BadRecord.of(path, number, line, reason)


def _text_in(record: Any, errors: str, path: object, number: int, field: str, raw: bytes = b"") -> bytes | BadRecord:
    """The text of a record; `raw` is how it is written in the file, where that is at hand."""
    bad = lambda reason: BadRecord.of(path, number, raw or json.dumps(record).encode(), reason)
    where = f"{path}, record {number}"
    if not isinstance(record, dict):
        return bad(f"{where}, is no JSON object but of type {type(record).__name__}; mend or remove the line")
    value = "" if field in record and record[field] is None else record.get(field)
    if not isinstance(value, str):
        found = f"is of type {type(value).__name__}, not text" if field in record else "is missing"
        return bad(f"{where}: field {field!r} {found}; {choose_other(record, field)}")
    try:
        return value.encode(errors=errors)
    except UnicodeEncodeError:
        return bad(f"{where}, has invalid UTF-8 and a lone surrogate escape; mend or remove the line")
