"""What `toklab ingest` reads: units of its sources, each of which becomes portions of documents wherever a worker
reads it."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data.bad_records import BadRecord
from data.dataset_folders import in_published_order
from data.embedded import embedded_documents
from data.ingest_options import IngestOptions, parse_separator
from data.long_documents import LongDocument, parts_of
from data.manifest import Split
from data.quarantine import KEPT_RECORDS
from data.records import Document as Content, Reading, Report, is_json_lines, read_records
from data.sources import SourceFile, find_files
from data.split import document_key
from tokenizer_lab.errors import UserError

EMBEDDED = "embedded"
STRETCH_BYTES = 256 << 20  # of a file of JSON lines, read by one worker
_PORTION_BYTES = 1 << 20
_DOCUMENT_OVERHEAD_BYTES = 200  # what Python takes for a document of any size


@dataclasses.dataclass(frozen=True)
class InputUnit:
    """What one worker reads at a time: a file, a stretch of a file of JSON lines, or the embedded text (no file)."""

    file: SourceFile | None
    stretch: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """No other unit of an ingest has it."""
        path = self.file.path if self.file else EMBEDDED
        return f"{path}@{self.stretch[0]}" if self.stretch else path

    @property
    def num_bytes(self) -> int:
        if self.stretch:
            return self.stretch[1] - self.stretch[0]
        return self.file.num_bytes if self.file else sum(len(document) for _, _, document in embedded_documents())

    @property
    def fingerprint(self) -> str:
        """Another one means that there is something else to read."""
        return f"{self.file.version} {self.stretch}" if self.file else f"{EMBEDDED} in {sys.version}"


class Document(NamedTuple):
    """A document, or a part of one.

    Attributes:
      split: a published one; None where the document's hash decides.
      part: the first 16 bytes of the SHA-256 of the whole document, and the part's number; None of a whole one.
    """

    domain: str
    split: Split | None
    text: bytes
    part: tuple[bytes, int] | None = None


@dataclasses.dataclass(frozen=True)
class Portion:
    """Some documents of a unit, in order.

    Attributes:
      num_bytes_read: how much further the unit has been read than for the portion before.
      counts: of "records" met, those "bad", "skipped" because they are empty, and documents "cut" into "parts".
      bad: as far as they are kept; none where the first one raises.
    """

    documents: list[Document]
    num_bytes_read: int
    counts: dict[str, int]
    bad: list[BadRecord]


def find_units(options: IngestOptions) -> list[InputUnit]:
    """What there is to read, source after source. Raises UserError for a file that is reached twice."""
    if not options.sources:
        raise UserError("no sources are given; name files, directories or globs, or the word embedded")
    units: list[InputUnit] = []
    source_of: dict[str, str] = {}
    for source in options.sources:
        if source == EMBEDDED:
            units += [] if InputUnit(None) in units else [InputUnit(None)]
            continue
        for file in in_published_order(find_files(source, options.out)):
            # Under two names a document could be in both splits.
            if other := source_of.get(file.identity):
                raise UserError(f"{file.path} is named twice, by {other!r} and {source!r}; name every file once")
            source_of[file.identity] = source
            if file.split and options.split:
                raise UserError(
                    f"{file.path} is of the {file.split} split, by its folder, and --split is {options.split}; leave it"
                    " out, or name one split's folder"
                )
            units += _units_of(file, options)
    return units


def has_published_splits(options: IngestOptions, units: Iterable[InputUnit]) -> bool:
    """Whether documents bring their splits. Raises UserError where only some do."""
    published = {unit.file is not None and unit.file.split is not None for unit in units}
    if options.split or published == {True}:
        return True
    if True in published:
        raise UserError(
            "some sources bring their splits, by their folders, and others do not; ingest them one after the other, the"
            " others with --split"
        )
    return False


def _units_of(file: SourceFile, options: IngestOptions) -> list[InputUnit]:
    """The file, or stretches of it where it is large and can be read from anywhere."""
    if file.num_bytes <= STRETCH_BYTES or not is_json_lines(file, _reading(options)):
        return [InputUnit(file)]
    starts = range(0, file.num_bytes, STRETCH_BYTES)
    return [InputUnit(file, (start, min(start + STRETCH_BYTES, file.num_bytes))) for start in starts]


def read_portions(options: IngestOptions, unit: InputUnit) -> Iterator[Portion]:
    """Yields all documents of a unit; in portions, which is what an engine's worker sends. Raises UserError."""
    documents: list[Document] = []
    bad: list[BadRecord] = []
    num_unit_bytes, size_bytes, reached, before, num_kept = unit.num_bytes, 0, 0, 0, 0
    counts: Counter[str] = Counter()

    def report(num_bytes: int) -> None:
        nonlocal reached
        reached = min(num_bytes, num_unit_bytes)

    for document in _documents(options, unit, report, counts):
        if isinstance(document, BadRecord):
            bad += [document] if num_kept < KEPT_RECORDS else []
            num_kept += 1
            continue
        documents.append(document)
        size_bytes += len(document.text) + _DOCUMENT_OVERHEAD_BYTES
        if size_bytes >= _PORTION_BYTES:
            yield Portion(documents, reached - before, dict(counts), bad)
            documents, bad, size_bytes, before = [], [], 0, reached
            counts.clear()
    yield Portion(documents, num_unit_bytes - before, dict(counts), bad)


