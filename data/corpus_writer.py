"""Writes a corpus store, or adds texts to one; here or in an object store.

How a corpus stays whole, whatever happens to the processes that write it:

1. What an ingest works on is in `.partial/<id>/`, where the id stands for its options: sorted runs, and notes of what
   is whole. A note is written after the file it is about. The same command takes what has a note and goes on.
2. Shards are written where they are to be, under names that no other text has. A shard that no manifest names does not
   count.
3. The manifest is written, in one go, and then `.partial/<id>/` is removed.

On this machine a writer locks `.lock`, which the kernel lets go when the process dies, and clears what others have left
that were cut off. An object store has no locks. There two writers do not disturb each other until they commit, which
one of them does at a time: each writes a claim into `.committing/`, and goes on only if it finds no other one there.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from data.array_record_manifest import FORMAT as OLD_FORMAT
from data.duplicates import NO_KEYS, Drops, InTwoSplits, LookAtKeys, bucket_ranges, collect
from data.layout import SHARD_BYTES, PlannedText, block_documents, merged_together, plan_text
from data.local_engine import Engine, LocalEngine
from data.manifest import MANIFEST, Manifest, Rule, Split, StoredText, Text, shard_file, write_manifest
from data.merge import MadeShard, Merge, MergeTask, stored_text
from data.reading import Document
from data.runs import MERGE_BYTES, Histogram, RunFile, RunWriter
from data.storage import read_if_there, remove, remove_empty_folders, remove_folder, sizes_in
from data.store import PARTIAL, Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cannot_write, check_name, is_remote, write_bytes, write_json

RUN_BYTES = 256 << 20  # of documents in memory
_STRETCH_BYTES = 1 << 20  # of a run's text in what a worker merges, on average
_AText = PlannedText | StoredText
_LOCK, _CLAIMS = ".lock", ".committing"
_HALF_WRITTEN = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{8}\.partial$")  # by a process that was killed
_WRITES = "writes.json"  # in an ingest's folder: which shards it may have written


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large what is written is, and what is held in memory for it; in bytes of text."""

    task: int | None = None  # of input that one worker reads; by how much there is
    run: int = RUN_BYTES
    merge: int = MERGE_BYTES
    shard: int = SHARD_BYTES


@contextlib.contextmanager
def open_store(folder: epath.Path, test_fraction: float, ingest_id: str, sizes: Sizes = Sizes()) -> Iterator["Store"]:
    """The corpus in `folder`, which is there or is made, to add texts to.

    When the block raises, what has a note stays for the ingest with this id.

    Raises:
      UserError: it cannot be written, another writer is at it, or the folder has other things in it.
    """
    try:
        with contextlib.nullcontext() if is_remote(folder) else locked(pathlib.Path(folder), "ingest"):
            if not is_remote(folder):
                _clear(folder, ingest_id)
            store = Store(folder, test_fraction, ingest_id, sizes)
            try:
                yield store
            except BaseException:
                _remove_half_written(folder)
                if not any(name.endswith(".json") for name in sizes_in(store.partial)):
                    store.clear()
                raise
    except OSError as error:
        raise cannot_write(folder, error) from error


