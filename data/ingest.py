"""Text in many forms -> a corpus store."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Literal

import tyro
from etils import epath

from data.corpus_writer import write_corpus
from data.embedded import embedded_documents
from data.engines import Engine, LocalEngine
from data.manifest import Split
from data.records import Reading, read_records
from data.sources import SourceFile, find_files
from data.split import is_held_out
from tokenizer_lab.errors import SHARE, Range, UserError, check_numbers
from tokenizer_lab.files import check_name, is_remote

EMBEDDED = "embedded"
_PORTION_BYTES = 1 << 20
_DOCUMENT_OVERHEAD_BYTES = 200  # what Python takes for a document of any size


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Add text to a corpus."""

    sources: tyro.conf.Positional[tuple[str, ...]]
    """Files, directories, globs, or "embedded": text that is in Python. Their first bytes say what files are: JSON
    lines or arrays, CSV, parquet, Arrow, plain text; also in gzip, zstd, xz, lzma or bzip2."""

    out: epath.Path
    """The corpus folder, on this machine: a new one, or one that gets a further domain."""

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
        if is_remote(self.out):
            raise UserError(
                f"--out {self.out} is in an object store, where a corpus cannot be locked and committed; ingest into a "
                f"folder here and copy it, e.g. gcloud storage cp --recursive FOLDER {self.out}"
            )
        zstd_takes = Range(least=1 << 10, most=1 << 31)
        check_numbers(self, "--", test_fraction=SHARE, max_window_bytes=zstd_takes)
        if self.separator is not None:
            parse_separator(self.separator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestResult:
    """What an ingest did.

    Attributes:
      changed: False if the corpus had exactly these documents already.
      num_documents, num_bytes: (domain, split) -> how much was given; a split without documents is not there.
      num_skipped: empty documents left out, as `on_empty` said.
      test_fraction: share of the documents that was to be held out.
    """

    folder: epath.PathLike
    changed: bool
    num_documents: dict[tuple[str, Split], int]
    num_bytes: dict[tuple[str, Split], int]
    num_skipped: int
    test_fraction: float

    def __str__(self) -> str:
        lines = [f"{self.folder}: {'added' if self.changed else 'already has all of this; nothing changed'}"]
        for key, num_documents in sorted(self.num_documents.items()):
            lines.append(f"  {', '.join(key)}: {num_documents:,} documents, {self.num_bytes[key]:,} bytes")
        if self.num_skipped:
            lines.append(f"  {self.num_skipped:,} empty documents left out")
        for domain in sorted({domain for domain, _ in self.num_documents}) if 0 < self.test_fraction < 1 else ():
            splits = {"train", "test"} - {split for name, split in self.num_documents if name == domain}
            lines += [
                f"  warning: {domain} has no {split} documents, because a document is in one split as a whole; give"
                r" more documents (split plain text with --separator, e.g. --separator '\n\n', or '\r\n\r\n' where"
                r" lines end in \r\n) or another --test-fraction, into a new --out"
                for split in sorted(splits)
            ]
        return "\n".join(lines)


def ingest(
    options: IngestOptions,
    report: Callable[[int, int], None] = lambda num_bytes_read, num_bytes_total: None,
    engine: Engine = LocalEngine(),
) -> IngestResult:
    """Adds the documents of `options.sources` to the corpus in `options.out`: all of them, or nothing.

    Args:
      report: called often with the input bytes (of compressed files, compressed ones) read so far, and those there are.
      engine: where files are read. This process puts the documents in order, hashes and writes them, whatever the
        engine.

    Raises:
      UserError: for input that is damaged, too large or empty, and for a corpus that cannot take or hold the documents.
    """
    files = _find_all(options)
    num_bytes_read, num_bytes_total = 0, sum(_embedded_bytes() if file is None else file.num_bytes for file in files)
    num_documents: dict[tuple[str, Split], int] = {}
    num_bytes: dict[tuple[str, Split], int] = {}
    num_skipped = 0
    with (
        write_corpus(pathlib.Path(options.out), options.test_fraction) as writer,
        contextlib.closing(engine.stream(functools.partial(read_portions, options), files)) as portions,
    ):
        for portion in portions:
            for domain, split, document in portion.documents:
                if not document and options.on_empty == "skip":
                    num_skipped += 1
                    continue
                writer.add(domain, split, document)
                num_documents[domain, split] = num_documents.get((domain, split), 0) + 1
                num_bytes[domain, split] = num_bytes.get((domain, split), 0) + len(document)
            num_bytes_read += portion.num_bytes_read
            report(num_bytes_read, num_bytes_total)
        if not num_documents:
            raise UserError(
                f"no documents in {', '.join(options.sources)} ({num_skipped} empty ones left out); name other sources"
            )
        changed = writer.commit()
    return IngestResult(
        folder=options.out,
        changed=changed,
        num_documents=num_documents,
        num_bytes=num_bytes,
        num_skipped=num_skipped,
        test_fraction=options.test_fraction,
    )


def _embedded_bytes() -> int:
    return sum(len(document) for _, _, document in embedded_documents())


def split_of(document: bytes, test_fraction: float) -> Split:
    """The split of a document, by its bytes alone: none is ever both trained on and held out, however often it is
    there."""
    return "test" if is_held_out(document, test_fraction) else "train"


def parse_separator(text: str) -> bytes:
    r"""The bytes of a separator in which escapes such as \n mean what they mean in Python. Raises UserError."""
    try:
        separator = text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode()
    except UnicodeError as error:
        raise UserError(f"--separator {text!r} is not understood: {error}; write a backslash as \\\\") from error
    if not separator:
        raise UserError("--separator is empty; leave it out to take a file as one document")
    return separator


def _find_all(options: IngestOptions) -> list[SourceFile | None]:
    """The files of all sources, in the order given; None for the embedded text. Raises UserError for a file that is
    reached twice."""
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
    return found


@dataclasses.dataclass(frozen=True)
class Portion:
    """Some documents of a file, in order.

    Attributes:
      documents: domain, split and bytes of each.
      num_bytes_read: how much further the file has been read than for the portion before.
    """

    documents: list[tuple[str, Split, bytes]]
    num_bytes_read: int


def read_portions(options: IngestOptions, file: SourceFile | None) -> Iterator[Portion]:
    """Yields all documents of a file, or the embedded ones; in portions, which is what an engine's worker sends. Raises
    UserError."""
    documents, size_bytes, reached, before = [], 0, 0, 0

    def report(num_bytes: int) -> None:
        nonlocal reached
        reached = num_bytes

    for domain, document in _documents(options, file, report):
        documents.append((domain, split_of(document, options.test_fraction), document))
        size_bytes += len(document) + _DOCUMENT_OVERHEAD_BYTES
        if size_bytes >= _PORTION_BYTES:
            yield Portion(documents, reached - before)
            documents, size_bytes, before = [], 0, reached
    yield Portion(documents, (reached if file is None else file.num_bytes) - before)


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
