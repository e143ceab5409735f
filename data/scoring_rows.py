"""Batches for evaluation: every position of every document exactly once, cut from its own beginning."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data.encoded import Encoded
from data.rows import Batch, document_positions, put_piece
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation, check_lossless


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

    Raises:
      UserError: the representation is not lossless, or a document does not come back from its ids.
    """
    check_lossless(representation)
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
        if not representation.verifies_encoding:
            for text, (ids, _) in zip(texts, encoded):
                _check_same(representation, text, ids[1:-1])
        return list(zip(numbers, encoded))

    batches = _batched(documents, representation.batch_documents)
    ahead = max(1, 4 * num_workers // representation.batch_documents)
    return itertools.chain.from_iterable(_map_ahead(workers, encode, batches, ahead=ahead))


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


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
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
    put_piece(row, at, ids, segment)
    row["documents"][at : at + len(target_bytes)] = number
    row["target_bytes"][at : at + len(target_bytes)] = target_bytes
    return row


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
