"""The corpus store: whole documents as raw bytes, in ArrayRecord shards, and a manifest that says what they are.

    CORPUS/manifest.json
    CORPUS/<domain>-<train|test>-00000.array_record     zstd, one record a document, readable in any order

How a corpus stays whole, whatever happens to the process that writes it:

1. The writer locks `.lock`, which the kernel lets go when the process dies, and clears what a cut-off one has left.
2. It writes the new shards and then the new manifest into `.partial/`. From here on nothing needs disk space.
3. It renames the shards into place, and last of all the manifest. A shard that no manifest names does not count.

Should it die between two renames, `.partial/manifest.json` still tells which shards the next writer has to clear away.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import itertools
import operator
import os
import pathlib
import shutil
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Self

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import (
    cache_folder,
    cannot_write,
    check_name,
    fetch,
    is_remote,
    read_json,
    remote_errors,
    sha256_of_parts,
    write_json,
)

Split = Literal["train", "test"]

FORMAT = "tokenizer-lab corpus 2"
MANIFEST = "manifest.json"
SHARD_BYTES = 256 << 20  # of text
_PARTIAL = ".partial"
_LOCK = ".lock"
_MIN_RECORD_FILE_BYTES = 40  # the header of a record in ArrayRecord; a file cannot hold more records than this allows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of documents of one domain and split.

    Attributes:
      num_bytes: of text; `file_bytes` is the size of the (compressed) file.
      content_hash: over the documents of this domain and split, from the very first to the last in this shard; so that
        of the last shard stands for them all, wherever the borders of shards are.
    """

    file: str
    domain: str
    split: str
    num_documents: int
    num_bytes: int
    file_bytes: int
    content_hash: str