class Store:
    """A corpus that texts are added to; made by `open_store`."""

    def __init__(self, folder: epath.Path, test_fraction: float, ingest_id: str, sizes: Sizes):
        self.folder, self.test_fraction, self.sizes = folder, test_fraction, sizes
        self.partial = folder / PARTIAL / ingest_id
        self._texts_there()  # which may refuse

    def look_at_keys(
        self,
        runs: Sequence[RunFile],
        histograms: Mapping[Text, Histogram],
        rule: Rule,
        engine: Engine,
        drop: bool,
        near: np.ndarray = NO_KEYS,
    ) -> Drops | None:
        """What of runs is not to be committed; None where nobody need look.

        Args:
          runs, histograms, rule, engine: as of `commit`.
          drop: whether documents are dropped that are the same as others.
          near: S16[n], sorted, the keys of near copies to be dropped.

        Raises:
          InTwoSplits: a document is.
        """
        there = tuple(text for text in self._texts_there() if text.text not in histograms)
        if not drop and rule == "hash" and all(text.rule == "hash" for text in there):
            return None
        look = LookAtKeys(self.folder, there, self.partial, tuple(runs), tuple(histograms), drop, near)
        try:
            with contextlib.closing(engine.stream(look, bucket_ranges(histograms.values(), there))) as found:
                return collect(found, histograms)
        except InTwoSplits:
            self.clear()
            raise

    def commit(
        self,
        runs: Sequence[RunFile],
        histograms: Mapping[Text, Histogram],
        rule: Rule,
        engine: Engine,
        report: Callable[[int], None],
        gone: Mapping[Text, np.ndarray] | None = None,
    ) -> bool:
        """Makes the documents of runs part of the corpus.

        Args:
          runs: in the folder `partial`.
          histograms: of all runs together.
          rule: how the documents' splits were chosen.
          engine: where shards are made.
          report: called with the bytes of text that are in shards.
          gone: of `Drops`, what of the runs does not stay.

        Returns:
          False if the corpus had all of them already, and nothing changed.

        Raises:
          UserError: the corpus has other documents under one of the domains, or another writer commits.
        """
        planned = [
            plan_text((check_name(domain, "domain"), split), rule, histograms[domain, split], self.sizes.shard)
            for domain, split in sorted(histograms)
        ]
        try:
            self._check_counts(planned, self._texts_there())
            made = self._merge(planned, runs, engine, report, gone)
            with claimed(self.folder) if is_remote(self.folder) else contextlib.nullcontext():
                there = self._texts_there()
                self._check_hashes(made, there)
                new = [text for text in made if text.text not in {other.text for other in there}]
                if new:
                    texts = sorted([*there, *new], key=lambda text: text.text)
                    write_manifest(self.folder / MANIFEST, self._manifest(texts).to_json())
        except _OtherDocuments:
            self.clear()
            raise
        self.clear()
        return bool(new)

    def clear(self) -> None:
        """Removes what the ingest works on, and on this machine shards that no manifest names."""
        if is_remote(self.folder):
            remove_folder(self.partial)
        else:
            _remove_ingest(self.folder, self.partial)
            remove_empty_folders(self.folder, [PARTIAL])

    def _manifest(self, texts: Sequence[StoredText]) -> Manifest:
        counts, sizes = collections.Counter[str](), collections.Counter[str]()
        for text in texts:
            counts[text.split] += text.num_documents
            sizes[text.split] += text.num_bytes
        blocks = {split: block_documents(counts[split], sizes[split]) for split in sorted(counts)}
        return Manifest(self.test_fraction, blocks, tuple(texts))

    def _merge(
        self,
        planned: Sequence[PlannedText],
        runs: Sequence[RunFile],
        engine: Engine,
        report: Callable[[int], None],
        gone: Mapping[Text, np.ndarray] | None,
    ) -> list[StoredText]:
        """Makes the shards of texts that are not there, and the hashes of the others."""
        there = {text.text for text in self._texts_there()}
        new = [text for text in planned if text.text not in there]
        write_json(self.partial / _WRITES, [[*text.text, text.name, len(text.shards)] for text in new], sync=False)
        tasks = [
            MergeTask(text, tuple(shards), text.text not in there)
            for text in planned
            for shards in merged_together(text.shards, len(runs), _STRETCH_BYTES)
        ]
        made = collections.defaultdict[Text, list[MadeShard]](list)
        num_bytes = 0
        merge = Merge(self.folder, self.partial, tuple(runs), self.sizes.merge, gone)
        with contextlib.closing(engine.stream(merge, tasks)) as shards:
            for shard in shards:
                made[shard.shard.domain, shard.shard.split].append(shard)
                num_bytes += shard.shard.num_bytes
                report(num_bytes)
        return [stored_text(text, made[text.text]) for text in planned]

    def _check_counts(self, planned: Sequence[PlannedText], there: Sequence[StoredText]) -> None:
        """Raises _OtherDocuments where a domain is there with other documents, as far as counts tell."""
        for domain in sorted({text.text[0] for text in planned}):
            stored = {text.split: text for text in there if text.domain == domain}
            given = {text.text[1]: text for text in planned if text.text[0] == domain}
            rules = {text.rule for texts in (there, planned) for text in texts}
            counts = lambda texts: {split: (text.num_documents, text.num_bytes) for split, text in texts.items()}
            if stored and rules == {"hash"} and counts(stored) != counts(given):
                raise self._other(domain, stored.values(), given.values())
            if len(rules) > 1:
                raise _OtherDocuments(
                    f"{self.folder} has splits of the other kind (by hash, or given by --split); choose another --out"
                )
            for split in stored.keys() & given.keys():
                if counts(stored)[split] != counts(given)[split]:
                    raise self._other(domain, [stored[split]], [given[split]])

    def _check_hashes(self, made: Sequence[StoredText], there: Sequence[StoredText]) -> None:
        """Raises _OtherDocuments where a text is there with other documents."""
        hashes = {text.text: text for text in there}
        for text in made:
            if text.text in hashes and hashes[text.text].content_hash != text.content_hash:
                raise self._other(text.domain, [hashes[text.text]], [text])

    def _other(self, domain: str, before: Iterable[_AText], now: Iterable[_AText]) -> "_OtherDocuments":
        return _OtherDocuments(
            f"{self.folder} already has other documents under domain {domain!r}: {_size(before)} there, "
            f"{_size(now)} given; choose another --domain or --out"
        )

    def _texts_there(self) -> tuple[StoredText, ...]:
        """What the corpus holds now. Raises UserError where nothing can be added to it."""
        if not (self.folder / MANIFEST).exists():
            others = [name for name in sizes_in(self.folder) if not name.startswith(".")]
            planned = json.loads(read_if_there(self.partial / _WRITES) or "[]")
            if any(name not in _files(planned) for name in others):
                raise UserError(f"{self.folder} is not a corpus and not empty; choose another --out")
            return ()
        corpus = Corpus.open(self.folder)
        if corpus.manifest.format == OLD_FORMAT:
            raise UserError(
                f"{self.folder} is of a format that is only read now; make a new one of it, toklab ingest"
                f" {self.folder} --out NEW, and add to that"
            )
        if all(text.rule == "given" for text in corpus.manifest.texts) and self.test_fraction:
            raise UserError(
                f"{self.folder} has published splits, by --split, and these documents would be divided by their hashes;"
                " give their --split too, or choose another --out"
            )
        if (before := corpus.test_fraction) != self.test_fraction:
            raise UserError(
                f"{self.folder} holds out {before} of its documents, not {self.test_fraction}; "
                f"use --test-fraction {before} or another --out, also for documents with a --split"
            )
        return corpus.manifest.texts