def _documents(
    options: IngestOptions, unit: InputUnit, report: Report, counts: Counter[str]
) -> Iterator[Document | BadRecord]:
    """Yields what there is to read in a unit, and counts it."""
    if unit.file is None:
        num_bytes = 0
        for domain, _, text in embedded_documents():
            num_bytes += len(text)
            report(num_bytes)
            counts["records"] += 1
            yield Document(domain, options.split, text)
        return
    split = options.split or unit.file.split
    for content in _file_contents(options, unit, unit.file, report, counts):
        if isinstance(content, BadRecord):
            yield content
            continue
        if isinstance(content, bytes) and len(content) <= (options.max_part_bytes or len(content)):
            yield Document(options.domain, split, content)
            continue
        counts["cut"] += 1
        key, parts = _parts(content, options.max_part_bytes)
        for number, part in enumerate(parts):
            counts["parts"] += 1
            yield Document(options.domain, split, part, (key, number))


def _parts(content: bytes | LongDocument, max_part_bytes: int) -> tuple[bytes, Iterable[bytes]]:
    if isinstance(content, LongDocument):
        return content.key, content.parts()
    return document_key(content), parts_of([content], max_part_bytes)


def _file_contents(
    options: IngestOptions, unit: InputUnit, file: SourceFile, report: Report, counts: Counter[str]
) -> Iterator[Content]:
    """Yields what is in a file, without what is empty where that is left out. Raises UserError for what is bad, unless
    some may be."""
    number: int | None = 0
    for number, content in read_records(file, _reading(options), report, unit.stretch):
        counts["records"] += 1
        if not content and options.on_empty == "skip":
            counts["skipped"] += 1
            continue
        if not content and options.on_empty == "error":
            which = f", record {number}," if number else ""
            content = BadRecord.of(file, number, b"", f"{file}{which} is empty; choose --on-empty skip or keep")
        if isinstance(content, BadRecord):
            if not options.max_bad:
                raise UserError(content.reason)
            counts["bad"] += 1
        yield content
    if number == 0 and options.on_empty == "error" and not unit.stretch:
        raise UserError(f"{file} has no records; leave it out or choose --on-empty skip")


def _reading(options: IngestOptions) -> Reading:
    separator = None if options.separator is None else parse_separator(options.separator)
    return Reading(
        options.field,
        separator,
        options.read_as,
        options.max_document_bytes,
        options.max_window_bytes,
        options.max_part_bytes,
    )