class Corpus:
    """A corpus store, opened for reading.

    Attributes:
      folder: where it is.
      manifest: what `manifest.json` says.
      content_hash: over all documents in order, with their domain and split; not over how files encode them.
      shards: of all domains and splits, in the order of their documents.
      domains: sorted names.
      num_documents, num_bytes: of text, in all domains and splits.
    """

    def __init__(self, folder: epath.Path, manifest: dict[str, Any], shards: tuple[Shard, ...]):
        self.folder = folder
        self.manifest = manifest
        self.shards = shards
        self.content_hash: str = manifest["content_hash"]
        self.domains = tuple(sorted({shard.domain for shard in shards}))
        self.num_documents: int = manifest["num_documents"]
        self.num_bytes: int = manifest["num_bytes"]

    @classmethod
    def open(cls, folder: epath.PathLike) -> Self:
        """Opens the corpus in `folder`; one in an object store is copied to this machine's cache, a shard when a
        document of it is first read.

        Raises:
          UserError: there is none, or one that is half-written, incomplete, or of another format.
        """
        folder = epath.Path(folder)
        try:
            with remote_errors(folder):
                return cls(folder, *_read_store(folder))
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror or error}; check its permissions") from error

    def documents(self, split: Split) -> "Documents":
        """The documents of a split, domain after domain. Raises UserError if there are none."""
        return Documents(self.folder, self.shards_of(split), self.cache)

    def shards_of(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split. Raises UserError if there are none."""
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise UserError(
                f"{self.folder} has no {split} documents; ingest more, or use another --test-fraction with a new --out"
            )
        return shards

    @property
    def cache(self) -> epath.Path | None:
        """Where its shards are copied to before they are read; None for a corpus of this machine."""
        return cache_folder("corpora") / self.content_hash if is_remote(self.folder) else None


class Documents(Sequence[bytes]):
    """Documents by index, for any number of threads; fit for `grain.MapDataset.source` and to be pickled.

    Attributes:
      num_bytes: of all documents together.
      content_hash: over all of them in order, with their domain and split.
    """

    _again = "ingest it again"  # what to do where they are damaged

    def __init__(self, folder: epath.Path, shards: tuple[Shard, ...], cache: epath.Path | None = None):
        self._folder = folder
        self._shards = shards
        self._cache = cache
        self._here = cache or folder
        self._remedy = f"remove {self._here} and {'start again' if cache else self._again}"
        self._ends = list(itertools.accumulate(shard.num_documents for shard in shards))
        self._readers: list[ArrayRecordReader | None] = [None] * len(shards)
        self._locks = [threading.Lock() for _ in shards]
        self.num_bytes = sum(shard.num_bytes for shard in shards)
        self.content_hash = _content_hash(shards)

    def __reduce__(self):
        return Documents, (self._folder, self._shards, self._cache)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """The bytes of a document. Raises UserError, naming shard and record, if they are damaged on disk."""
        shard_index, record = self._locate(index)
        reader = self._reader(shard_index)
        try:
            return reader.read(record, record + 1)[0]  # `read([record])` takes ten times as long
        except Exception as error:  # array_record has no error type of its own
            raise UserError(f"{self.place(index)} is damaged ({error}); {self._remedy}") from error

    def place(self, index: int) -> str:
        """Where a document is on disk, for people."""
        shard_index, record = self._locate(index)
        return f"{self._here / self._shards[shard_index].file}, record {record},"

    def domain(self, index: int) -> str:
        """The domain of a document."""
        return self._shards[self._locate(index)[0]].domain

    def _locate(self, index: int) -> tuple[int, int]:
        """Document -> its shard, and its record in that."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard_index = bisect_right(self._ends, index)
        return shard_index, index - self._ends[shard_index] + self._shards[shard_index].num_documents

    def _reader(self, shard_index: int) -> ArrayRecordReader:
        with self._locks[shard_index]:
            if self._readers[shard_index] is None:
                self._readers[shard_index] = self._open_reader(self._shards[shard_index])
            return self._readers[shard_index]

    def _open_reader(self, shard: Shard) -> ArrayRecordReader:
        path = self._here / shard.file
        if self._cache and not (path.exists() and path.stat().length == shard.file_bytes):
            fetch(self._folder / shard.file, path)  # ArrayRecord's library reads files of this machine only
        return _open_reader(path, shard, self._remedy)


def _open_reader(path: epath.Path, shard: Shard, remedy: str) -> ArrayRecordReader:
    try:
        with path.open("rb"):  # array_record would take a file that cannot be opened for an empty one
            pass
    except OSError as error:
        what_helps = (
            "allow more open files with `ulimit -n`" if error.errno == errno.EMFILE else "check its permissions"
        )
        raise UserError(f"cannot read {path}: {error.strerror}; {what_helps}") from error
    reader = ArrayRecordReader(
        os.fspath(path), "readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32 << 10
    )
    if reader.num_records() != shard.num_documents:
        raise UserError(
            f"{path} is damaged: {reader.num_records()} documents can be found, {shard.num_documents} should be there;"
            f" {remedy}"
        )
    return reader


def _read_store(folder: epath.Path) -> tuple[dict[str, Any], tuple[Shard, ...]]:
    """The manifest and the shards of a whole store. Raises UserError for any other."""
    if not (folder / MANIFEST).exists():
        reason = "the ingest into it was cut off" if (folder / _PARTIAL).exists() else f"it has no {MANIFEST}"
        raise UserError(f"{folder} is not a corpus: {reason}; make one with `toklab ingest SOURCE... --out {folder}`")
    manifest, shards = _read_manifest(folder / MANIFEST)
    check_files(folder, shards, "ingest it again")
    return manifest, shards


def check_files(folder: epath.Path, shards: Iterable[Shard], again: str) -> None:
    """Raises UserError, with `again` as what to do, unless all files of the shards are there and as large as they
    should be."""
    for shard in shards:
        path = folder / shard.file
        if not path.exists():
            raise UserError(f"{path} is missing; remove {folder} and {again}")
        if (file_bytes := path.stat().length) != shard.file_bytes:
            raise UserError(
                f"{path} has {file_bytes} bytes, the manifest says {shard.file_bytes}; remove {folder} and {again}"
            )


def _read_manifest(path: epath.Path) -> tuple[dict[str, Any], tuple[Shard, ...]]:
    """A manifest that may come from a stranger, and its shards. Raises UserError for one that contradicts itself."""
    manifest = read_json(path, "corpus manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT!r}; ingest the corpus again")
    try:
        shards = tuple(parse_shard(value) for value in manifest["shards"])
        test_fraction = float(manifest["holdout"]["test_fraction"])
        if not shards or not 0 <= test_fraction <= 1 or manifest != _manifest(shards, test_fraction):
            raise ValueError("its parts contradict each other")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged or was changed by hand: {error}; ingest the corpus again") from error
    return manifest, shards


def parse_shard(value: Any) -> Shard:
    """What a manifest, which may come from a stranger, says of a shard. Raises UserError for what cannot be."""
    fields = {field.name: field.type for field in dataclasses.fields(Shard)}
    if not isinstance(value, dict) or {key: type(x) for key, x in value.items()} != fields:
        raise UserError(f"a shard is not described by {', '.join(fields)}")
    shard = Shard(**value)
    check_name(shard.file, "corpus shard")
    check_name(shard.domain, "domain")
    if shard.split not in ("train", "test"):
        raise UserError(f"{shard.file} is of split {shard.split!r}, not train or test")
    if not 0 < shard.num_documents * _MIN_RECORD_FILE_BYTES <= shard.file_bytes or not 0 <= shard.num_bytes < 1 << 62:
        raise UserError(
            f"{shard.file} ({shard.file_bytes} bytes): not {shard.num_documents} documents of {shard.num_bytes} bytes"
        )
    return shard


def _manifest(shards: Sequence[Shard], test_fraction: float) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "content_hash": _content_hash(shards),
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "holdout": {
            "rule": "test if the first 8 bytes of sha256(document), big endian, / 2^64 < test_fraction",
            "test_fraction": test_fraction,
        },
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }


