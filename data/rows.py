"""Row streams: documents -> batches, in one order for every representation, resumable from a few integers a row.

The way of the data, step by step; each step's state is what the next needs to go on exactly:

1. Every source (a corpus split) is put in a seeded global shuffle, newly shuffled each epoch. State: none, the n-th
document is
   a pure function of (seed, n).
2. Row r of a global batch of B rows is its own endless stream. Its d-th draw comes from source `draw_source(seed, r,
d)`; from
   that source it reads documents r, r + B, r + 2B, ... of the shuffled order. State: how many documents of each source
   it has finished.
3. A document of n ids is the n + 1 positions (eod -> x1), (x1 -> x2), ..., (xn -> eod): every id, and the document's
end, is a
   target exactly once. State: how many of them are done.
4. A row takes the next T positions of its stream; where a document ends the next begins. Attention stays in a document
by
   `segment_ids`, and `num_bytes` says how many source bytes the targets carry.

So the position of a row is S + 1 integers: documents finished per source, and positions done in the current document.
It does not know how many hosts there are, how long T is, or how many workers encode.

5. A row keeps a running hash of the documents it has finished, of their numbers and their bytes, one after the other:
two runs whose hashes
   agree after n documents have read the same n documents in the same order, whatever they encode them to. State: the
   hash, two integers.

Together that is the cursor of a row, `i32[S + 3]`.
"""

import abc
import bisect
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from data.encoded import Encoded, EncodedDocuments, encode
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


_HASH_WORDS = 2


def cursor_width(num_sources: int) -> int:
    """Integers in a row's cursor: documents finished of each source, positions done in the current document, and the
    hash."""
    return num_sources + 1 + _HASH_WORDS


def draw_source(seed: int, row: int, draw: int, weights: Sequence[float]) -> int:
    """The source that a row's `draw`-th document comes from: a pure function, so that a cursor need not remember it."""
    if len(weights) == 1:
        return 0
    uniform = (_draw_hash(seed, row, draw) >> 11) / 2**53  # 53 bits, as 64 would round up to 1
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect_right(cumulative, uniform * cumulative[-1])


