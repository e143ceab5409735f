"""Reads the documents of corpora of format 2, which earlier versions wrote: ArrayRecord shards, a record a document.

CORPUS/<domain>-<train|test>-00000.array_record     zstd, readable in any order
"""

import collections
import errno
import itertools
import operator
import os
import resource
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from data.manifest import Shard, StoredText, content_hash_of
from data.shards import WHOLE
from data.split import document_key
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import fetch

_MAX_READERS = 1024  # each has a buffer


class ArrayRecordDocuments(Sequence[bytes]):
    """Documents by index, for any number of threads; fit for `grain.MapDataset.source` and to be pickled.

    Attributes:
      num_bytes: of all documents together.
      content_hash: over all of them in order, with their domain and split.
    """

    block_documents = 1

    def __init__(self, folder: epath.Path, texts: Sequence[StoredText], cache: epath.Path | None, again: str):
        """
        Args:
          folder: where the files are.
          texts: whose documents, one after the other.
          cache: where shards of an object store are copied to before they are read; None for those of this machine.
          again: what to do where they are damaged.
        """
        self._folder, self._texts, self._again = folder, tuple(texts), again
        self._shards = shards = [shard for text in texts for shard in text.shards]
        self._cache = cache
        self._here = cache or folder
        self._remedy = f"remove {self._here} and {'start again' if cache else again}"
        self._ends = list(itertools.accumulate(shard.num_documents for shard in shards))
        self._readers: collections.OrderedDict[int, ArrayRecordReader] = collections.OrderedDict()  # last used last
        self._lock, self._opening = threading.Lock(), collections.defaultdict[int, threading.Lock](threading.Lock)
        self.num_bytes = sum(shard.num_bytes for shard in shards)
        self.content_hash = content_hash_of(texts)

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecordDocuments, (self._folder, self._texts, self._cache, self._again)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # nobody takes slices
        """The bytes of a document. Raises UserError, naming shard and record, if they are damaged on disk."""
        shard_index, record = self._locate(index)
        return self._read(self._reader(shard_index), index, record)

    def read_many(self, indices: Iterable[int]) -> list[bytes]:
        """Documents in the order asked for. Raises UserError as for one of them."""
        index_n = np.array(list(indices), np.int64)
        if len(index_n) and not 0 <= index_n.min() <= index_n.max() < len(self):
            raise IndexError(f"documents {index_n.min()} to {index_n.max()} of {len(self)}")
        shard_n = np.searchsorted(self._ends, index_n, side="right")
        texts = [b""] * len(index_n)
        for shard_index in np.unique(shard_n).tolist():
            reader, first = self._reader(shard_index), self._ends[shard_index] - self._shards[shard_index].num_documents
            for number in np.flatnonzero(shard_n == shard_index).tolist():
                index = int(index_n[number])
                texts[number] = self._read(reader, index, index - first)
        return texts

    def _read(self, reader: ArrayRecordReader, index: int, record: int) -> bytes:
        try:
            return reader.read(record, record + 1)[0]  # `read([record])` takes four times as long
        except Exception as error:  # array_record has no error type of its own
            raise UserError(f"{self.place(index)} is damaged ({error}); {self._remedy}") from error

    def read_block(self, number: int) -> list[bytes]:
        """A block, which is one document."""
        return [self[number]]

    def key(self, index: int) -> bytes:
        """The first 16 bytes of sha256 of a document."""
        return document_key(self[index])

    def part(self, index: int) -> int:
        """No document of such a corpus was cut."""
        return WHOLE

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
        if reader := self._opened(shard_index):
            return reader
        with self._lock:
            opening = self._opening[shard_index]
        with opening:  # by one thread; others go on with other shards
            if reader := self._opened(shard_index):
                return reader
            reader = self._open_reader(self._shards[shard_index])
            with self._lock:
                self._readers[shard_index] = reader
                while len(self._readers) > max_open_readers():
                    self._readers.popitem(last=False)  # closed when no thread reads from it any more
        return reader

    def _opened(self, shard_index: int) -> ArrayRecordReader | None:
        with self._lock:
            if shard_index in self._readers:
                self._readers.move_to_end(shard_index)
            return self._readers.get(shard_index)

    def _open_reader(self, shard: Shard) -> ArrayRecordReader:
        path = self._here / shard.file
        if self._cache and not (path.exists() and path.stat().length == shard.file_bytes):
            fetch(self._folder / shard.file, path)  # ArrayRecord's library reads files of this machine only
        return _open_reader(path, shard, self._remedy)


def max_open_readers() -> int:
    """How many shards of a split are open at a time: a corpus has more than a process may open files, and a run reads
    from several splits and folders of ids."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_READERS if soft == resource.RLIM_INFINITY else min(_MAX_READERS, max(1, soft // 16))


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
        os.fspath(path), "readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=4 << 10
    )
    if reader.num_records() != shard.num_documents:
        raise UserError(
            f"{path} is damaged: {reader.num_records()} documents can be found, {shard.num_documents} should be there;"
            f" {remedy}"
        )
    return reader