def _split_hashes(shards: Iterable[Shard]) -> dict[tuple[str, str], str]:
    """(domain, split) -> the hash over its documents, which is that of its last shard."""
    return {(shard.domain, shard.split): shard.content_hash for shard in shards}


def corpora_hash(corpora: "Sequence[Corpus]") -> str:
    """Tells texts apart, of several corpora in their order."""
    return "+".join(corpus.content_hash for corpus in corpora)


def _content_hash(shards: Iterable[Shard]) -> str:
    return sha256_of_parts(
        part.encode() for (domain, split), content in _split_hashes(shards).items() for part in (domain, split, content)
    )


class CorpusWriter:
    """Takes documents and adds their domains to a corpus; made by `write_corpus`."""

    def __init__(self, folder: pathlib.Path, old: tuple[Shard, ...], test_fraction: float, shard_bytes: int):
        self._folder = folder
        self._partial = folder / _PARTIAL
        self._old = old
        self._test_fraction = test_fraction
        self._shard_bytes = shard_bytes
        self._splits: dict[tuple[str, Split], _SplitWriter] = {}

    def add(self, domain: str, split: Split, document: bytes) -> None:
        """Takes the next document of a domain and split."""
        if (domain, split) not in self._splits:
            # A domain that is there already is only compared, which takes no disk space.
            known = any(shard.domain == domain for shard in self._old)
            self._splits[domain, split] = _SplitWriter(
                None if known else self._partial, check_name(domain, "domain"), split, self._shard_bytes
            )
        self._splits[domain, split].add(document)

    def commit(self) -> bool:
        """Makes the documents part of the corpus. Returns False if it had all of them already, and nothing changed.

        Raises:
          UserError: the corpus has other documents under one of the domains.
        """
        shards = [shard for writer in self._splits.values() for shard in writer.close()]
        given = {shard.domain for shard in shards}
        known = given & {shard.domain for shard in self._old}
        for domain in sorted(known):
            before, now = ([shard for shard in side if shard.domain == domain] for side in (self._old, shards))
            if _split_hashes(before) != _split_hashes(now):
                raise UserError(
                    f"{self._folder} already has other documents under domain {domain!r}: {_size(before)} there, "
                    f"{_size(now)} given; choose another --domain or --out"
                )
        if known == given:
            return False
        new = [shard for shard in shards if shard.domain not in known]
        everything = sorted([*self._old, *new], key=lambda shard: (shard.domain, shard.split))
        write_json(self._partial / MANIFEST, _manifest(everything, self._test_fraction))
        for shard in new:
            (self._partial / shard.file).rename(self._folder / shard.file)
        (self._partial / MANIFEST).rename(self._folder / MANIFEST)
        return True