class _OtherDocuments(UserError):
    """What is given cannot be added, however often it is tried."""


def _size(texts: Iterable[_AText]) -> str:
    texts = list(texts)
    return f"{sum(text.num_documents for text in texts)} documents of {sum(text.num_bytes for text in texts)} bytes"


def _files(writes: Iterable[tuple[str, Split, str, int]]) -> set[str]:
    """The shards that an ingest may have written."""
    return {shard_file(domain, split, number, name) for domain, split, name, count in writes for number in range(count)}


def _clear(folder: epath.Path, ingest_id: str) -> None:
    """Removes what others have left on this machine that did not commit, or did not come to clear away."""
    _remove_half_written(folder)
    for left in (folder / PARTIAL).iterdir() if (folder / PARTIAL).exists() else ():
        if left.name != ingest_id:
            _remove_ingest(folder, left)


def _remove_half_written(folder: epath.Path) -> None:
    """What workers that were killed have left on this machine; in an object store there is no such thing."""
    if not is_remote(folder):
        half = [name for name in sizes_in(folder) if _HALF_WRITTEN.search(name)]
        remove(folder, half)
        remove_empty_folders(folder, {os.path.dirname(name) for name in half} - {""})


def _remove_ingest(folder: epath.Path, partial: epath.Path) -> None:
    named = {shard.file for shard in Corpus.open(folder).shards} if (folder / MANIFEST).exists() else set()
    written = _files(json.loads(read_if_there(partial / _WRITES) or "[]")) - named
    remove(folder, sorted(written))
    remove_empty_folders(folder, {os.path.dirname(name) for name in written})
    remove_folder(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


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


@contextlib.contextmanager
def claimed(folder: epath.Path) -> Iterator[None]:
    """A folder of an object store in which no other writer commits. Raises UserError where one does, or was killed
    while it did. Of two that begin at once, both may raise."""
    own = uuid.uuid4().hex
    write_bytes(folder / _CLAIMS / own, b"")
    try:
        if others := sorted(sizes_in(folder / _CLAIMS).keys() - {own}):
            raise UserError(
                f"another writer commits to {folder} at this moment; start again. Is there none, it was killed: remove"
                f" {folder / _CLAIMS / others[0]} then"
            )
        yield
    finally:
        remove(folder / _CLAIMS, [own])


# ---- Without sources -----------------------------------------------------------------------------


@contextlib.contextmanager
def write_corpus(
    folder: epath.PathLike, test_fraction: float, shard_bytes: int = SHARD_BYTES
) -> Iterator["CorpusWriter"]:
    """A writer that takes documents one by one, with their splits. Without `commit` everything stays as it was.

    Args:
      folder: of the corpus.
      test_fraction: the share of documents that the caller's rule holds out; one value for a corpus.
      shard_bytes: a shard ends before it gets more than this many bytes of text, if it has several buckets.

    Raises:
      UserError: see `open_store`.
    """
    with open_store(epath.Path(folder), test_fraction, uuid.uuid4().hex[:12], Sizes(shard=shard_bytes)) as store:
        try:
            yield CorpusWriter(store)
        finally:
            store.clear()


class CorpusWriter:
    """Takes documents and adds their texts to a corpus; made by `write_corpus`."""

    def __init__(self, store: Store):
        self._store = store
        self._runs = RunWriter(store.partial, "run", store.test_fraction, store.sizes.run)

    def add(self, domain: str, split: Split, document: bytes) -> None:
        """Takes the next document of a domain and split."""
        self._runs.add([Document(check_name(domain, "domain"), split, document)])

    def commit(self) -> bool:
        """Makes the documents part of the corpus. Returns False if it had all of them already, and nothing changed.

        Raises:
          UserError: see `Store.commit`.
        """
        self._runs.close()
        return self._store.commit(self._runs.runs, self._runs.histograms, "hash", LocalEngine(), lambda num_bytes: None)
