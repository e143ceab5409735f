"""Sorted runs: the documents of some inputs in the order of their keys, from which shards are merged.

Documents of one domain and split, a *text*, are ordered by (key, part). Keys are hashes, so that a *bucket*, the keys
with the same first 16 bits, is a random 65,536th of a text. How much text is in each bucket is what decides where
shards begin (`data/layout.py`).
"""

import base64
import collections
import dataclasses
import heapq
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from etils import epath

from data.manifest import Rule, Text
from data.reading import Document
from data.shards import WHOLE, Damaged, UnitFile, compressor, decode_footer, decompress, footer_bytes
from data.split import are_held_out, document_key
from data.storage import Range, new_file, read_ranges

NUM_BUCKETS = 1 << 16
_BUCKET_SHIFT = np.uint64(48)
_LEVEL = -5  # of zstd: runs are read once
_UNIT_BYTES = 128 << 10  # of text
_DOCUMENT_BYTES = 150  # that a document takes in memory beside its text
_WINDOW_BYTES = 256 << 20  # of all runs' units that wait to be decompressed, where that is more than a unit each
MERGE_BYTES = 64 << 20  # of text that is sorted at a time
_TAILS_TOGETHER = 256  # of runs, that are read at a time


class Columns(NamedTuple):
    """Documents of one text.

    high, low: u64[n], the two halves of each key, which is big-endian.
    part: i64[n].
    """

    high: np.ndarray
    low: np.ndarray
    part: np.ndarray
    documents: list[bytes]

    @property
    def bucket(self) -> np.ndarray:
        return (self.high >> _BUCKET_SHIFT).astype(np.int64)

    @property
    def sizes(self) -> np.ndarray:
        """i64[n] bytes."""
        return np.fromiter(map(len, self.documents), np.int64, len(self.documents))

    def key(self, number: int) -> bytes:
        return int(self.high[number]).to_bytes(8) + int(self.low[number]).to_bytes(8)

    def place(self, number: int) -> tuple[int, int, int]:
        """By which documents are ordered."""
        return int(self.high[number]), int(self.low[number]), int(self.part[number])

    def take(self, order: np.ndarray) -> "Columns":
        documents = [self.documents[number] for number in order.tolist()]
        return Columns(self.high[order], self.low[order], self.part[order], documents)

    def cut(self, start: int, end: int) -> "Columns":
        return Columns(self.high[start:end], self.low[start:end], self.part[start:end], self.documents[start:end])

    def sorted(self) -> "Columns":
        order = np.argsort(self.high, kind="stable")
        in_order = self.high[order]
        if (in_order[1:] == in_order[:-1]).any():
            order = np.lexsort((self.part, self.low, self.high))
        return self.take(order)

    def num_up_to(self, place: tuple[int, int, int]) -> int:
        """How many come no later than a place, of sorted documents."""
        high, low, part = np.uint64(place[0]), np.uint64(place[1]), place[2]
        start, end = np.searchsorted(self.high, high), np.searchsorted(self.high, high, "right")
        lows, parts = self.low[start:end], self.part[start:end]
        return int(start + np.count_nonzero((lows < low) | ((lows == low) & (parts <= part))))


def joined(columns: Sequence[Columns]) -> Columns:
    documents: list[bytes] = []
    for one in columns:
        documents += one.documents
    high, low, part = (np.concatenate(parts) for parts in zip(*((one.high, one.low, one.part) for one in columns)))
    return Columns(high, low, part, documents)


@dataclasses.dataclass
class Histogram:
    """How much text is in each bucket.

    Attributes:
      documents, num_bytes: i64[NUM_BUCKETS].
      key_sum: of all keys, which tells texts apart whatever their order.
    """

    documents: np.ndarray
    num_bytes: np.ndarray
    key_sum: int

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(NUM_BUCKETS, np.int64), np.zeros(NUM_BUCKETS, np.int64), 0)

    def add(self, other: "Histogram") -> None:
        self.documents += other.documents
        self.num_bytes += other.num_bytes
        self.key_sum = (self.key_sum + other.key_sum) % (1 << 128)

    def subtract(self, other: "Histogram") -> None:
        self.documents -= other.documents
        self.num_bytes -= other.num_bytes
        self.key_sum = (self.key_sum - other.key_sum) % (1 << 128)

    def count(self, columns: Columns) -> None:
        """Adds documents."""
        buckets = columns.bucket
        self.documents += np.bincount(buckets, minlength=NUM_BUCKETS)
        # In floats of 64 bits, which are exact up to 2^53 bytes.
        self.num_bytes += np.bincount(buckets, columns.sizes, NUM_BUCKETS).astype(np.int64)
        halves = (sum_of(columns.high) << 64) + sum_of(columns.low)
        self.key_sum = (self.key_sum + halves) % (1 << 128)

    def to_json(self) -> list[Any]:
        filled = np.flatnonzero(self.documents)
        arrays = filled, self.documents[filled], self.num_bytes[filled]
        return [*(base64.b64encode(array.astype("<i8").tobytes()).decode() for array in arrays), self.key_sum]

    @classmethod
    def from_json(cls, value: list[Any]) -> Self:
        filled, documents, num_bytes = (np.frombuffer(base64.b64decode(text), "<i8") for text in value[:3])
        histogram = cls.empty()
        histogram.documents[filled], histogram.num_bytes[filled] = documents, num_bytes
        histogram.key_sum = value[3]
        return histogram


