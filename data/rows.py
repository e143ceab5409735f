"""Row streams: documents -> batches, in one order for every representation, resumable from a few integers a row.

The way of the data, step by step; each step's state is what the next needs to go on exactly:

1. Every source (a corpus split) is put in a seeded global shuffle of its blocks of K documents, newly shuffled each
   epoch (`data/document_order.py`). State: none, what is in the n-th slot is a pure function of (seed, n).
2. Row r of a global batch of B rows is its own endless stream. Its d-th draw comes from the source that
   `draw_source(seed, r, d)` names; from that source it reads blocks r, r + B, r + 2B, ... of the shuffled order. State:
   how many documents of each source it has finished (slots: those that have no document, or one that is held out, count
   too).
3. A document of n ids is the n + 1 positions (eod -> x1), (x1 -> x2), ..., (xn -> eod): every id, and the document's
   end, is a target exactly once. State: how many of them are done.
4. A row takes the next T positions of its stream; where a document ends the next begins. Attention stays in a document
   by `segment_ids`, and `num_bytes` says how many source bytes the targets carry.

So the position of a row is S + 1 integers: documents finished per source, and positions done in the current document.
It does not know how many hosts there are, how long T is, or how many workers encode.

5. A row keeps a running hash of the documents it has finished (`data/document_hash.py`). State: the hash, two integers.

Together that is the cursor of a row, `i32[S + 3]`. Held-out text is cut in another way: `data/scoring_rows.py`.

Each worker fills some of the rows (`data/row_workers.py`): `data/row_documents.py` has their documents,
`data/row_loops.py` the loops.
"""

import abc
import collections
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import grain
import numpy as np

from data.document_hash import NoteHash
from data.row_documents import IdsPool, Pool, RowDocuments
from data.row_loops import fill_causal
from data.row_setting import Batch, RowSetting, Source, cursor_width
from data.row_workers import CallersWorker, ProcessWorker, ThreadWorker, Worker, batches_ahead
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation


def _check_documents(sources: Sequence[Source]) -> None:
    if any(len(source.documents) == 0 for source in sources):
        raise UserError(
            "a corpus without documents cannot be trained on; ingest some text into it, or take it out of the mixture"
        )


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
        num_processes: int = 0,
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
          num_workers: threads that read and encode, each its share of the rows; changes nothing but the speed.
          num_processes: if not 0, so many processes do that in place of threads. Sources and representation must be fit
            to be pickled.
          layout: how rows are filled, `CausalRow` by default; those for encoders are in `data/encoder_rows.py`.
          note_hash: told a row's running hash, by any thread, where `is_noted` says so.
        """
        super().__init__()
        assert sources and batch_rows > 0 and sequence_length > 0 and num_workers > 0
        rows = tuple(range(batch_rows)) if rows is None else tuple(rows)
        assert all(0 <= row < batch_rows for row in rows), (rows, batch_rows)
        _check_documents(sources)
        shape = len(rows), cursor_width(len(sources))
        cursors = np.zeros(shape, np.int32) if cursors is None else np.array(cursors, np.int32)
        assert cursors.shape == shape, cursors.shape
        self.setting = RowSetting(
            sources=tuple(sources),
            representation=representation,
            batch_rows=batch_rows,
            sequence_length=sequence_length,
            seed=seed,
            rows=rows,
            cursors=cursors,
            piece_length=piece_length,
            layout=layout or CausalRow,
            note_hash=note_hash,
        )
        self.worker: type[Worker] = ProcessWorker if num_processes else ThreadWorker
        self.num_workers = min(num_processes or num_workers, len(rows))
        # What encodes many at once has threads of its own.
        if self.setting.documents_together > 1 or (not num_processes and self.num_workers == 1):
            self.num_workers, self.worker = 1, CallersWorker

    def __iter__(self) -> "RowStreamIterator":
        return RowStreamIterator(self)


class RowStreamIterator(grain.DatasetIterator):
    """Iterates `RowStreams`; its state is the cursors."""

    def __init__(self, streams: RowStreams):
        super().__init__()
        self._setting = setting = streams.setting
        self._cursors = setting.cursors.copy()
        bounds = np.linspace(0, len(setting.rows), streams.num_workers + 1).astype(int).tolist()
        self._parts = [slice(*part) for part in itertools.pairwise(bounds)]  # of the rows, one of each worker
        self.workers = [streams.worker(setting.of(part, setting.cursors[part])) for part in self._parts]
        self._ahead = batches_ahead(setting) if streams.worker is ThreadWorker else 1
        self._begun: collections.deque[tuple[Batch, list[Callable[[], Any]]]] = collections.deque()

    def __next__(self) -> Batch:
        while len(self._begun) < self._ahead:
            self._begun.append(self._begin_batch())
        batch, waits = self._begun.popleft()
        for wait in waits:
            wait()
        self._cursors = batch["cursors"].copy()
        return batch

    def _begin_batch(self) -> tuple[Batch, list[Callable[[], Any]]]:
        # In one piece, which the allocator hands out again: page faults would take longer than filling it.
        batch = self._setting.as_batch(np.empty(self._setting.num_words, np.int32))
        parts = [{name: array[part] for name, array in batch.items()} for part in self._parts]
        return batch, [worker.begin(part) for worker, part in zip(self.workers, parts)]

    def close(self) -> None:
        """Ends those who fill rows, once they have done what they are at."""
        if not self._closed:
            super().close()
            for worker in self.workers:
                worker.close()

    def get_state(self) -> dict[str, Any]:
        return {"cursors": self._cursors.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._begun.clear()
        self._cursors = np.array(state["cursors"], np.int32)
        for worker, part in zip(self.workers, self._parts):
            worker.move_to(self._setting.of(part, self._cursors[part]))


class Row(abc.ABC):
    """How a row is laid out (`data.row_setting.Layout`). Only ever used by one thread at a time."""

    arrays: ClassVar[tuple[str, ...]]
    has_chance: ClassVar[bool] = False
    end_positions: ClassVar[int] = 0

    def __init__(self, setting: RowSetting):
        self.setting = setting
        self.pool = self.make_pool(setting.representation)
        self.documents = RowDocuments(setting, self.pool)
        self._error: BaseException | None = None

    @classmethod
    def make_pool(cls, representation: Representation) -> Pool:
        """What keeps the documents that are drawn."""
        return IdsPool(representation)

    def fill(self, out: Batch) -> None:
        """Writes the next T positions of each row, and the cursors behind them. After an error there are no more."""
        if self._error:
            raise self._error
        try:
            self.documents.begin_sequence()
            self.fill_positions(out)
            self.documents.end_sequence(out["num_bytes"], out["cursors"])
        except BaseException as error:
            self._error = error
            raise

    @abc.abstractmethod
    def fill_positions(self, out: Batch) -> None:
        """Writes the arrays of positions."""

    def repeat_with_more_documents(self, fill: Callable[[], int]) -> None:
        """Calls `fill`, which says how many rows need more documents, until none does."""
        while fill():
            self.documents.refill()


class CausalRow(Row):
    """Each id, and the end of each document, is the target of the position before it."""

    arrays = ("ids", "targets", "segment_ids", "positions")
    end_positions = 1
    pool: IdsPool

    def fill_positions(self, out: Batch) -> None:
        documents, setting = self.documents, self.setting
        self.repeat_with_more_documents(
            lambda: fill_causal(
                documents.rows_r,
                documents.finished_rs,
                documents.queue_rq,
                self.pool.ids,
                self.pool.lengths,
                setting.representation.eod_id,
                setting.piece_length,
                *(out[name] for name in self.arrays),
            )
        )
