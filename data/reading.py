"""From sources to documents: what is read in one go, and the documents in it."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from data.embedded import embedded_documents
from data.ingest_options import IngestOptions, parse_separator
from data.manifest import Split
from data.records import Reading, read_records
from data.sources import SourceFile, find_files
from tokenizer_lab.errors import UserError

EMBEDDED = "embedded"
_PORTION_BYTES = 1 << 20
_DOCUMENT_OVERHEAD_BYTES = 200  # what Python takes for a document of any size


class Document(NamedTuple):
    """A document, or a part of one that was cut.

    split: None where it is chosen by the document's hash (`data/split.py`).
    part: the key of the whole document, and a number from 0; None for a document that was not cut.
    """

    domain: str
    split: Split | None
    text: bytes
    part: tuple[bytes, int] | None = None


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is read in one go: a file, or the embedded text where that is None."""

    file: SourceFile | None
    fingerprint: str

    @property
    def name(self) -> str:
        return EMBEDDED if self.file is None else str(self.file.path)

    @property
    def num_bytes(self) -> int:
        return _embedded_bytes() if self.file is None else self.file.num_bytes

    def fingerprint_now(self) -> str:
        """Differs from `fingerprint` where the source has changed since; "" where it is gone."""
        return _fingerprint(self.file)


@dataclasses.dataclass(frozen=True)
class Portion:
    """Some documents of a unit, in order.

    Attributes:
      num_bytes_read: how much further the unit has been read than for the portion before.
      counts: what a person is told, such as how many records were "skipped".
      bad: records that could not be read.
    """

    documents: list[Document]
    num_bytes_read: int
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: list[Any] = dataclasses.field(default_factory=list)


def find_units(options: IngestOptions) -> list[Unit]:
    """The files of all sources, in the order given. Raises UserError for a file that is reached twice."""
    if not options.sources:
        raise UserError("no sources are given; name files, directories or globs, or the word embedded")
    found: list[SourceFile | None] = []
    source_of: dict[pathlib.Path, str] = {}
    for source in options.sources:
        if source == EMBEDDED:
            found += [] if None in found else [None]
            continue
        for file in find_files(source, leave_out=pathlib.Path(options.out)):
            # Under two names a document could be in both splits.
            if other := source_of.get(real_path := file.path.resolve()):
                raise UserError(f"{file.path} is named twice, by {other!r} and {source!r}; name every file once")
            source_of[real_path] = source
            found.append(file)
    return [Unit(file, _fingerprint(file)) for file in found]


def _fingerprint(file: SourceFile | None) -> str:
    if file is None:
        return sys.version
    try:
        about = os.stat(file.path)
    except OSError:
        return ""
    return f"{about.st_size}/{about.st_mtime_ns}"


def read_portions(options: IngestOptions, unit: Unit) -> Iterator[Portion]:
    """Yields all documents of a unit. Raises UserError, also where the unit was changed while it was read."""
    documents, counts, size_bytes, reached, before = list[Document](), {"skipped": 0}, 0, 0, 0

    def report(num_bytes: int) -> None:
        nonlocal reached
        reached = num_bytes

    for domain, document in _documents(options, unit.file, report):
        if not document and options.on_empty == "skip":
            counts["skipped"] += 1
            continue
        documents.append(Document(domain, None, document))
        size_bytes += len(document) + _DOCUMENT_OVERHEAD_BYTES
        if size_bytes >= _PORTION_BYTES:
            yield Portion(documents, reached - before)
            documents, size_bytes, before = [], 0, reached
    if unit.fingerprint_now() != unit.fingerprint:
        raise UserError(f"{unit.name} was changed while it was read; start again when it does not change any more")
    yield Portion(documents, unit.num_bytes - before, counts)


def _documents(
    options: IngestOptions, file: SourceFile | None, report: Callable[[int], None]
) -> Iterator[tuple[str, bytes]]:
    """Yields (domain, document) of a file, or of what is embedded."""
    if file is not None:
        for document in _file_documents(options, file, report):
            yield options.domain, document
        return
    num_bytes = 0
    for domain, _, document in embedded_documents():
        num_bytes += len(document)
        report(num_bytes)
        yield domain, document


def _file_documents(options: IngestOptions, file: SourceFile, report: Callable[[int], None]) -> Iterator[bytes]:
    separator = None if options.separator is None else parse_separator(options.separator)
    number: int | None = 0
    reading = Reading(options.field, separator, options.read_as, options.max_document_bytes, options.max_window_bytes)
    for number, document in read_records(file, reading, report):
        if not document and options.on_empty == "error":
            raise UserError(
                f"{file.path}{f', record {number},' if number else ''} is empty; choose --on-empty skip or keep"
            )
        yield document
    if number == 0 and options.on_empty == "error":
        raise UserError(f"{file.path} has no records; leave it out or choose --on-empty skip")


def _embedded_bytes() -> int:
    return sum(len(document) for _, _, document in embedded_documents())
