"""Row streams: documents -> batches, in one order for every representation, resumable from a few integers a row.

The way of the data, step by step; each step's state is what the next needs to go on exactly:

1. Every source (a corpus split) is put in a seeded global shuffle, newly shuffled each epoch. State: none, the n-th
   document is a pure function of (seed, n).
2. Row r of a global batch of B rows is its own endless stream. Its d-th draw comes from the source that
   `draw_source(seed, r, d)` names (`data/document_order.py`); from that source it reads documents r, r + B, r + 2B, ...
   of the shuffled order. State: how many documents of each source it has finished.
3. A document of n ids is the n + 1 positions (eod -> x1), (x1 -> x2), ..., (xn -> eod): every id, and the document's
   end, is a target exactly once. State: how many of them are done.
4. A row takes the next T positions of its stream; where a document ends the next begins. Attention stays in a document
   by `segment_ids`, and `num_bytes` says how many source bytes the targets carry.

So the position of a row is S + 1 integers: documents finished per source, and positions done in the current document.
It does not know how many hosts there are, how long T is, or how many workers encode.

5. A row keeps a running hash of the documents it has finished (`data/document_hash.py`). State: the hash, two integers.

Together that is the cursor of a row, `i32[S + 3]`. Held-out text is cut in another way: `data/scoring_rows.py`.
"""

import abc
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from data.document_hash import HASH_WORDS, NoteHash, document_hash, is_noted, running_hash
from data.document_order import draw_hash, draw_source, shuffle_seed
from data.encoded import Encoded, EncodedDocuments, encode
from data.split import is_held_out
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation

Batch = dict[str, np.ndarray]

MAX_COUNT = 2**31 - 1  # what the int32 of a cursor or a batch holds
_MAX_PASSES_IN_VAIN = 20  # over all documents, by one row that finds none to train on


class Documents(Protocol):
    """Random access to documents' bytes, such as `data.store.Documents`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """One component of a data mixture: its documents and its share of the draws, relative to the other sources'.

    Documents with a place below `trained_from` are held out by another source, and drawn in vain (`data/split.py`).
    """

    documents: Documents
    weight: float = 1.0
    trained_from: float = 0.0


def cursor_width(num_sources: int) -> int:
    """Integers in a row's cursor: documents finished of each source, positions done in the current document, and the
    hash."""
    return num_sources + 1 + HASH_WORDS


def document_positions(representation: Representation, documents: Sequence[bytes]) -> list[Encoded]:
    """Documents as positions: i32[n + 2] ids between two end-of-document ids, and i64[n + 1] source bytes of each
    target."""
    eod = np.array([representation.eod_id], np.int32)
    return [
        (np.concatenate([eod, ids, eod]), np.append(lengths, 0)) for ids, lengths in encode(representation, documents)
    ]


class RowStreams(grain.IterDataset):
    """An endless dataset of batches for some rows of the global batch.

    Each batch is a dict of numpy arrays for the R rows asked for: `ids`, `targets`, `segment_ids` (1, 2, ... within the
    row), `positions` (from 0 in each piece of a document), all i32[R, T]; `num_bytes` i32[R]; and `cursors` i32[R, S +
    3], from which the row goes on *after* this batch.
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
        piece_length: int = 0,
        num_workers: int = 1,
        layout: "type[Row] | None" = None,
        note_hash: NoteHash = lambda row, num_documents, digest: None,
    ):
        """
        Args:
          sources: what rows draw from.
          representation: turns documents into ids.
          batch_rows: B, the rows of the global batch.
          sequence_length: T.
          seed: of the shuffles and of the draws.
          rows: which of the B rows to read; all by default.
          cursors: i32[R, S + 3] from where to go on; the beginning by default.
          piece_length: if not 0, documents are cut, from a random place on, into pieces of at most this many positions,
            none of which sees what is before it: each has a segment id of its own and begins with the end-of-document
            id.
          num_workers: threads that read and encode (tokenizers release the interpreter lock); changes nothing but the
            speed.
          layout: how rows are filled, `CausalRow` by default; those for encoders are in `data/encoder_rows.py`.
          note_hash: told a row's running hash, by the thread that fills it, where `is_noted` says so.
        """
        super().__init__()
        assert sources and batch_rows > 0 and sequence_length > 0 and num_workers > 0
        self.rows = tuple(range(batch_rows)) if rows is None else tuple(rows)
        assert all(0 <= row < batch_rows for row in self.rows), (rows, batch_rows)
        self.representation, self.batch_rows = representation, batch_rows
        self.sequence_length, self.seed = sequence_length, seed
        all_encoded = all(isinstance(source.documents, EncodedDocuments) for source in sources)
        self.documents_together = 1 if all_encoded else representation.batch_documents
        self.weights = [source.weight for source in sources]
        self.trained_from = [source.trained_from for source in sources]
        if any(len(source.documents) == 0 for source in sources):
            raise UserError(
                "a corpus without documents cannot be trained on; ingest some text into it, or take it out of the"
                " mixture"
            )
        self.shuffled = [
            grain.MapDataset.source(source.documents).shuffle(seed=shuffle_seed(seed, number))
            for number, source in enumerate(sources)
        ]
        shape = len(self.rows), cursor_width(len(sources))
        self.cursors = np.zeros(shape, np.int32) if cursors is None else np.array(cursors, np.int32)
        assert self.cursors.shape == shape, self.cursors.shape
        self.piece_length, self.num_workers = piece_length, num_workers
        self.layout, self.note_hash = layout or CausalRow, note_hash

    def __iter__(self) -> "RowStreamIterator":
        return RowStreamIterator(self)