def sum_of(values: np.ndarray) -> int:
    """Of u64[n], without wrapping."""
    return (int((values >> np.uint64(32)).sum()) << 32) + int((values & np.uint64(0xFFFFFFFF)).sum())


# ---- Writing -------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Waiting:
    """Documents of a text that are not in a run yet."""

    keys: list[bytes] = dataclasses.field(default_factory=list)
    parts: list[int] = dataclasses.field(default_factory=list)
    documents: list[bytes] = dataclasses.field(default_factory=list)

    def columns(self) -> Columns:
        high, low = np.frombuffer(b"".join(self.keys), ">u8").astype(np.uint64).reshape(-1, 2).T
        return Columns(high, low, np.array(self.parts, np.int64), self.documents)


@dataclasses.dataclass(frozen=True)
class RunFile:
    """A run that was written: a file of units, the last of which is a table of the others."""

    file: str
    file_bytes: int
    table_bytes: int
    num_units: int
    texts: list[Text]
    """The table has their numbers."""

    @property
    def tail_bytes(self) -> int:
        return self.table_bytes + footer_bytes(self.num_units)


class RunWriter:
    """Takes documents in any order and writes a run whenever there are `run_bytes` of them."""

    def __init__(self, folder: epath.Path, name: str, test_fraction: float, run_bytes: int):
        """
        Args:
          folder, name: of the runs.
          test_fraction: of documents that bring no split.
          run_bytes: of documents in a run, as they are in memory.
        """
        self._test_fraction = test_fraction
        self._folder, self._name, self._run_bytes = folder, name, run_bytes
        self._waiting = collections.defaultdict[Text, _Waiting](_Waiting)
        self._waiting_bytes = 0
        self.runs: list[RunFile] = []
        self.rule: Rule = "hash"
        self.histograms: dict[Text, Histogram] = {}

    def add(self, documents: Sequence[Document]) -> None:
        """Takes documents. Raises OSError or UserError where a run cannot be written."""
        if not documents:
            return
        keys = [part[0] if part else document_key(text) for _, _, text, part in documents]
        held_out = are_held_out(np.frombuffer(b"".join(keys), ">u8")[::2], self._test_fraction).tolist()
        for (domain, split, text, part), key, is_held_out in zip(documents, keys, held_out):
            if split is None:
                split = "test" if is_held_out else "train"
            else:
                self.rule = "given"
            waiting = self._waiting[domain, split]
            waiting.keys.append(key)
            waiting.parts.append(part[1] if part else WHOLE)
            waiting.documents.append(text)
            self._waiting_bytes += len(text) + _DOCUMENT_BYTES
        if self._waiting_bytes >= self._run_bytes:
            self.close()

    def close(self) -> None:
        """Writes what waits."""
        if not self._waiting:
            return
        by_text, self._waiting_bytes = dict(self._waiting), 0
        self._waiting.clear()
        file = f"{self._name}-{len(self.runs):05d}.run"
        texts, table = sorted(by_text), list[tuple[int, ...]]()
        with new_file(self._folder / file, sync=False) as opened:
            units, compress = UnitFile(opened), compressor(_LEVEL)
            for number, text in enumerate(texts):
                columns = by_text.pop(text).columns().sorted()
                self.histograms.setdefault(text, Histogram.empty()).count(columns)
                for start, end in _cut_by_bytes(columns.sizes):
                    part = columns.cut(start, end)
                    units.write(compress(_encode(part)))
                    table.append((number, int(part.bucket[0]), int(part.bucket[-1]), int(part.sizes.sum())))
            units.write(compress(np.array(table, "<i8").tobytes()))
            file_bytes = units.close()
        self.runs.append(RunFile(file, file_bytes, units.sizes[-1], len(units.sizes), texts))