def _draw_hash(seed: int, row: int, draw: int, *what: str) -> int:
    """64 bits that stand for chance."""
    digest = hashlib.blake2b("/".join(map(str, (seed, row, draw, *what))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


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
        note_hash: "NoteHash" = lambda row, num_documents, digest: None,
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
            none of
            which sees what is before it: each has a segment id of its own and begins with the end-of-document id.
          num_workers: threads that read and encode (tokenizers release the interpreter lock); changes nothing but the
            speed.
          layout: how rows are filled, `CausalRow` by default; those for encoders are in `data/encoder_rows.py`.
          note_hash: told a row's running hash, by the thread that fills it, where `is_noted` says so.
        """
        super().__init__()
        assert sources and batch_rows > 0 and sequence_length > 0 and num_workers > 0
        self.rows = tuple(range(batch_rows)) if rows is None else tuple(rows)
        assert all(0 <= row < batch_rows for row in self.rows), (rows, batch_rows)
        self.representation, self.batch_rows, self.sequence_length, self.seed = (
            representation,
            batch_rows,
            sequence_length,
            seed,
        )
        all_encoded = all(isinstance(source.documents, EncodedDocuments) for source in sources)
        self.documents_together = 1 if all_encoded else representation.batch_documents
        self.weights = [source.weight for source in sources]
        if any(len(source.documents) == 0 for source in sources):
            raise UserError(
                "a corpus without documents cannot be trained on; ingest some text into it, or take it out of the"
                " mixture"
            )
        self.shuffled = [
            grain.MapDataset.source(source.documents).shuffle(seed=_shuffle_seed(seed, number))
            for number, source in enumerate(sources)
        ]
        shape = len(self.rows), cursor_width(len(sources))
        self.cursors = np.zeros(shape, np.int32) if cursors is None else np.array(cursors, np.int32)
        assert self.cursors.shape == shape, self.cursors.shape
        self.piece_length, self.num_workers, self.layout, self.note_hash = (
            piece_length,
            num_workers,
            layout or CausalRow,
            note_hash,
        )

    def __iter__(self) -> "RowStreamIterator":
        return RowStreamIterator(self)


class RowStreamIterator(grain.DatasetIterator):
    """Iterates `RowStreams`; its state is the cursors."""

    def __init__(self, streams: RowStreams):
        super().__init__()
        together, self._rows = streams.documents_together, []
        encode = _EncodeOneByOne(streams) if together == 1 else _EncodeAhead(streams, together, self._rows)
        self._rows += [
            streams.layout(streams, row, cursor, encode) for row, cursor in zip(streams.rows, streams.cursors)
        ]
        num_workers = streams.num_workers if together == 1 else 1  # what encodes many at once has threads of its own
        self._workers = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="encode")

    def __next__(self) -> Batch:
        rows = list(self._workers.map(lambda row: row.next_sequence(), self._rows))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def get_state(self) -> dict:
        return {"cursors": np.stack([row.cursor for row in self._rows])}

    def set_state(self, state: dict) -> None:
        for row, cursor in zip(self._rows, state["cursors"], strict=True):
            row.move_to(cursor)


Draw = tuple[int, int]  # a source, and the number of a document in its shuffled order
Opened = tuple[bytes, Any]  # a document's hash, and the document as the layout takes it


class _EncodeOneByOne:
    """Reads and encodes each document when its row opens it."""

    def __init__(self, streams: RowStreams):
        self._streams = streams

    def __call__(self, draw: Draw) -> Opened:
        return self._open([draw])[0]

    def _open(self, draws: Sequence[Draw]) -> list[Opened]:
        documents = [self._streams.shuffled[source][ordinal] for source, ordinal in draws]
        hashes = [
            _hash(f"{source}/{ordinal}/".encode(), document) for (source, ordinal), document in zip(draws, documents)
        ]
        return list(zip(hashes, self._streams.layout.encode(self._streams.representation, documents), strict=True))


class _EncodeAhead(_EncodeOneByOne):
    """Encodes the next documents of all rows together, where that is faster. Only ever used by one thread at a time."""

    def __init__(self, streams: RowStreams, num_documents: int, rows: Sequence["Row"]):
        super().__init__(streams)
        self._num_documents, self._rows, self._ready = num_documents, rows, {}

    def __call__(self, draw: Draw) -> Opened:
        if draw not in self._ready:
            per_row = -(-self._num_documents // len(self._rows))
            draws = [draw for row in self._rows for draw in row.next_draws(per_row) if draw not in self._ready]
            self._ready |= zip(draws, self._open(draws), strict=True)
        return self._ready.pop(draw)


NoteHash = Callable[[int, int, bytes], None]  # of a row, the documents it has finished, and their running hash


def is_noted(num_documents: int) -> bool:
    """Whether a row's hash after so many documents is noted: where that number has three binary digits and then zeros,
    or is below 8.

    Few are kept, and of two rows that have come to n documents or further, both have noted one of more than 4/5 n, or
    of n itself.
    """
    return num_documents % (1 << max(0, num_documents.bit_length() - 3)) == 0


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=4 * _HASH_WORDS)
    for part in parts:
        digest.update(part)
    return digest.digest()


class Row(abc.ABC):
    """One row's stream: where it stands, and the document that it is in. Only ever used by one thread at a time."""

    def __init__(self, streams: RowStreams, row: int, cursor: np.ndarray, open_: Callable[[Draw], Opened]):
        self.streams, self.row, self._open = streams, row, open_
        self.move_to(cursor)

    @staticmethod
    @abc.abstractmethod
    def encode(representation: Representation, documents: Sequence[bytes]) -> list[Any]:
        """Documents in the form that `next_sequence` takes them in."""

    @abc.abstractmethod
    def next_sequence(self) -> Batch:
        """The next T positions, and the cursor behind them."""

    def move_to(self, cursor: np.ndarray) -> None:
        cursor = np.array(cursor, np.int32)
        self._finished, self.position = cursor[: -1 - _HASH_WORDS], int(cursor[-1 - _HASH_WORDS])
        self._hash = cursor[-_HASH_WORDS:].tobytes()
        self._document: Any = None  # the current one, read when it is needed

    @property
    def cursor(self) -> np.ndarray:
        """i32[S + 3], where the row stands."""
        return np.concatenate([self._finished, [self.position], np.frombuffer(self._hash, np.int32)], dtype=np.int32)

    def next_draws(self, count: int) -> list[Draw]:
        """What the row draws next, the current document first unless it is open."""
        streams, finished = self.streams, self._finished.copy()
        draws = []
        for _ in range(count + (self._document is not None)):
            source = draw_source(streams.seed, self.row, int(finished.sum()), streams.weights)
            draws.append((source, self.row + streams.batch_rows * int(finished[source])))
            finished[source] += 1
        return draws[self._document is not None :]

    def open_document(self) -> Any:
        """The current document, read and encoded if that is not done."""
        if self._document is None:
            [draw] = self.next_draws(1)
            self._source = draw[0]
            self._document_hash, self._document = self._open(draw)
        return self._document

    def advance(self, position: int, end: int) -> None:
        """Moves to a position of the current document, or to the next document if that is its end."""
        self.position = position
        if position < end:
            return
        self._finished[self._source] += 1
        self.position, self._document = 0, None
        self._hash = _hash(self._hash, self._document_hash)
        if is_noted(num_documents := int(self._finished.sum())):
            self.streams.note_hash(self.row, num_documents, self._hash)

    def chance(self, *what: str) -> int:
        """64 bits that stand for chance, of the document the row is in."""
        return _draw_hash(self.streams.seed, self.row, int(self._finished.sum()), *what)


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
            assert start < len(lengths), f"position {start} of a document that has {len(lengths)}"
            take = min(length - filled, self._end_of_piece(start, len(lengths)) - start)
            segment += 1
            _put_piece(out, filled, ids[start : start + take + 1], segment)
            if streams.piece_length:
                out["ids"][filled] = streams.representation.eod_id
            num_bytes += int(lengths[start : start + take].sum())
            filled += take
            self.advance(start + take, len(lengths))
        return out | {"num_bytes": np.int32(num_bytes), "cursors": self.cursor}

    def _end_of_piece(self, position: int, end: int) -> int:
        """Where the document, or the piece of it that `position` is in, ends."""
        length = self.streams.piece_length
        if not length:
            return end
        first_end = 1 + self.chance("piece") % length
        return min(end, position + length - (position - first_end) % length)


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
    documents: Iterable[tuple[int, bytes]],
    representation: Representation,
    *,
    batch_rows: int,
    sequence_length: int,
    piece_length: int = 0,
    num_workers: int = 1,
) -> Iterator[Batch]:
    """Batches that hold every position of every document exactly once, for evaluation.

    A document is cut from its own beginning into pieces of `sequence_length`, so that its score does not depend on its
    neighbours; what is left over shares rows with other documents' ends. With a `piece_length` (see `RowStreams`) the
    pieces are of that. Besides the training batch's arrays there is `documents` i32[B, T], the number given with each
    document (-1: padding), and `target_bytes` i32[B, T], the source bytes of each target.
    """
    with concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="encode") as workers:
        encoded = _encode_documents(workers, documents, representation, num_workers)
        all_rows = _scoring_rows(encoded, sequence_length, piece_length, representation.eod_id)
        while rows := list(itertools.islice(all_rows, batch_rows)):
            rows += [_empty_scoring_row(sequence_length)] * (batch_rows - len(rows))
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _encode_documents(
    workers: concurrent.futures.Executor,
    documents: Iterable[tuple[int, bytes]],
    representation: Representation,
    num_workers: int,
) -> Iterator[tuple[int, Encoded]]:
    """Numbers and positions of the documents, in order."""

    def encode(batch: Sequence[tuple[int, bytes]]) -> list[tuple[int, Encoded]]:
        numbers, texts = zip(*batch)
        encoded = document_positions(representation, texts)
        if (
            representation.batch_documents == 1
        ):  # the others compare what they encode themselves, and take long to decode
            for text, (ids, _) in zip(texts, encoded):
                _check_lossless(representation, text, ids[1:-1])
        return list(zip(numbers, encoded))

    batches = _batched(documents, representation.batch_documents)
    ahead = 4 * num_workers if representation.batch_documents == 1 else 1
    return itertools.chain.from_iterable(_map_ahead(workers, encode, batches, ahead=ahead))