class RowStreamIterator(grain.DatasetIterator):
    """Iterates `RowStreams`; its state is the cursors."""

    def __init__(self, streams: RowStreams):
        super().__init__()
        together = streams.documents_together
        num_workers = streams.num_workers if together == 1 else 1  # what encodes many at once has threads of its own
        self._workers = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="encode")
        self._rows: list[Row] = []
        encode = _EncodeOneByOne(streams) if together == 1 else _EncodeAhead(streams, together, self._rows)
        self._rows += [
            streams.layout(streams, row, cursor, encode) for row, cursor in zip(streams.rows, streams.cursors)
        ]

    def __next__(self) -> Batch:
        rows = list(self._workers.map(lambda row: row.next_sequence(), self._rows))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def close(self) -> None:
        """Ends the threads that encode, once they have done what they are at."""
        super().close()
        self._workers.shutdown()

    def get_state(self) -> dict[str, Any]:
        return {"cursors": np.stack([row.cursor for row in self._rows])}

    def set_state(self, state: dict[str, Any]) -> None:
        for row, cursor in zip(self._rows, state["cursors"], strict=True):
            row.move_to(cursor)


Draw = tuple[int, int]  # a source, and the number of a document in its shuffled order
Opened = tuple[bytes, Any]  # a document's hash, and the document as the layout takes it; None where it is held out


class _EncodeOneByOne:
    """Reads and encodes each document when its row opens it."""

    def __init__(self, streams: RowStreams):
        self._streams = streams

    def __call__(self, draw: Draw) -> Opened:
        return self._open([draw])[0]

    def _open(self, draws: Sequence[Draw]) -> list[Opened]:
        streams = self._streams
        documents = [streams.shuffled[source][ordinal] for source, ordinal in draws]
        hashes = [document_hash(*draw, document) for draw, document in zip(draws, documents)]
        trained = [not self._is_held_out(source, document) for (source, _), document in zip(draws, documents)]
        made = iter(streams.layout.encode(streams.representation, list(itertools.compress(documents, trained))))
        return [(digest, next(made) if is_trained else None) for digest, is_trained in zip(hashes, trained)]

    def _is_held_out(self, source: int, document: bytes) -> bool:
        trained_from = self._streams.trained_from[source]
        return trained_from > 0 and is_held_out(document, trained_from)