def _cut_by_bytes(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of documents that have `_UNIT_BYTES` or a bit more together."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        end = min(len(sizes), int(np.searchsorted(ends, before + _UNIT_BYTES)) + 1)
        yield start, end
        start = end


def _encode(columns: Columns) -> bytes:
    head = [np.array([len(columns.documents)], "<i8"), columns.high, columns.low, columns.part, columns.sizes]
    return b"".join([*(array.tobytes() for array in head), *columns.documents])


def _decode(frame: bytes, num_bytes: int, first_bucket: int, end_bucket: int) -> tuple[Columns, tuple[int, int, int]]:
    """Of a run's unit the documents in some buckets, and the place of its last document."""
    content = decompress(frame, 1 << 62)
    count = int.from_bytes(content[:8], "little")
    high, low = np.frombuffer(content, "<u8", 2 * count, 8).reshape(2, -1)
    part, sizes = np.frombuffer(content, "<i8", 2 * count, 8 + 16 * count).reshape(2, -1)
    ends = 8 + 32 * count + np.cumsum(sizes)
    if ends[-1] != len(content) or sizes.sum() != num_bytes:
        raise Damaged("a unit of a run is not as large as it says")
    whole = Columns(high, low, part, [])
    start, end = np.searchsorted(whole.bucket, [first_bucket, end_bucket]).tolist()
    edges = [int(ends[start] - sizes[start]) if start < count else 0, *ends[start:end].tolist()]
    documents = [content[a:b] for a, b in zip(edges, edges[1:])]
    return Columns(high[start:end], low[start:end], part[start:end], documents), whole.place(-1)


# ---- Merging -------------------------------------------------------------------------------------


class _Stretch:
    """The units of a run that hold documents of a text in some buckets, read a window at a time."""

    def __init__(self, path: str, units: np.ndarray):
        """`units`: i64[u, 3], where each begins, its size, and its bytes of text."""
        self.path, self._units = path, units
        self._frames: collections.deque[bytes] = collections.deque()
        self._next = 0

    @property
    def needs_more(self) -> bool:
        return not self._frames and self._next < len(self._units)

    def window(self, num_bytes: int) -> Range:
        """The next units that have so many bytes together, or one."""
        starts, sizes = self._units[self._next :, 0], self._units[self._next :, 1]
        count = max(1, int(np.searchsorted(starts + sizes - starts[0], num_bytes, "right")))
        return Range(self.path, int(starts[0]), int(sizes[:count].sum()))

    def put(self, content: bytes) -> None:
        """Takes what is in a window."""
        at = 0
        while at < len(content):
            size = int(self._units[self._next + len(self._frames), 1])
            self._frames.append(content[at : at + size])
            at += size
        self._next += len(self._frames)

    def pop(self) -> tuple[bytes, int] | None:
        """The next unit's frame and its bytes of text."""
        if not self._frames:
            return None
        return self._frames.popleft(), int(self._units[self._next - len(self._frames) - 1, 2])


def merged(
    folder: epath.Path,
    runs: Sequence[RunFile],
    text: Text,
    first_bucket: int,
    end_bucket: int,
    merge_bytes: int = MERGE_BYTES,
) -> Iterator[Columns]:
    """Yields the documents of a text in buckets `first_bucket` to `end_bucket - 1`, in order.

    Holds `merge_bytes` of text, and a unit of each run.

    Raises:
      UserError, OSError: a run cannot be read.
      Damaged: one is not what it was.
    """
    stretches = _stretches(folder, [run for run in runs if text in run.texts], text, first_bucket, end_bucket)
    window_bytes = _WINDOW_BYTES // max(1, len(stretches))
    nothing = (-1, 0, 0)
    behind = [(nothing, number) for number in range(len(stretches))]  # the last place that was read of each, as a heap
    pool: list[Columns] = []
    while behind or pool:
        num_read = 0
        while behind and num_read < merge_bytes:
            _, number = heapq.heappop(behind)
            if stretches[number].needs_more:
                _read_on(stretches, window_bytes)
            if unit := stretches[number].pop():
                columns, last = _decode(*unit, first_bucket, end_bucket)
                pool.append(columns)
                num_read += unit[1]
                heapq.heappush(behind, (last, number))
        if not pool:
            return
        everything = joined(pool).sorted()
        count = everything.num_up_to(behind[0][0]) if behind and behind[0][0] != nothing else 0
        count = count if behind else len(everything.documents)
        if count:
            yield everything.cut(0, count)
        pool = [everything.cut(count, len(everything.documents))] if behind else []


def _stretches(
    folder: epath.Path, runs: Sequence[RunFile], text: Text, first_bucket: int, end_bucket: int
) -> list[_Stretch]:
    stretches = []
    for run, tail in _tails(folder, runs):
        edges = decode_footer(tail[run.table_bytes :], run.num_units, run.file_bytes)
        table = np.frombuffer(decompress(tail[: run.table_bytes], 1 << 62), "<i8").reshape(-1, 4)
        number = run.texts.index(text)
        wanted = np.flatnonzero((table[:, 0] == number) & (table[:, 1] < end_bucket) & (table[:, 2] >= first_bucket))
        if len(wanted):
            units = np.stack([edges[wanted], edges[wanted + 1] - edges[wanted], table[wanted, 3]], axis=1)
            stretches.append(_Stretch(os.fspath(folder / run.file), units))
    return stretches


def _tails(folder: epath.Path, runs: Sequence[RunFile]) -> Iterator[tuple[RunFile, bytes]]:
    for start in range(0, len(runs), _TAILS_TOGETHER):
        some = runs[start : start + _TAILS_TOGETHER]
        ranges = [Range(os.fspath(folder / run.file), run.file_bytes - run.tail_bytes, run.tail_bytes) for run in some]
        yield from zip(some, read_ranges(ranges), strict=True)


def _read_on(stretches: Sequence[_Stretch], window_bytes: int) -> None:
    """Reads the next window of all that need one: an object store's at the same time."""
    hungry = [stretch for stretch in stretches if stretch.needs_more]
    for stretch, content in zip(hungry, read_ranges([stretch.window(window_bytes) for stretch in hungry]), strict=True):
        stretch.put(content)
