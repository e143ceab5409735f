"""The documents that some rows have drawn and not finished, and where those rows stand: many are drawn, read, hashed
and encoded in one go, and `data/row_loops.py` goes through them.

How many are drawn ahead changes nothing but the speed.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from data.document_hash import HASH_WORDS, document_hash, is_noted, running_hash
from data.document_order import NO_DOCUMENT, draw_hash, draw_source
from data.documents import read_many
from data.encoded import EncodedTexts, encode_batch
from data.row_loops import DOCUMENT, PASSED_OVER, ROW, add_documents, count_ids, move_ids
from data.row_setting import RowSetting, Source
from data.split import document_key, key_is_held_out
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import EncodedBatch, Representation

MAX_COUNT = 2**31 - 1  # what the int32 of a cursor or a batch holds
_MAX_PASSES_IN_VAIN = 20  # over all documents, by one row that finds none to train on
_AHEAD_BYTES = 256 << 10  # of text, about, that the rows of a worker have drawn at a time
_MAX_AHEAD = 1024  # documents of a row
_MIN_POOL = 1 << 16  # ids


class Draws(NamedTuple):
    """Documents that rows draw next, those of a row in their order."""

    row_d: np.ndarray
    """i64[D], the number of each one's row among the worker's."""
    source_d: np.ndarray
    draw_d: np.ndarray
    """Documents that the row has drawn before it."""
    slot_d: np.ndarray
    """Its place in the order of its source."""


class Pool(Protocol):
    """Keeps the ids of documents."""

    def encode(self, texts: Sequence[bytes]) -> Any:
        """Texts in the form that `add` takes."""

    def add(self, encoded: Sequence[Any], rows_r: np.ndarray, queue_rq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keeps what is encoded. Returns i64[D], where each document's ids are, and i64[D], its `DOCUMENT.length`."""