class _EncodeAhead(_EncodeOneByOne):
    """Encodes the next documents of all rows together, where that is faster. Only ever used by one thread at a time."""

    def __init__(self, streams: RowStreams, num_documents: int, rows: Sequence["Row"]):
        super().__init__(streams)
        self._num_documents, self._rows = num_documents, rows
        self._ready: dict[Draw, Opened] = {}

    def __call__(self, draw: Draw) -> Opened:
        if draw not in self._ready:
            per_row = -(-self._num_documents // len(self._rows))
            draws = [draw for row in self._rows for draw in row.next_draws(per_row) if draw not in self._ready]
            self._ready |= zip(draws, self._open(draws), strict=True)
        return self._ready.pop(draw)


class Row(abc.ABC):
    """One row's stream: where it stands, and the document that it is in. Only ever used by one thread at a time."""

    def __init__(self, streams: RowStreams, row: int, cursor: np.ndarray, open_: Callable[[Draw], Opened]):
        self.streams, self.row, self._open = streams, row, open_
        self.move_to(cursor)

    @staticmethod
    @abc.abstractmethod
    def encode(representation: Representation, documents: Sequence[bytes], /) -> list[Any]:
        """Documents in the form that `next_sequence` takes them in."""

    @abc.abstractmethod
    def next_sequence(self) -> Batch:
        """The next T positions, and the cursor behind them."""

    def move_to(self, cursor: np.ndarray) -> None:
        cursor = np.array(cursor, np.int32)
        self._finished, self.position = cursor[: -1 - HASH_WORDS], int(cursor[-1 - HASH_WORDS])
        self._hash = cursor[-HASH_WORDS:].tobytes()
        self._document: Any = None  # the current one, read when it is needed

    @property
    def cursor(self) -> np.ndarray:
        """i32[S + 3], where the row stands."""
        return np.concatenate([self._finished, [self.position], np.frombuffer(self._hash, np.int32)], dtype=np.int32)

    def next_draws(self, count: int) -> list[Draw]:
        """What the row draws next, the current document first unless it is open."""
        streams, finished = self.streams, self._finished.astype(np.int64)
        draws = []
        for _ in range(count + (self._document is not None)):
            source = draw_source(streams.seed, self.row, int(finished.sum()), streams.weights)
            draws.append((source, self.row + streams.batch_rows * int(finished[source])))
            finished[source] += 1
        return draws[self._document is not None :]

    def open_document(self) -> Any:
        """The current document, read and encoded if that is not done; those that are held out are passed over."""
        num_passed = 0
        while self._document is None:
            [draw] = self.next_draws(1)
            self._source = draw[0]
            self._document_hash, self._document = self._open(draw)
            if self._document is None:
                self.advance(0, 0)
                num_passed += 1
                self._check_passed(num_passed)
        return self._document

    def _check_passed(self, num_passed: int) -> None:
        num_documents = sum(map(len, self.streams.shuffled))
        if num_passed > _MAX_PASSES_IN_VAIN * num_documents + 100:
            raise UserError(
                f"of the {num_documents:,} documents of the mixture, row {self.row} has met none that no corpus holds"
                " out; ingest more text, or hold out a smaller share of it with --test-fraction"
            )

    def advance(self, position: int, end: int) -> None:
        """Moves to a position of the current document, or to the next document if that is its end."""
        self.position = check_count(position, "the position in a document")
        if position < end:
            return
        check_count(int(self._finished[self._source]) + 1, "the number of documents that a row has finished")
        self._finished[self._source] += 1
        self.position, self._document = 0, None
        self._hash = running_hash(self._hash, self._document_hash)
        if is_noted(num_documents := int(self._finished.sum())):
            self.streams.note_hash(self.row, num_documents, self._hash)

    def chance(self, *what: str) -> int:
        """64 bits that stand for chance, of the document the row is in."""
        return draw_hash(self.streams.seed, self.row, int(self._finished.sum()), *what)


class CausalRow(Row):
    """Each id, and the end of each document, is the target of the position before it."""

    encode = staticmethod(document_positions)

    def next_sequence(self) -> Batch:
        streams, length = self.streams, self.streams.sequence_length
        out = {name: np.zeros(length, np.int32) for name in ("ids", "targets", "segment_ids", "positions")}
        filled, segment, num_bytes = 0, 0, 0
        while filled < length:
            ids, lengths = self.open_document()
            start = self.position
            if start >= len(lengths):  # a cursor may come from a stranger's checkpoint
                raise AssertionError(f"position {start} of a document that has {len(lengths)}")
            take = min(length - filled, self._end_of_piece(start, len(lengths)) - start)
            segment += 1
            put_piece(out, filled, ids[start : start + take + 1], segment)
            if streams.piece_length:
                out["ids"][filled] = streams.representation.eod_id
            num_bytes += int(lengths[start : start + take].sum())
            filled += take
            self.advance(start + take, len(lengths))
        return out | {"num_bytes": np.array(check_count(num_bytes, "bytes in a row"), np.int32), "cursors": self.cursor}

    def _end_of_piece(self, position: int, end: int) -> int:
        """Where the document, or the piece of it that `position` is in, ends."""
        length = self.streams.piece_length
        if not length:
            return end
        first_end = 1 + self.chance("piece") % length
        return min(end, position + length - (position - first_end) % length)


def check_count(count: int, what: str) -> int:
    """The count. Raises UserError for more than a cursor or a batch can hold."""
    if count > MAX_COUNT:
        raise UserError(
            f"{what} is {count:,}, at most {MAX_COUNT:,} can be counted; ingest shorter documents, e.g. with"
            " --separator, or train with more rows or a shorter --data.sequence-length"
        )
    return count


def put_piece(out: Batch, at: int, ids: np.ndarray, segment: int) -> None:
    """Writes the positions ids[i] -> ids[i + 1] of one document into a row, from position `at` on."""
    where = slice(at, at + len(ids) - 1)
    out["ids"][where], out["targets"][where] = ids[:-1], ids[1:]
    out["segment_ids"][where] = segment
    out["positions"][where] = np.arange(len(ids) - 1)
