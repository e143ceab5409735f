"""How the row streams fill rows for encoders, which see a position's both sides.

The documents and their order are those of `data/rows.py`, and so is the cursor: documents finished per source, and how
much of the current document is done (ids, or lines of it). Batches hold `ids`, `segment_ids`, `positions`, `types` (0,
or 1 for the second segment of a pair), all i32[R, T]; `num_bytes` i32[R], the source bytes of the ids; `row_seeds`
u32[R], the only chance that an objective may use: a function of the run's seed, the row and its cursor, so that
devices, microbatches and restarts change nothing; and `cursors`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data.encoded import Encoded, encode
from data.rows import Batch, Row, check_count
from tokenizer_lab.representation import CLS, SEP, Representation

MIN_LENGTH = 8  # of a row
_SHORT_TARGET_SHARE = 0.05  # of the pair examples that are made shorter than a row
_SINGLE_SHARE = 0.1  # of those that have one segment only


class RowBuilder:
    """A row that is filled with `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, one after the other, none of which sees
    another.

    Attributes:
      arrays: ids, segment_ids, positions and types, i32[T] each.
    """

    def __init__(self, vocab_size: int, length: int):
        self._cls, self._sep, self._length, self._filled, self._segment = (
            vocab_size + CLS,
            vocab_size + SEP,
            length,
            0,
            0,
        )
        self.arrays = {name: np.zeros(length, np.int32) for name in ("ids", "segment_ids", "positions", "types")}

    def room_for(self, rest: int) -> int | None:
        """How many of `rest` ids go in as one piece; None where the next row is the better place for them."""
        free = self._length - self._filled - 2
        take = min(free, rest)
        return None if free < 0 or (self._filled and take < min(rest, self._length // 8)) else take

    def add(self, first: np.ndarray, second: np.ndarray | None = None) -> None:
        """Puts one or two segments into the row."""
        ids = np.concatenate([[self._cls], first, [self._sep], *([] if second is None else [second, [self._sep]])])
        where = slice(self._filled, self._filled + len(ids))
        self._segment += 1
        self._filled += len(ids)
        assert self._filled <= self._length, (self._filled, self._length)
        self.arrays["ids"][where], self.arrays["segment_ids"][where] = ids, self._segment
        self.arrays["positions"][where] = np.arange(len(ids))
        self.arrays["types"][where] = np.arange(len(ids)) >= len(first) + 2


class EncoderRow(Row):
    """`[CLS] piece [SEP]` of one document after the other; a piece is as much of it as fits into the row."""

    encode = staticmethod(encode)

    def next_sequence(self) -> Batch:
        row, seed, num_bytes = (
            RowBuilder(self.streams.representation.vocab_size, self.streams.sequence_length),
            row_seed(self),
            0,
        )
        while True:
            ids, lengths = self.open_document()
            start = self.position
            if (take := row.room_for(len(ids) - start)) is None:
                return row.arrays | _numbers(num_bytes, seed, self.cursor)
            row.add(ids[start : start + take])
            num_bytes += int(lengths[start : start + take].sum())
            self.advance(start + take, len(ids))


class PairRow(Row):
    """ELECTRA's published examples, one a row: `[CLS] a [SEP] b [SEP]` of neighbouring lines
    (build_pretraining_dataset.py).

    Lines are taken until they fill the row or the document ends, and cut to what fits. What is cut off is not trained
    on.
    """

    @staticmethod
    def encode(representation: Representation, documents: Sequence[bytes]) -> list[list[Encoded]]:
        lines = [[line for line in document.splitlines(keepends=True) if line.strip()] for document in documents]
        encoded = iter(encode(representation, [line for document in lines for line in document]))
        return [[next(encoded) for _ in document] for document in lines]

    def next_sequence(self) -> Batch:
        length, seed = self.streams.sequence_length, row_seed(self)
        lines, start = self.open_document(), self.position
        target = 5 + self._chance("length") % (length - 4) if self._uniform("short") < _SHORT_TARGET_SHARE else length
        end, num_ids = start, 0
        while end < len(lines) and num_ids < target:
            num_ids += len(lines[end][0])
            end += 1
        first, second = self._split(lines[start:end], target)
        first = _cut(first, length - 2)
        second = _cut(second, max(0, length - len(first[0]) - 3))
        row = RowBuilder(self.streams.representation.vocab_size, length)
        row.add(first[0], second[0] if len(second[0]) else None)
        self.advance(end, len(lines))
        num_bytes = first[1].sum() + second[1].sum()
        return row.arrays | _numbers(num_bytes, seed, self.cursor)

    def _split(self, lines: list[Encoded], target: int) -> tuple[Encoded, Encoded]:
        """Two segments: a line goes to the first if that is empty, or has room, or by a coin's fall as what fills it.

        As published, a short line still goes to the first when lines before it have gone to the second.
        """
        single = self._uniform("single") < _SINGLE_SHARE
        first_target = 100_000 if single else (target - 3) // 2
        segments: tuple[list[Encoded], list[Encoded]] = [], []
        first_length = 0
        for number, line in enumerate(lines):
            has_room = first_length + len(line[0]) < first_target
            overfills = not segments[1] and first_length < first_target and self._uniform("coin", str(number)) < 0.5
            to_first = not segments[0] or has_room or overfills
            segments[0 if to_first else 1].append(line)
            first_length += len(line[0]) * to_first
        return _joined(segments[0]), _joined(segments[1])

    def _chance(self, *what: str) -> int:
        return self.chance(str(self.position), *what)

    def _uniform(self, *what: str) -> float:
        return self._chance(*what) / 2**64


def row_seed(row: Row) -> np.uint32:
    """The chance of the sequence that a row is about to make."""
    return np.uint32(row.chance("row", str(row.position)) % 2**32)


def _numbers(num_bytes: int, seed: np.uint32, cursor: np.ndarray) -> Batch:
    """What a row has beside its ids."""
    return {
        "num_bytes": np.array(check_count(num_bytes, "bytes in a row"), np.int32),
        "row_seeds": np.array(seed),
        "cursors": cursor,
    }


def _joined(lines: list[Encoded]) -> Encoded:
    nothing = np.zeros(0, np.int32), np.zeros(0, np.int64)
    ids, lengths = zip(nothing, *lines)
    return np.concatenate(ids), np.concatenate(lengths)


def _cut(segment: Encoded, length: int) -> Encoded:
    return segment[0][:length], segment[1][:length]


def held_out_batches(
    documents: Iterable[bytes], representation: Representation, *, batch_rows: int, sequence_length: int
) -> Iterator[tuple[Batch, int]]:
    """Batches that hold every id of every document once, and the source bytes in each; `row_seeds` are the same every
    time."""
    row, rows, num_bytes = RowBuilder(representation.vocab_size, sequence_length), [], 0
    for document in documents:
        [(ids, lengths)], start = encode(representation, [document]), 0
        while start == 0 or start < len(ids):
            if (take := row.room_for(len(ids) - start)) is None:
                rows.append(row.arrays)
                row = RowBuilder(representation.vocab_size, sequence_length)
                if len(rows) == batch_rows:
                    yield _stacked(rows, batch_rows), num_bytes
                    rows, num_bytes = [], 0
                continue
            row.add(ids[start : start + take])
            num_bytes += int(lengths[start : start + take].sum())
            start += take
            if not take:
                break
    yield _stacked([*rows, row.arrays], batch_rows), num_bytes


def _stacked(rows: list[Batch], batch_rows: int) -> Batch:
    empty = {name: np.zeros_like(value) for name, value in rows[0].items()}
    batch = {name: np.stack([row[name] for row in rows + [empty] * (batch_rows - len(rows))]) for name in empty}
    seeds = [hashlib.blake2b(row.tobytes(), digest_size=4).digest() for row in batch["ids"]]
    return batch | {"row_seeds": np.array([int.from_bytes(seed, "little") for seed in seeds], np.uint32)}
