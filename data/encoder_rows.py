"""How the row streams fill rows for encoders, which see a position's both sides.

The documents and their order are those of `data/rows.py`, and so is the cursor: documents finished per source, and how
much of the current document is done (ids, or lines of it). Batches hold `ids`, `segment_ids`, `positions`, `types` (0,
or 1 for the second segment of a pair), all i32[R, T]; `num_bytes` i32[R], the source bytes of the ids; `row_seeds`
u32[R], the only chance that an objective may use: a function of the run's seed, the row and its cursor, so that
devices, microbatches and restarts change nothing; and `cursors`.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data.document_order import draw_hash
from data.encoded import Encoded, encode, encode_each
from data.row_documents import IdsPool
from data.row_loops import count_waiting, fill_encoder, finish_document
from data.row_setting import Batch
from data.rows import Row
from tokenizer_lab.representation import CLS, SEP, Representation

ARRAYS = ("ids", "segment_ids", "positions", "types")
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
        self.arrays = {name: np.zeros(length, np.int32) for name in ARRAYS}

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

    arrays = ARRAYS
    has_chance = True
    pool: IdsPool

    def fill_positions(self, out: Batch) -> None:
        documents, vocab_size = self.documents, self.setting.representation.vocab_size
        out["row_seeds"][:] = row_seeds(self)
        is_full_r = np.zeros(len(self.setting.rows), bool)
        for name in self.arrays:
            out[name][:] = 0
        self.repeat_with_more_documents(
            lambda: fill_encoder(
                documents.rows_r,
                documents.finished_rs,
                documents.queue_rq,
                self.pool.ids,
                self.pool.lengths,
                vocab_size + CLS,
                vocab_size + SEP,
                is_full_r,
                *(out[name] for name in ("ids", "segment_ids", "positions")),
            )
        )


class LinesPool:
    """Documents as their lines that are not blank; their place is a key, and their length how many lines they have."""

    def __init__(self, representation: Representation):
        self._representation, self._last = representation, 0
        self._lines: dict[int, list[Encoded]] = {}

    def encode(self, texts: Sequence[bytes]) -> list[list[Encoded]]:
        lines = [[line for line in text.splitlines(keepends=True) if line.strip()] for text in texts]
        encoded = iter(encode(self._representation, [line for of_text in lines for line in of_text]))
        return [[next(encoded) for _ in of_text] for of_text in lines]

    def add(
        self, encoded: Sequence[list[list[Encoded]]], rows_r: np.ndarray, queue_rq: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        lines = [of_text for of_source in encoded for of_text in of_source]
        keys = range(self._last, self._last + len(lines))
        self._lines |= {key: of_text for key, of_text in zip(keys, lines) if of_text}
        self._last = keys.stop
        return np.array(keys, np.int64), np.array([len(of_text) for of_text in lines], np.int64)

    def __getitem__(self, key: int) -> list[Encoded]:
        return self._lines.get(key, [])

    def drop(self, key: int) -> None:
        self._lines.pop(key, None)


class PairRow(Row):
    """ELECTRA's published examples, one a row: `[CLS] a [SEP] b [SEP]` of neighbouring lines
    (build_pretraining_dataset.py).

    Lines are taken until they fill the row or the document ends, and cut to what fits. What is cut off is not trained
    on.
    """

    arrays = ARRAYS
    has_chance = True
    pool: LinesPool

    @classmethod
    def make_pool(cls, representation: Representation) -> LinesPool:
        return LinesPool(representation)

    def fill_positions(self, out: Batch) -> None:
        documents = self.documents
        out["row_seeds"][:] = row_seeds(self)
        self.repeat_with_more_documents(
            lambda: count_waiting(documents.rows_r, documents.finished_rs, documents.queue_rq)
        )
        for number in range(len(self.setting.rows)):
            arrays = self._next_pair(number)
            for name in self.arrays:
                out[name][number] = arrays[name]

    def _next_pair(self, number: int) -> Batch:
        length, row, queue_q = (
            self.setting.sequence_length,
            self.documents.rows_r[number],
            self.documents.queue_rq[number],
        )
        key, start = int(queue_q["start"][row["head"]]), int(row["position"])
        lines, chance = self.pool[key], self._chance_of(number, start)
        target = 5 + chance("length") % (length - 4) if chance("short") / 2**64 < _SHORT_TARGET_SHARE else length
        end, num_ids = start, 0
        while end < len(lines) and num_ids < target:
            num_ids += len(lines[end][0])
            end += 1
        first, second = self._split(lines[start:end], target, chance)
        first = _cut(first, length - 2)
        second = _cut(second, max(0, length - len(first[0]) - 3))
        builder = RowBuilder(self.setting.representation.vocab_size, length)
        builder.add(first[0], second[0] if len(second[0]) else None)
        row["num_bytes"], row["position"] = first[1].sum(dtype=np.int64) + second[1].sum(dtype=np.int64), end
        if end == len(lines):
            finish_document(row, self.documents.finished_rs[number], queue_q)
            self.pool.drop(key)
        return builder.arrays

    def _chance_of(self, number: int, position: int) -> Callable[..., int]:
        """64 bits that stand for chance, of a row where it stands."""
        finished = int(self.documents.finished_rs[number].sum())
        return functools.partial(draw_hash, self.setting.seed, self.setting.rows[number], finished, str(position))

    def _split(self, lines: list[Encoded], target: int, chance: Callable[..., int]) -> tuple[Encoded, Encoded]:
        """Two segments: a line goes to the first if that is empty, or has room, or by a coin's fall as what fills it.

        As published, a short line still goes to the first when lines before it have gone to the second.
        """
        single = chance("single") / 2**64 < _SINGLE_SHARE
        first_target = 100_000 if single else (target - 3) // 2
        segments: tuple[list[Encoded], list[Encoded]] = [], []
        first_length = 0
        for number, line in enumerate(lines):
            has_room = first_length + len(line[0]) < first_target
            overfills = not segments[1] and first_length < first_target and chance("coin", str(number)) / 2**64 < 0.5
            to_first = not segments[0] or has_room or overfills
            segments[0 if to_first else 1].append(line)
            first_length += len(line[0]) * to_first
        return _joined(segments[0]), _joined(segments[1])


def row_seeds(rows: Row) -> list[np.uint32]:
    """The chance of the sequence that each row is about to make."""
    documents, seed = rows.documents, rows.setting.seed
    where = zip(rows.setting.rows, documents.finished_rs.sum(axis=1).tolist(), documents.rows_r["position"].tolist())
    return [
        np.uint32(draw_hash(seed, row, finished, "row", str(position)) % 2**32) for row, finished, position in where
    ]


def _joined(lines: list[Encoded]) -> Encoded:
    nothing = np.zeros(0, np.int32), np.zeros(0, np.int32)
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
    for ids, lengths in encode_each(representation, documents):
        start = 0
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
