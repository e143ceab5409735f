"""What rows refuse, and how they end."""

import itertools
import threading

import grain
import pytest

from data.rows import RowStreams, Source, document_positions
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError


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


def test_wrong_byte_lengths_are_a_bug():
    class Forgetful(ByteRepresentation):
        def byte_lengths(self, ids):
            return super().byte_lengths(ids)[:-1]

    with pytest.raises(AssertionError, match="byte: 3 bytes of a text of 4"):
        document_positions(Forgetful(), [b"text"])


def test_a_cursor_behind_the_end_of_its_document_is_a_bug():
    streams = open_rows([Source([b"text"])], 1, 4, cursors=[[0, 5, 0, 0]])
    with pytest.raises(AssertionError, match="position 5"):
        next(iter(streams))


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