class _SplitWriter:
    """Writes the documents of one domain and split into shards in `folder`; if that is None, only counts and hashes."""

    def __init__(self, folder: pathlib.Path | None, domain: str, split: Split, shard_bytes: int):
        self._folder = folder
        self._domain = domain
        self._split = split
        self._shard_bytes = shard_bytes
        self._digest = hashlib.sha256()
        self._shards: list[Shard] = []
        self._start_shard()

    def add(self, document: bytes) -> None:
        if self._num_documents and self._num_bytes + len(document) > self._shard_bytes:
            self._end_shard()
            self._start_shard()
        self._num_documents += 1
        self._num_bytes += len(document)
        # As `sha256_of_parts` does it: the length first, so that the borders of documents count.
        self._digest.update(len(document).to_bytes(8, "little"))
        self._digest.update(document)
        if self._file:
            with write_errors():
                self._file.write(document)

    def close(self) -> list[Shard]:
        self._end_shard()
        return self._shards

    def _start_shard(self) -> None:
        self._num_documents = self._num_bytes = 0
        self._name = check_name(f"{self._domain}-{self._split}-{len(self._shards):05d}.array_record", "corpus shard")
        self._file = open_writer(self._folder / self._name) if self._folder else None

    def _end_shard(self) -> None:
        if self._file:
            with write_errors():
                self._file.close()
        shard = Shard(
            file=self._name,
            domain=self._domain,
            split=self._split,
            num_documents=self._num_documents,
            num_bytes=self._num_bytes,
            file_bytes=(self._folder / self._name).stat().st_size if self._folder else 0,
            content_hash=self._digest.hexdigest(),
        )
        self._shards.append(shard)


def open_writer(path: pathlib.Path) -> ArrayRecordWriter:
    """Writes a shard: compressed, with records that can be read in any order."""
    return ArrayRecordWriter(os.fspath(path), "group_size:1,zstd:3")


@contextlib.contextmanager
def write_errors() -> Iterator[None]:
    """array_record raises RuntimeError with the system's words in it; gives the error its number back."""
    try:
        yield
    except RuntimeError as error:
        number = next((number for number in errno.errorcode if f"failed: {os.strerror(number)};" in str(error)), 0)
        raise OSError(number, str(error)) from error


@contextlib.contextmanager
def write_corpus(folder: pathlib.Path, test_fraction: float, shard_bytes: int = SHARD_BYTES) -> Iterator[CorpusWriter]:
    """A writer that adds domains to the corpus in `folder`, or starts one. Without `commit` everything stays as it was.

    Args:
      test_fraction: the share of documents that the caller's rule holds out; one value for a corpus.
      shard_bytes: a shard ends before it gets more than this many bytes of text.

    Raises:
      UserError: it cannot be written, another writer is at it, or the folder has other things in it.
    """
    try:
        with locked(folder, "ingest"):
            try:
                _clear_partial(folder)
                old = _shards_to_add_to(folder, test_fraction)
                (folder / _PARTIAL).mkdir()
                yield CorpusWriter(folder, old, test_fraction, shard_bytes)
            finally:
                _clear_partial(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextlib.contextmanager
def locked(folder: pathlib.Path, what: str) -> Iterator[None]:
    """Makes the folder and keeps other writers, which do `what`, out of it; takes it away again if it stays empty."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A writer that was just finishing may have removed the file between open and lock: then this locks nothing.
            held = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except BlockingIOError:
            held = False
        if not held:
            raise UserError(f"another {what} is writing into {folder}; wait until it is done and start this one again")
        try:
            yield
        finally:
            path.unlink()
            if made:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _clear_partial(folder: pathlib.Path) -> None:
    """Removes what a writer has left that did not commit, or did not come to."""
    partial = folder / _PARTIAL
    if (partial / MANIFEST).exists():
        kept = (
            {shard.file for shard in _read_manifest(epath.Path(folder / MANIFEST))[1]}
            if (folder / MANIFEST).exists()
            else set()
        )
        for shard in _read_manifest(epath.Path(partial / MANIFEST))[1]:
            if shard.file not in kept:
                (folder / shard.file).unlink(missing_ok=True)
    shutil.rmtree(partial, ignore_errors=True)


def _shards_to_add_to(folder: pathlib.Path, test_fraction: float) -> tuple[Shard, ...]:
    """The shards that are there already. Raises UserError where nothing can be added to them."""
    if (folder / MANIFEST).exists():
        corpus = Corpus.open(folder)
        if (before := corpus.manifest["holdout"]["test_fraction"]) != test_fraction:
            raise UserError(
                f"{folder} holds out {before} of its documents, not {test_fraction}; "
                f"use --test-fraction {before} or another --out"
            )
        return corpus.shards
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder} is not a corpus and not empty; choose another --out")
    return ()


def _size(shards: Sequence[Shard]) -> str:
    return (
        f"{sum(shard.num_documents for shard in shards)} documents of {sum(shard.num_bytes for shard in shards)} bytes"
    )
