"""Row streams: documents -> batches, in one order for every representation, resumable from a few integers a row.

The way of the data, step by step; each step's state is what the next needs to go on exactly:

1. Every source (a corpus split) is put in a seeded global shuffle, newly shuffled each epoch. State: none, the n-th document is
   a pure function of (seed, n).
2. Row r of a global batch of B rows is its own endless stream. Its d-th draw comes from source `draw_source(seed, r, d)`; from
   that source it reads documents r, r + B, r + 2B, ... of the shuffled order. State: how many documents of each source it has
   finished.
3. A document of n ids is the n + 1 positions (eod -> x1), (x1 -> x2), ..., (xn -> eod): every id, and the document's end, is a
   target exactly once. State: how many of them are done.
4. A row takes the next T positions of its stream; where a document ends the next begins. Attention stays in a document by
   `segment_ids`, and `num_bytes` says how many source bytes the targets carry.

So the cursor of a row is `i32[S + 1]`: documents finished per source, and positions done in the current document. It does not know
how many hosts there are, how long T is, or how many workers encode.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import grain
import numpy as np

from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation

Batch = dict[str, np.ndarray]


class Documents(Protocol):
    """Random access to documents' bytes, such as `data.store.Documents`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One component of a data mixture: its documents and its share of the draws, relative to the other sources'."""

    documents: Documents
    weight: float = 1.0


def draw_source(seed: int, row: int, draw: int, weights: Sequence[float]) -> int:
    """The source that a row's `draw`-th document comes from: a pure function, so that a cursor need not remember it."""
    if len(weights) == 1:
        return 0
    digest = hashlib.blake2b(f"{seed}/{row}/{draw}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits, as 64 would round up to 1
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect_right(cumulative, uniform * cumulative[-1])


def document_positions(representation: Representation, document: bytes) -> tuple[np.ndarray, np.ndarray]:
    """A document as positions: i32[n + 2] ids between two end-of-document ids, and i64[n + 1] source bytes of each target."""
    ids = representation.encode(document)
    lengths = representation.byte_lengths(ids)
    assert lengths.sum() == len(document), f"{representation.kind}: byte lengths sum to {lengths.sum()}, the document has {len(document)}"
    eod = [representation.eod_id]
    return np.concatenate([eod, ids, eod]).astype(np.int32), np.append(lengths, 0)


class RowStreams(grain.IterDataset):
    """An endless dataset of batches for some rows of the global batch.

    Each batch is a dict of numpy arrays for the R rows asked for: `ids`, `targets`, `segment_ids` (1, 2, ... within the row),
    `positions` (from 0 in each piece of a document), all i32[R, T]; `num_bytes` i32[R]; and `cursors` i32[R, S + 1], from which the
    row goes on *after* this batch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        representation: Representation,
        *,
        batch_rows: int,
        sequence_length: int,
        seed: int,
        rows: Sequence[int] | None = None,
        cursors: np.ndarray | None = None,
        num_workers: int = 1,
    ):
        """
        Args:
          sources: what rows draw from.
          representation: turns documents into ids.
          batch_rows: B, the rows of the global batch.
          sequence_length: T.
          seed: of the shuffles and of the draws.
          rows: which of the B rows to read; all by default.
          cursors: i32[R, S + 1] from where to go on; the beginning by default.
          num_workers: threads that read and encode (tokenizers release the interpreter lock); changes nothing but the speed.
        """
        super().__init__()
        assert sources and batch_rows > 0 and sequence_length > 0 and num_workers > 0
        self.rows = tuple(range(batch_rows)) if rows is None else tuple(rows)
        assert all(0 <= row < batch_rows for row in self.rows), (rows, batch_rows)
        self.representation, self.batch_rows, self.sequence_length, self.seed = representation, batch_rows, sequence_length, seed
        self.weights = [source.weight for source in sources]
        if any(len(source.documents) == 0 for source in sources):
            raise UserError("a corpus without documents cannot be trained on; ingest some text into it, or take it out of the mixture")
        self.shuffled = [
            grain.MapDataset.source(source.documents).shuffle(seed=_shuffle_seed(seed, number)) for number, source in enumerate(sources)]
        self.cursors = np.zeros((len(self.rows), len(sources) + 1), np.int32) if cursors is None else np.array(cursors, np.int32)
        assert self.cursors.shape == (len(self.rows), len(sources) + 1), self.cursors.shape
        self.num_workers = num_workers

    def __iter__(self) -> "RowStreamIterator":
        return RowStreamIterator(self)


class RowStreamIterator(grain.DatasetIterator):
    """Iterates `RowStreams`; its state is the cursors."""

    def __init__(self, streams: RowStreams):
        super().__init__()
        self._rows = [_Row(streams, row, cursor) for row, cursor in zip(streams.rows, streams.cursors)]
        self._workers = concurrent.futures.ThreadPoolExecutor(streams.num_workers, thread_name_prefix="encode")

    def __next__(self) -> Batch:
        rows = list(self._workers.map(_Row.next_sequence, self._rows))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def get_state(self) -> dict:
        return {"cursors": np.stack([row.cursor for row in self._rows])}

    def set_state(self, state: dict) -> None:
        for row, cursor in zip(self._rows, state["cursors"], strict=True):
            row.move_to(cursor)


class _Row:
    """One row's stream. Only ever used by one thread at a time."""

    def __init__(self, streams: RowStreams, row: int, cursor: np.ndarray):
        self._streams, self._row = streams, row
        self.move_to(cursor)

    def move_to(self, cursor: np.ndarray) -> None:
        self.cursor = np.array(cursor, np.int32)
        self._ids: np.ndarray | None = None  # the current document, read when it is needed

    def next_sequence(self) -> Batch:
        streams, length = self._streams, self._streams.sequence_length
        out = {name: np.zeros(length, np.int32) for name in ("ids", "targets", "segment_ids", "positions")}
        filled, segment, num_bytes = 0, 0, 0
        while filled < length:
            source = self._open_document()
            start = int(self.cursor[-1])
            take = min(length - filled, len(self._ids) - 1 - start)
            segment += 1
            _put_piece(out, filled, self._ids[start : start + take + 1], segment)
            num_bytes += int(self._lengths[start : start + take].sum())
            filled += take
            self._advance(source, start + take)
        return out | {"num_bytes": np.int32(num_bytes), "cursors": self.cursor.copy()}

    def _open_document(self) -> int:
        """Reads and encodes the current document if that is not done; returns the source it comes from."""
        streams = self._streams
        source = draw_source(streams.seed, self._row, int(self.cursor[:-1].sum()), streams.weights)
        if self._ids is None:
            ordinal = self._row + streams.batch_rows * int(self.cursor[source])
            self._ids, self._lengths = document_positions(streams.representation, streams.shuffled[source][ordinal])
            assert self.cursor[-1] < len(self._lengths), f"position {self.cursor[-1]} of a document that has {len(self._lengths)}"
        return source

    def _advance(self, source: int, position: int) -> None:
        if position < len(self._ids) - 1:
            self.cursor[-1] = position
        else:
            self.cursor[source] += 1
            self.cursor[-1] = 0
            self._ids = None


def _put_piece(out: Batch, at: int, ids: np.ndarray, segment: int) -> None:
    """Writes the positions ids[i] -> ids[i + 1] of one document into a row, from position `at` on."""
    where = slice(at, at + len(ids) - 1)
    out["ids"][where], out["targets"][where] = ids[:-1], ids[1:]
    out["segment_ids"][where] = segment
    out["positions"][where] = np.arange(len(ids) - 1)


def _shuffle_seed(seed: int, source_number: int) -> int:
    digest = hashlib.blake2b(f"shuffle/{seed}/{source_number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def scoring_batches(
    documents: Iterable[tuple[int, bytes]], representation: Representation, *, batch_rows: int, sequence_length: int, num_workers: int = 1,
) -> Iterator[Batch]:
    """Batches that hold every position of every document exactly once, for evaluation.

    A document is cut from its own beginning into pieces of `sequence_length`, so that its score does not depend on its neighbours;
    what is left over shares rows with other documents' ends. Besides the training batch's arrays there is `documents` i32[B, T], the
    number given with each document (-1: padding), and `target_bytes` i32[B, T], the source bytes of each target.
    """
    with concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="encode") as workers:
        encoded = _map_ahead(workers, lambda item: (item[0], *document_positions(representation, item[1])), documents, ahead=4 * num_workers)
        all_rows = _scoring_rows(encoded, sequence_length)
        while rows := list(itertools.islice(all_rows, batch_rows)):
            rows += [_empty_scoring_row(sequence_length)] * (batch_rows - len(rows))
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _scoring_rows(encoded: Iterable[tuple[int, np.ndarray, np.ndarray]], length: int) -> Iterator[Batch]:
    shared, used, segment = _empty_scoring_row(length), 0, 0
    for number, ids, lengths in encoded:
        for start in range(0, len(lengths), length):
            piece, piece_bytes = ids[start : start + length + 1], lengths[start : start + length]
            if len(piece_bytes) == length:
                yield _scoring_row(_empty_scoring_row(length), 0, 1, number, piece, piece_bytes)
                continue
            if used + len(piece_bytes) > length:
                yield shared
                shared, used, segment = _empty_scoring_row(length), 0, 0
            segment += 1
            _scoring_row(shared, used, segment, number, piece, piece_bytes)
            used += len(piece_bytes)
    if used:
        yield shared


def _empty_scoring_row(length: int) -> Batch:
    row = {name: np.zeros(length, np.int32) for name in ("ids", "targets", "segment_ids", "positions", "target_bytes")}
    return row | {"documents": np.full(length, -1, np.int32)}


def _scoring_row(row: Batch, at: int, segment: int, number: int, ids: np.ndarray, target_bytes: np.ndarray) -> Batch:
    _put_piece(row, at, ids, segment)
    row["documents"][at : at + len(target_bytes)] = number
    row["target_bytes"][at : at + len(target_bytes)] = target_bytes
    return row


def _map_ahead(workers: concurrent.futures.Executor, function, items: Iterable, ahead: int) -> Iterator:
    """`map(function, items)` in order, at most `ahead` items being worked on: `Executor.map` would take all items at once."""
    pending: collections.deque = collections.deque()
    for item in items:
        pending.append(workers.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    yield from (future.result() for future in pending)
