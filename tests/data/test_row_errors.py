"""What rows refuse, and how they end."""

import itertools
import threading

import grain
import numpy as np
import pytest

from data.encoded import encode
from data.rows import RowStreams, Source
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import joined


def open_rows(sources, batch_rows: int, sequence_length: int, seed: int = 0, **options) -> RowStreams:
    return RowStreams(
        sources, ByteRepresentation(), batch_rows=batch_rows, sequence_length=sequence_length, seed=seed, **options
    )


def test_a_corpus_without_documents_is_refused():
    with pytest.raises(UserError, match="without documents.*ingest"):
        open_rows([Source([b"text"]), Source([])], 1, 4)


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_damaged_document_stops_the_stream(damaged_documents, prefetch):
    streams = open_rows([Source(damaged_documents)], 2, 4)
    batches = (
        iter(grain.experimental.ThreadPrefetchIterDataset(streams, prefetch_buffer_size=2))
        if prefetch
        else iter(streams)
    )
    with pytest.raises(UserError, match="record 9"):
        list(itertools.islice(batches, 20))
    batches.close()


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda ids, lengths: (ids, lengths[:-1]), "4 ids and the bytes of 3"),
        (lambda ids, lengths: (ids, lengths - lengths), "0 bytes of a text of 4"),
        (lambda ids, lengths: (ids + 8192, lengths), r"ids from \d+ to \d+, and its vocabulary has 8193"),
        (lambda ids, lengths: (ids - 8192, lengths), "ids from -"),
    ],
)
def test_ids_that_do_not_fit_their_text_are_a_bug(window_representation, change, told):
    class Wrong(type(window_representation)):
        def encode_many(self, texts):
            return [change(*encoded) for encoded in super().encode_many(texts)]

    with pytest.raises(AssertionError, match=f"window: {told}"):
        encode(Wrong(), [b"text"])
    with pytest.raises(AssertionError, match=f"window: {told}"):
        next(iter(RowStreams([Source([b"text"])], Wrong(), batch_rows=1, sequence_length=4, seed=0)))


def test_a_byte_that_is_lost_is_a_bug():
    class Losing(ByteRepresentation):
        def encode_batch(self, texts):
            batch = super().encode_batch(texts)
            return batch._replace(bytes_per_id=0 * batch.bytes_per_id)

    with pytest.raises(AssertionError, match="byte: 0 bytes of a text of 4"):
        encode(Losing(), [b"text"])


def test_a_cursor_behind_the_end_of_its_document_is_a_bug():
    streams = open_rows([Source([b"text"])], 1, 4, cursors=[[0, 5, 0, 0]])
    with pytest.raises(AssertionError, match="position 5"):
        next(iter(streams))


def test_a_position_that_a_cursor_cannot_hold_is_refused_and_does_not_wrap():
    rows = iter(open_rows([Source([b"text"])], 1, 4)).workers[0].rows
    cursors = np.zeros((1, 4), np.int32)
    rows.documents.rows_r["position"] = 2**31 - 1
    rows.documents.write_cursors(cursors)
    assert cursors[0, 1] == 2**31 - 1
    rows.documents.rows_r["position"] = 2**31
    with pytest.raises(UserError, match="the position in a document is 2,147,483,648, at most 2,147,483,647 can be"):
        rows.documents.write_cursors(cursors)


def test_more_documents_than_a_cursor_can_hold_are_refused():
    batches = iter(open_rows([Source([b"text"])], 1, 4, cursors=[[2**31 - 1, 0, 0, 0]]))
    with pytest.raises(UserError, match="documents that a row has finished is 2,147,483,648"):
        next(batches), next(batches)


@pytest.mark.parametrize("lengths, refused", [([2**31 - 1], False), ([2**30, 2**30], True)])
def test_more_bytes_than_a_row_can_count_are_refused(lengths, refused):
    class Vast(bytes):
        def __len__(self):
            return sum(lengths)

    class OfVastIds(ByteRepresentation):
        def encode_batch(self, texts):
            return joined([(np.zeros(len(lengths), np.int32), np.array(lengths)) for _ in texts])

    streams = RowStreams([Source([Vast()])], OfVastIds(), batch_rows=1, sequence_length=len(lengths) + 1, seed=0)
    if refused:
        with pytest.raises(UserError, match="bytes in a row is 2,147,483,648"):
            next(iter(streams))
    else:
        assert next(iter(streams))["num_bytes"].tolist() == [2**31 - 1]


def test_the_workers_of_a_dropped_iterator_end():
    before = set(threading.enumerate())
    iterator = iter(open_rows([Source([b"text"])], 4, 4, num_workers=3))
    next(iterator)
    workers = set(threading.enumerate()) - before
    assert workers
    del iterator
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
