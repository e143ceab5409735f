"""Batches for evaluation: every position of every document is scored exactly once."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.encoded import encode_batch, portions
from data.row_loops import SCORING, score_documents, share_row
from data.row_setting import Batch
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import EncodedBatch, Representation, check_lossless

_ARRAYS = ("ids", "targets", "segment_ids", "positions", "documents", "target_bytes")  # as `data.row_loops` has them


class _Chunk(NamedTuple):
    """Some documents: their numbers, i64[d], and their ids."""

    numbers_d: np.ndarray
    batch: EncodedBatch


def scoring_batches(
    documents: Iterable[tuple[int, bytes]],
    representation: Representation,
    *,
    batch_rows: int,
    sequence_length: int,
    piece_length: int = 0,
    stride: int = 0,
    num_workers: int = 1,
) -> Iterator[Batch]:
    """Batches in which every position of every document is scored exactly once, for evaluation.

    A document is cut from its own beginning into pieces of `sequence_length`, so that its score does not depend on its
    neighbours; what is left over shares rows with other documents' ends. With a `piece_length` (see `RowStreams`) the
    pieces are of that. Besides the training batch's arrays there is `documents` i32[B, T], the number given with each
    document (-1: nothing is scored there), and `target_bytes` i32[B, T], the source bytes of each target scored.

    With a `stride`, a document is read by a window of `sequence_length` that moves on by so many positions; what an
    earlier window has scored is context, so that each position sees at least `sequence_length - stride` before it, or
    all there are.

    Raises:
      UserError: the representation is not lossless, or a document does not come back from its ids.
    """
    check_lossless(representation)
    assert not stride or (0 < stride <= sequence_length and not piece_length), (stride, sequence_length, piece_length)
    state, shared = np.zeros(1, SCORING), _empty(1, sequence_length)[:, 0]
    out = _empty(batch_rows, sequence_length)
    with contextlib.closing(_encoded_chunks(documents, representation, num_workers)) as chunks:
        for chunk in chunks:
            state["document"] = 0
            while not score_documents(
                state[0], *chunk.batch, chunk.numbers_d, representation.eod_id, piece_length, stride, shared, out
            ):
                yield dict(zip(_ARRAYS, out))
                out, state["num_rows"] = _empty(batch_rows, sequence_length), 0
    if state["used"] and state["num_rows"] == batch_rows:
        yield dict(zip(_ARRAYS, out))
        out, state["num_rows"] = _empty(batch_rows, sequence_length), 0
    if state["used"]:
        share_row(state[0], shared, out)
    if state["num_rows"]:
        yield dict(zip(_ARRAYS, out))


def _empty(num_rows: int, length: int) -> np.ndarray:
    """i32[6, R, T], the arrays of `_ARRAYS` in which nothing is scored."""
    arrays = np.zeros((len(_ARRAYS), num_rows, length), np.int32)
    arrays[_ARRAYS.index("documents")] = -1
    return arrays


def _encoded_chunks(
    documents: Iterable[tuple[int, bytes]], representation: Representation, num_workers: int
) -> Generator[_Chunk]:
    def encode(chunk: Sequence[tuple[int, bytes]]) -> _Chunk:
        numbers, texts = zip(*chunk)
        batch = encode_batch(representation, texts)
        if not representation.verifies_encoding:
            for text, first, end in zip(texts, [0, *batch.ends], batch.ends):
                _check_same(representation, text, batch.ids[first:end])
        return _Chunk(np.array(numbers, np.int64), batch)

    chunks = portions(documents, lambda numbered: len(numbered[1]), representation.batch_documents)
    with concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="encode") as workers:
        yield from _map_ahead(workers, encode, chunks, num_workers)


def _check_same(representation: Representation, text: bytes, ids: np.ndarray) -> None:
    """Raises UserError where ids stand for another text, whose bits would be divided by bytes that they do not tell."""
    decoded = representation.decode(ids)
    if decoded != text:
        at = next((number for number, (a, b) in enumerate(zip(text, decoded)) if a != b), min(len(text), len(decoded)))
        raise UserError(
            f"the {representation.kind} representation does not give a document back: from byte {at} on,"
            f" {decoded[at : at + 20]!r} where the text has {text[at : at + 20]!r}; it drops or changes characters, so"
            " that its bits per byte would be of another text; use one that is lossless"
        )


def _map_ahead(
    workers: concurrent.futures.Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
    """`map(function, items)` in order, at most `ahead` items being worked on: `Executor.map` would take all items at
    once."""
    pending: collections.deque[Any] = collections.deque()
    for item in items:
        pending.append(workers.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    yield from (future.result() for future in pending)