class IdsPool:
    """The ids of documents one after the other, without those of documents that are finished.

    Attributes:
      ids, lengths: i32[n], ids and the source bytes of each.
    """

    def __init__(self, representation: Representation):
        self._representation = representation
        self.ids, self.lengths, self._used = np.empty(_MIN_POOL, np.int32), np.empty(_MIN_POOL, np.int32), 0

    def encode(self, texts: Sequence[bytes]) -> EncodedBatch:
        return encode_batch(self._representation, texts)

    def add(
        self, encoded: Sequence[EncodedBatch], rows_r: np.ndarray, queue_rq: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths_d = np.concatenate([np.diff(batch.ends, prepend=0) for batch in encoded])
        self._make_room(int(lengths_d.sum()), rows_r, queue_rq)
        starts_d = self._used + np.cumsum(lengths_d) - lengths_d
        for batch in encoded:
            where = slice(self._used, self._used + len(batch.ids))
            self.ids[where], self.lengths[where] = batch.ids, batch.bytes_per_id
            self._used = where.stop
        return starts_d, lengths_d

    def _make_room(self, num_ids: int, rows_r: np.ndarray, queue_rq: np.ndarray) -> None:
        """Moves what is still needed into other arrays where there is no room, or far too much of it."""
        needed = count_ids(rows_r, queue_rq) + num_ids
        if self._used + num_ids <= len(self.ids) <= 8 * max(needed, _MIN_POOL):
            return
        size = max(_MIN_POOL, 2 * needed)
        ids, lengths = np.empty(size, np.int32), np.empty(size, np.int32)
        self._used = move_ids(rows_r, queue_rq, self.ids, self.lengths, ids, lengths)
        self.ids, self.lengths = ids, lengths


class RowDocuments:
    """Where some rows stand and the documents they are about to read. Only ever used by one thread at a time.

    Attributes:
      rows_r, finished_rs, queue_rq: see `data/row_loops.py`.
    """

    def __init__(self, setting: RowSetting, pool: Pool):
        rows, cursors = setting.rows, setting.cursors
        self._setting, self._rows, self._pool = setting, np.array(rows, np.int64), pool
        self.rows_r, self.queue_rq = np.zeros(len(rows), ROW), np.zeros((len(rows), 0), DOCUMENT)
        self.finished_rs = cursors[:, : -1 - HASH_WORDS].astype(np.int64)
        self.rows_r["position"] = cursors[:, -1 - HASH_WORDS]
        self.rows_r["hash"] = np.ascontiguousarray(cursors[:, -HASH_WORDS:]).view(np.uint64)[:, 0]
        self._drawn_rs = self.finished_rs.copy()
        self._drawn_hash_r = [hash_.tobytes() for hash_ in self.rows_r["hash"]]  # running, of all that is drawn
        self._notes_r: list[collections.deque[tuple[int, bytes]]] = [collections.deque() for _ in rows]
        self._ahead = -(-setting.documents_together // len(rows))

    def begin_sequence(self) -> None:
        for name in ("filled", "segment", "num_bytes"):
            self.rows_r[name] = 0

    def end_sequence(self, out_num_bytes: np.ndarray, out_cursors: np.ndarray) -> None:
        """Writes the bytes in each row, i32[R], and where it stands, i32[R, S + 3]; notes hashes."""
        out_num_bytes[:] = check_count(self.rows_r["num_bytes"], "bytes in a row")
        self.write_cursors(out_cursors)
        for row, finished, notes in zip(self._rows.tolist(), self.finished_rs.sum(axis=1).tolist(), self._notes_r):
            while notes and notes[0][0] <= finished:
                self._setting.note_hash(row, *notes.popleft())

    def write_cursors(self, out_rc: np.ndarray) -> None:
        finished, position = out_rc[:, : -1 - HASH_WORDS], out_rc[:, -1 - HASH_WORDS]
        finished[:] = check_count(self.finished_rs, "the number of documents that a row has finished")
        position[:] = check_count(self.rows_r["position"], "the position in a document")
        out_rc[:, -HASH_WORDS:] = self.rows_r["hash"][:, None].view(np.int32)

    # ---- More documents

    def refill(self) -> None:
        """Draws documents for the rows that have none, and for the others on that occasion.

        One that cannot be read stops the rows only when one of them has come to it.
        """
        self._check_passed()
        count_r = self.rows_r["count"]
        needed_r = (count_r == 0).astype(np.int64)
        wanted_r = np.maximum(needed_r, self._ahead - count_r)
        try:
            self._add(self._draw(wanted_r))
        except UserError:
            if (wanted_r == needed_r).all():
                raise
            self._add(self._draw(needed_r))

    def _choose_ahead(self, bytes_of_document: float) -> None:
        """How many documents each row should have drawn: more and more, unless they are encoded so many at once."""
        if self._setting.documents_together == 1:
            most = int(_AHEAD_BYTES / len(self._rows) / bytes_of_document)
            self._ahead = max(1, min(2 * self._ahead, most, _MAX_AHEAD))

    def _draw(self, num_r: np.ndarray) -> Draws:
        setting, num_sources = self._setting, self._drawn_rs.shape[1]
        row_d = np.repeat(np.arange(len(num_r)), num_r)
        first_d = np.repeat(np.cumsum(num_r) - num_r, num_r)  # of each one's row
        draw_d = self._drawn_rs.sum(axis=1)[row_d] + np.arange(len(row_d)) - first_d
        source_d, slot_d = np.zeros(len(row_d), np.int64), np.zeros(len(row_d), np.int64)
        if num_sources > 1:
            draws = zip(self._rows[row_d].tolist(), draw_d.tolist())
            source_d[:] = [draw_source(setting.seed, row, draw, setting.weights) for row, draw in draws]
        for source, order in enumerate(setting.orders):
            is_of = source_d == source
            before_d = np.cumsum(is_of) - is_of
            number_d = self._drawn_rs[row_d, source] + before_d - before_d[first_d]
            slot_d[is_of] = order.slots(self._rows[row_d[is_of]], number_d[is_of], setting.batch_rows)
        return Draws(row_d, source_d, draw_d, slot_d)

    def _add(self, draws: Draws) -> None:
        """Reads, hashes and encodes documents and puts them behind those of their rows. Changes nothing where that
        fails."""
        documents_d, hashes = self._open(draws)
        self._check_positions(draws.row_d, documents_d["length"])
        running, behind = self._drawn_hash_r.copy(), []
        rows = draws.row_d.tolist()
        for row, digest in zip(rows, hashes):
            if digest is not None:
                running[row] = running_hash(running[row], digest)
            behind.append(running[row])
        documents_d["hash"] = np.frombuffer(b"".join(behind), np.uint64)
        count_r = np.bincount(draws.row_d, minlength=len(self._rows))
        queue_rq = np.empty((len(self._rows), int((self.rows_r["count"] + count_r).max())), DOCUMENT)
        add_documents(self.rows_r, self.queue_rq, draws.row_d, documents_d, queue_rq)
        self.queue_rq, self._drawn_hash_r = queue_rq, running
        np.add.at(self._drawn_rs, (draws.row_d, draws.source_d), 1)
        for place in np.flatnonzero(is_noted(draws.draw_d + 1)).tolist():
            self._notes_r[rows[place]].append((int(draws.draw_d[place]) + 1, behind[place]))

    def _open(self, draws: Draws) -> tuple[np.ndarray, list[bytes | None]]:
        """DOCUMENT[D] but for their running hashes; and the hash of each, None where a slot has no document."""
        setting, num_bytes = self._setting, 0
        documents_d, hashes = np.zeros(len(draws.row_d), DOCUMENT), np.full(len(draws.row_d), None)
        documents_d["length"], documents_d["source"] = PASSED_OVER, draws.source_d
        opened: list[tuple[np.ndarray, np.ndarray, Any]] = []  # of each source: which they are, if trained on, encoded
        for number in np.unique(draws.source_d).tolist():
            source, place_d = setting.sources[number], np.flatnonzero(draws.source_d == number)
            index_d = setting.orders[number].documents(draws.slot_d[place_d])
            place_d, index_d = place_d[index_d != NO_DOCUMENT], index_d[index_d != NO_DOCUMENT]
            texts = read_many(source.documents, index_d.tolist())
            num_bytes += sum(map(len, texts))
            slots = draws.slot_d[place_d].tolist()
            hashes[place_d] = [document_hash(number, slot, text) for slot, text in zip(slots, texts)]
            texts, is_trained_d = _trained(source, texts, index_d.tolist())
            opened.append((place_d, is_trained_d, self._pool.encode(texts)))
        place_d, is_trained_d = (np.concatenate(part) for part in list(zip(*opened))[:2])
        starts_d, lengths_d = self._pool.add([encoded for _, _, encoded in opened], self.rows_r, self.queue_rq)
        documents_d["start"][place_d] = starts_d
        documents_d["length"][place_d] = np.where(is_trained_d, lengths_d, PASSED_OVER)
        if setting.piece_length:
            chances = zip(self._rows[draws.row_d].tolist(), draws.draw_d.tolist())
            ends = [1 + draw_hash(setting.seed, row, draw, "piece") % setting.piece_length for row, draw in chances]
            documents_d["first_end"] = ends
        self._choose_ahead(max(1.0, num_bytes / len(draws.row_d)))
        return documents_d, hashes.tolist()

    def _check_positions(self, row_d: np.ndarray, length_d: np.ndarray) -> None:
        """A cursor may come from a stranger's checkpoint: its position is in its document, or at its beginning."""
        within = np.flatnonzero((self.rows_r["count"] == 0) & (self.rows_r["position"] > 0))
        for row in within[np.isin(within, row_d)].tolist():
            position, length = self.rows_r["position"][row], length_d[np.argmax(row_d == row)]
            end = length + self._setting.layout.end_positions
            if length != PASSED_OVER and position >= end:
                raise AssertionError(f"position {position} of a document that has {end}")

    def _check_passed(self) -> None:
        num_documents = sum(order.num_documents for order in self._setting.orders)
        passed_r = self.rows_r["passed"]
        if (passed_r > _MAX_PASSES_IN_VAIN * num_documents + 100).any():
            raise UserError(
                f"of the {num_documents:,} documents of the mixture, row {self._rows[passed_r.argmax()]} has met none"
                " that no corpus holds out; ingest more text, or hold out a smaller share of it with --test-fraction"
            )


def _trained(source: Source, texts: Sequence[bytes], indices: list[int]) -> tuple[Sequence[bytes], np.ndarray]:
    """The texts, empty where another source holds them out, unless they bring their ids along; and b[D], which of them
    are trained on."""
    if source.trained_from <= 0:
        return texts, np.ones(len(texts), bool)
    key_of = getattr(source.documents, "key", None)  # of a part, it is the whole's
    keys = map(key_of, indices) if key_of else map(document_key, texts)
    is_trained_d = np.array([not key_is_held_out(key, source.trained_from) for key in keys], bool)
    if isinstance(texts, EncodedTexts):
        return texts, is_trained_d
    return [text if is_trained else b"" for text, is_trained in zip(texts, is_trained_d)], is_trained_d


def check_count(counts: np.ndarray, what: str) -> np.ndarray:
    """The counts. Raises UserError for more than a cursor or a batch can hold."""
    if (largest := int(counts.max())) > MAX_COUNT:
        raise UserError(
            f"{what} is {largest:,}, at most {MAX_COUNT:,} can be counted; ingest shorter documents, e.g. with"
            " --separator, or train with more rows or a shorter --data.sequence-length"
        )
    return counts