def _check_lossless(representation: Representation, text: bytes, ids: np.ndarray) -> None:
    """Raises UserError where ids stand for another text, whose bits would be divided by bytes that they do not tell."""
    decoded = representation.decode(ids)
    if decoded != text:
        at = next((number for number, (a, b) in enumerate(zip(text, decoded)) if a != b), min(len(text), len(decoded)))
        raise UserError(
            f"the {representation.kind} representation does not give a document back: from byte {at} on,"
            f" {decoded[at : at + 20]!r} where the text has {text[at : at + 20]!r}; it drops or changes characters, so"
            " that its bits per byte would be of another text; use one that is lossless"
        )


def _batched(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _scoring_rows(
    encoded: Iterable[tuple[int, Encoded]], row_length: int, piece_length: int, eod_id: int
) -> Iterator[Batch]:
    length = min(piece_length or row_length, row_length)
    shared, used, segment = _empty_scoring_row(row_length), 0, 0
    for number, (ids, lengths) in encoded:
        for start in range(0, len(lengths), length):
            piece, piece_bytes = ids[start : start + length + 1].copy(), lengths[start : start + length]
            if piece_length:
                piece[0] = eod_id
            if len(piece_bytes) == row_length:
                yield _scoring_row(_empty_scoring_row(row_length), 0, 1, number, piece, piece_bytes)
                continue
            if used + len(piece_bytes) > row_length:
                yield shared
                shared, used, segment = _empty_scoring_row(row_length), 0, 0
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
    """`map(function, items)` in order, at most `ahead` items being worked on: `Executor.map` would take all items at
    once."""
    pending: collections.deque = collections.deque()
    for item in items:
        pending.append(workers.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    yield from (future.result() for future in pending)
