"""The corpus store: whole documents as raw bytes, in shards, and a manifest that says what they are
(`data/manifest.py`). `data/corpus_writer.py` writes it.

    CORPUS/manifest.json
    CORPUS/<domain>/<train|valid|test>-00000-<name>.zst     `data/shards.py`

The documents of a domain and split are in the order of their hashes: a random order, in which those that are held out
come first and equal ones are neighbours. Any document is read by two ranges of bytes, its shard's footer and its unit;
nothing is copied to this machine, and both are kept for a while.
"""

import collections
import errno
import itertools
import operator
import os
import threading
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np
from etils import epath

from data import array_record_manifest
from data.array_record_manifest import read_manifest as read_old_manifest
from data.array_record_store import ArrayRecordDocuments
from data.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    Shard,
    Split,
    StoredText,
    check_files,
    content_hash_of,
    read_manifest,
)
from data.shards import WHOLE, Damaged, Unit, UnitSpan, decode_footer, decode_unit, footer_bytes
from data.split import document_key
from data.storage import Range, read_ranges
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import cache_folder, is_remote, read_json, remote_errors

PARTIAL = ".partial"  # what an ingest that was cut off leaves
_UNITS_BYTES = 128 << 20  # of decompressed units that are kept, for the documents of one split
_FOOTERS_BYTES = 32 << 20  # of footers
AGAIN = "ingest it again"  # what to do where a corpus is damaged

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


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

    def __init__(self, folder: epath.Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.content_hash = manifest.content_hash
        self.num_documents = manifest.num_documents
        self.num_bytes = manifest.num_bytes
        self.shards: tuple[Shard, ...] = tuple(shard for text in manifest.texts for shard in text.shards)
        self.domains = tuple(sorted({text.domain for text in manifest.texts}))

    @classmethod
    def open(cls, folder: epath.PathLike) -> Self:
        """Opens the corpus in `folder`, which may be in an object store.

        Raises:
          UserError: there is none, or one that is half-written, incomplete, or of another format.
        """
        folder = epath.Path(folder)
        try:
            with remote_errors(folder):
                return cls(folder, _read_store(folder))
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror or error}; check its permissions") from error

    def documents(self, split: Split) -> "AnyDocuments":
        """The documents of a split, domain after domain. Raises UserError if there are none."""
        texts = self.texts_of(split)
        if not self.is_sorted:
            cache = cache_folder("corpora") / self.content_hash if is_remote(self.folder) else None
            return ArrayRecordDocuments(self.folder, texts, cache, AGAIN)
        return Documents(self.folder, texts, self.manifest.block_documents[split], AGAIN)

    @property
    def splits(self) -> frozenset[Split]:
        """Those that it has documents of."""
        return frozenset(text.split for text in self.manifest.texts)

    @property
    def is_sorted(self) -> bool:
        """Whether the documents of each domain and split are in the order of their keys, as those of today's format
        are."""
        return self.manifest.format != array_record_manifest.FORMAT

    def texts_of(self, split: Split) -> tuple[StoredText, ...]:
        """The domains that have a split. Raises UserError if there are none."""
        texts = tuple(text for text in self.manifest.texts if text.split == split)
        if not texts:
            raise UserError(f"{self.folder} has no {split} documents; ingest more documents, into a new --out")
        return texts

    def shards_of(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split. Raises UserError if there are none."""
        return tuple(shard for text in self.texts_of(split) for shard in text.shards)

    @property
    def test_fraction(self) -> float:
        """The share of documents held out when it was made (`data/split.py`)."""
        return self.manifest.test_fraction


def corpora_hash(corpora: Sequence[Corpus]) -> str:
    """Tells texts apart, of several corpora in their order."""
    return "+".join(corpus.content_hash for corpus in corpora)


class Documents(Sequence[bytes]):
    """Documents by index, for any number of threads; fit for `grain.MapDataset.source` and to be pickled.

    Attributes:
      num_bytes: of all documents together.
      content_hash: over all of them in order, with their domain and split.
      block_documents: how many consecutive ones are read, and shuffled, as one block.
    """

    def __init__(self, folder: epath.Path, texts: Sequence[StoredText], block_documents: int, again: str):
        """
        Args:
          folder: where the files are.
          texts: whose documents, one after the other.
          block_documents: see above.
          again: what to do where they are damaged.
        """
        self._folder, self._texts, self._again = folder, tuple(texts), again
        self._root = os.fspath(folder)
        self.block_documents = block_documents
        self._shards = [shard for text in texts for shard in text.shards]
        self._spans = [span for text in texts for span in _spans(text)]
        self._ends = list(itertools.accumulate(shard.num_documents for shard in self._shards))
        self._units: _Kept[tuple[int, int], Unit] = _Kept(_UNITS_BYTES)
        self._footers: _Kept[int, np.ndarray] = _Kept(_FOOTERS_BYTES)
        self.num_bytes = sum(shard.num_bytes for shard in self._shards)
        self.content_hash = content_hash_of(texts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Documents, (self._folder, self._texts, self.block_documents, self._again)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # nobody takes slices
        """The bytes of a document. Raises UserError, naming shard and document, if they are damaged."""
        unit, number = self._unit_of(index)
        return unit[number]

    def read_many(self, indices: Iterable[int]) -> list[bytes]:
        """Documents in the order asked for; what they are in is read once, and from an object store at the same
        time."""
        places = [self._locate(index) for index in indices]
        units = self._read_units([(shard, unit) for shard, unit, _ in places])
        return [units[shard, unit][number] for shard, unit, number in places]

    def read_block(self, number: int) -> list[bytes]:
        """Documents number * block_documents to the next block's first."""
        start = number * self.block_documents
        return self.read_many(range(start, min(len(self), start + self.block_documents)))

    def key(self, index: int) -> bytes:
        """The first 16 bytes of sha256 of a document, or of the whole that it is a part of."""
        unit, number = self._unit_of(index)
        key, _ = unit.cut.get(number, (None, WHOLE))
        return key or document_key(unit[number])

    def part(self, index: int) -> int:
        """0, 1, ... of a document that was cut; WHOLE for others."""
        unit, number = self._unit_of(index)
        return unit.cut.get(number, (b"", WHOLE))[1]

    def place(self, index: int) -> str:
        """Where a document is, for people."""
        shard = bisect_right(self._ends, index)
        number = index - self._ends[shard] + self._shards[shard].num_documents
        return f"{self._folder / self._shards[shard].file}, document {number},"

    def domain(self, index: int) -> str:
        """The domain of a document."""
        return self._shards[self._locate(index)[0]].domain

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Document -> its shard, its unit in that, and its number there."""
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, *self._spans[shard].find(index - self._ends[shard] + self._shards[shard].num_documents)

    def _unit_of(self, index: int) -> tuple[Unit, int]:
        shard, unit, number = self._locate(index)
        found = self._units.get((shard, unit)) or self._read_units([(shard, unit)])[shard, unit]
        return found, number

    def _read_units(self, wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Unit]:
        """Units by (shard, number)."""
        units = {place: unit for place in wanted if (unit := self._units.get(place))}
        missing = sorted({place for place in wanted if place not in units})
        edges = self._read_footers(sorted({shard for shard, _ in missing}))
        ranges = [self._range(shard, edges[shard][unit], edges[shard][unit + 1]) for shard, unit in missing]
        for place, frame in zip(missing, self._read(ranges), strict=True):
            units[place] = self._decoded(*place, frame)
            self._units.put(place, units[place], units[place].num_bytes)
        return units

    def _decoded(self, shard: int, unit: int, frame: bytes) -> Unit:
        span = self._spans[shard]
        try:
            # Ids of a document (`data/encoded.py`) may have more bytes than it has.
            return decode_unit(frame, span.size(unit), 16 * self._shards[shard].num_bytes + _UNITS_BYTES)
        except (Damaged, MemoryError) as error:
            first = self._ends[shard] - span.num_documents + span.start(unit)
            raise UserError(f"{self.place(first)} is damaged ({error}); {self._remedy}") from error

    def _read_footers(self, shards: Sequence[int]) -> dict[int, np.ndarray]:
        """Shard -> i64[u + 1], where its units begin and end."""
        edges = {shard: found for shard in shards if (found := self._footers.get(shard)) is not None}
        missing = [shard for shard in shards if shard not in edges]
        ranges = []
        for shard in missing:
            file_bytes = self._shards[shard].file_bytes
            ranges.append(self._range(shard, file_bytes - footer_bytes(self._spans[shard].num_units), file_bytes))
        for shard, footer in zip(missing, self._read(ranges), strict=True):
            about = self._shards[shard]
            try:
                edges[shard] = decode_footer(footer, self._spans[shard].num_units, about.file_bytes)
            except Damaged as error:
                raise UserError(f"{self._folder / about.file} is damaged: {error}; {self._remedy}") from error
            self._footers.put(shard, edges[shard], edges[shard].nbytes)
        return edges

    def _range(self, shard: int, start: int, end: int) -> Range:
        return Range(f"{self._root}/{self._shards[shard].file}", max(0, int(start)), int(end - max(0, start)))

    def _read(self, ranges: Sequence[Range]) -> list[bytes]:
        try:
            return read_ranges(ranges)
        except OSError as error:
            what_helps = (
                "allow more open files with `ulimit -n`" if error.errno == errno.EMFILE else "check its permissions"
            )
            path = error.filename or ranges[0].path
            raise UserError(f"cannot read {path}: {error.strerror}; {what_helps}") from error

    @property
    def _remedy(self) -> str:
        return f"remove {self._folder} and {self._again}"


AnyDocuments = Documents | ArrayRecordDocuments


class _Kept(Generic[Key, Value]):
    """What was last used, up to a number of bytes; for any number of threads."""

    def __init__(self, max_bytes: int):
        self._values: collections.OrderedDict[Key, tuple[Value, int]] = collections.OrderedDict()  # last used last
        self._lock, self._max_bytes, self.num_bytes = threading.Lock(), max_bytes, 0

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Key, value: Value, num_bytes: int) -> None:
        """Keeps a value, in the place of others where there is no room."""
        with self._lock:
            if key in self._values:
                self.num_bytes -= self._values.pop(key)[1]
            self._values[key] = value, num_bytes
            self.num_bytes += num_bytes
            while self.num_bytes > self._max_bytes and len(self._values) > 1:
                self.num_bytes -= self._values.popitem(last=False)[1][1]


def _spans(text: StoredText) -> Iterable[UnitSpan]:
    first = 0
    for shard in text.shards:
        yield UnitSpan(first, shard.num_documents, text.unit_documents)
        first += shard.num_documents


def _read_store(folder: epath.Path) -> Manifest:
    """The manifest of a whole store. Raises UserError for any other."""
    if not (folder / MANIFEST).exists():
        reason = "the ingest into it was cut off" if (folder / PARTIAL).exists() else f"it has no {MANIFEST}"
        raise UserError(f"{folder} is not a corpus: {reason}; make one with `toklab ingest SOURCE... --out {folder}`")
    value = read_json(folder / MANIFEST, "corpus manifest", MAX_MANIFEST_BYTES)
    old = isinstance(value, dict) and value.get("format") == array_record_manifest.FORMAT
    manifest = (read_old_manifest if old else read_manifest)(folder / MANIFEST, value)
    check_files(folder, [shard for text in manifest.texts for shard in text.shards], AGAIN)
    return manifest
