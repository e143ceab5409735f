"""Writes a corpus store, or adds domains to one.

How a corpus stays whole, whatever happens to the process that writes it:

1. The writer locks `.lock`, which the kernel lets go when the process dies, and clears what a cut-off one has left.
2. It writes the new shards and then the new manifest into `.partial/`. From here on nothing needs disk space.
3. It renames the shards into place, and last of all the manifest. A shard that no manifest names does not count.

Should it die between two renames, `.partial/manifest.json` still tells which shards the next writer has to clear away.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from data.manifest import MANIFEST, PARTIAL, Shard, Split, make_manifest, read_manifest, split_hashes, write_manifest
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, check_name

SHARD_BYTES = 256 << 20  # of text
_LOCK = ".lock"


@contextlib.contextmanager
def write_corpus(
    folder: pathlib.Path, test_fraction: float, shard_bytes: int = SHARD_BYTES
) -> Iterator["CorpusWriter"]:
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
                (folder / PARTIAL).mkdir()
                yield CorpusWriter(folder, old, test_fraction, shard_bytes)
            finally:
                _clear_partial(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


class CorpusWriter:
    """Takes documents and adds their domains to a corpus; made by `write_corpus`."""

    def __init__(self, folder: pathlib.Path, old: tuple[Shard, ...], test_fraction: float, shard_bytes: int):
        self._folder = folder
        self._partial = folder / PARTIAL
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
            if split_hashes(before) != split_hashes(now):
                raise UserError(
                    f"{self._folder} already has other documents under domain {domain!r}: {_size(before)} there, "
                    f"{_size(now)} given; choose another --domain or --out"
                )
        if known == given:
            return False
        new = [shard for shard in shards if shard.domain not in known]
        everything = sorted([*self._old, *new], key=lambda shard: (shard.domain, shard.split))
        write_manifest(self._partial / MANIFEST, make_manifest(everything, self._test_fraction))
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
    partial = folder / PARTIAL
    if (partial / MANIFEST).exists():
        kept = (
            {shard.file for shard in read_manifest(epath.Path(folder / MANIFEST))[1]}
            if (folder / MANIFEST).exists()
            else set()
        )
        for shard in read_manifest(epath.Path(partial / MANIFEST))[1]:
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
