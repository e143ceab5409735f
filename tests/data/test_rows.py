"""Row streams: every document in the shuffled order, the same whoever reads, wherever it was cut and resumed."""

import collections
import dataclasses
import functools
import itertools

import grain
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data.document_order import draw_source, shuffle_seed
from data.encoded import encode
from data.rows import RowStreams, Source
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.representation import Representation

windows = st.from_type(Representation).filter(lambda representation: representation.kind == "window")
# Longer than a row, empty, fewer than there are rows: all in here.
documents = st.lists(st.binary(max_size=20), min_size=1, max_size=8)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides the streams of a run."""

    sources: list[Source]
    representation: object
    batch_rows: int
    seed: int

    @functools.cached_property
    def shuffled(self) -> "list[Remembered]":
        """Each source's documents in the order of the definition, which is grain's."""
        return [
            Remembered(grain.MapDataset.source(source.documents).shuffle(seed=shuffle_seed(self.seed, number)))
            for number, source in enumerate(self.sources)
        ]

    def open(self, sequence_length: int, **options) -> RowStreams:
        return RowStreams(
            self.sources,
            self.representation,
            batch_rows=self.batch_rows,
            sequence_length=sequence_length,
            seed=self.seed,
            **options,
        )


class Remembered:
    """Grain's shuffle takes milliseconds for each of a handful of documents (microseconds of a million): ask it
    once."""

    def __init__(self, shuffled):
        self._shuffled, self._documents = shuffled, {}

    def __getitem__(self, ordinal: int) -> bytes:
        if ordinal not in self._documents:
            self._documents[ordinal] = self._shuffled[ordinal]
        return self._documents[ordinal]


@st.composite
def runs(draw, representations=st.from_type(Representation)):
    weight = st.sampled_from([0.25, 1.0, 3.0])
    sources = draw(st.lists(st.builds(Source, documents, weight), min_size=1, max_size=3))
    return Setting(sources, draw(representations), draw(st.integers(1, 4)), draw(st.integers(0, 2**64)))


lengths = st.integers(1, 9)
any_run = functools.partial(settings, deadline=None, max_examples=25)


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(batches, count))


def assert_same(batches, others):
    """The very same bits, cursors included."""
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype == np.int32
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def stream(batches, row: int, name: str = "targets") -> list[int]:
    """A row of all batches, one after the other."""
    return [int(x) for batch in batches for x in batch[name][row]]


@any_run()
@given(documents, st.from_type(Representation), st.integers(1, 10), lengths, st.integers(0, 2**64))
def test_each_epoch_has_every_document_once_in_the_shuffled_order(
    read_until, documents, representation, batch_rows, length, seed
):
    run = Setting([Source(documents)], representation, batch_rows, seed)
    num_epochs = 3
    by_row = read_until(run.open(length), -(-num_epochs * len(documents) // batch_rows))
    in_order = [by_row[n % batch_rows][n // batch_rows] for n in range(num_epochs * len(documents))]
    for epoch in range(num_epochs):
        one_epoch = in_order[epoch * len(documents) : (epoch + 1) * len(documents)]
        assert collections.Counter(one_epoch) == collections.Counter(documents), epoch
    assert in_order == [run.shuffled[0][n] for n in range(len(in_order))]


@any_run()
@given(runs(), lengths)
def test_positions_are_next_id_prediction_within_documents(run, length):
    eod = run.representation.eod_id
    batches = take(run.open(length), 6)
    for row in range(run.batch_rows):
        ids, targets = stream(batches, row, "ids"), stream(batches, row)
        assert ids[0] == eod, "a document begins with the end of the one before"
        assert ids[1:] == targets[:-1], "each target is the next input, across rows too"
        for batch in batches:
            starts = batch["ids"][row] == eod
            starts[0] = True  # whatever goes on there is a piece of its own
            np.testing.assert_array_equal(batch["segment_ids"][row], np.cumsum(starts))
            since_start = np.arange(length) - np.maximum.accumulate(np.where(starts, np.arange(length), 0))
            np.testing.assert_array_equal(batch["positions"][row], since_start)


@any_run()
@given(runs(), lengths, st.integers(1, 8))
def test_num_bytes_are_the_bytes_of_the_targets(run, length, num_batches):
    batches = take(run.open(length), num_batches)
    for row in range(run.batch_rows):
        expected, left = [], length * num_batches
        for document in row_documents(run, row):
            expected += [*encode(run.representation, [document])[0][1].tolist(), 0]
            if len(expected) >= left:
                break
        by_batch = np.reshape(expected[:left], (num_batches, length)).sum(axis=1)
        assert [int(batch["num_bytes"][row]) for batch in batches] == by_batch.tolist()


def row_documents(run: Setting, row: int):
    """The documents of a row, from the definition in the docstring of `data/rows.py`."""
    shuffled, finished = run.shuffled, [0] * len(run.sources)
    for draw in itertools.count():
        source = draw_source(run.seed, row, draw, [source.weight for source in run.sources])
        yield shuffled[source][row + run.batch_rows * finished[source]]
        finished[source] += 1


@any_run()
@given(runs(), lengths)
def test_a_row_draws_its_sources_and_their_documents_in_order(finished_documents, run, length):
    batches = take(run.open(length), 8)
    for row in range(run.batch_rows):
        read = finished_documents(run.representation, stream(batches, row))
        assert read == take(row_documents(run, row), len(read))


@any_run()
@given(runs(), lengths, st.data())
def test_hosts_read_the_rows_of_one_global_batch(run, length, data):
    num_hosts = data.draw(st.integers(1, run.batch_rows))
    host_of_row = data.draw(st.lists(st.integers(0, num_hosts - 1), min_size=run.batch_rows, max_size=run.batch_rows))
    whole = take(run.open(length), 4)
    for host in set(host_of_row):
        own = [row for row in range(run.batch_rows) if host_of_row[row] == host]
        assert_same(
            take(run.open(length, rows=own), 4), [{name: batch[name][own] for name in batch} for batch in whole]
        )


@any_run()
@given(runs(), lengths, lengths)
def test_a_stream_does_not_know_where_it_is_cut_into_sequences(run, length, other_length):
    batches, others = take(run.open(length), other_length), take(run.open(other_length), length)
    for row in range(run.batch_rows):
        assert stream(batches, row, "ids") == stream(others, row, "ids")
        assert stream(batches, row) == stream(others, row)
    np.testing.assert_array_equal(batches[-1]["cursors"], others[-1]["cursors"])
    assert sum(batch["num_bytes"].sum() for batch in batches) == sum(batch["num_bytes"].sum() for batch in others)


@any_run(max_examples=15)
@given(runs(), lengths, st.integers(2, 5))
def test_workers_change_nothing(run, length, num_workers):
    assert_same(take(run.open(length, num_workers=num_workers), 5), take(run.open(length), 5))


@any_run()
@given(runs(), lengths, st.integers(0, 9), st.integers(0, 9), st.data())
def test_resumes_exactly_from_the_cursors_of_any_batch(run, length, first_stop, second_stop, data):
    first_stop, second_stop = sorted((first_stop, second_stop))
    straight = take(run.open(length), 12)
    first = take(run.open(length), first_stop)
    second = take(run.open(length, cursors=first[-1]["cursors"] if first else None), second_stop - first_stop)
    assert_same(first + second, straight[:second_stop])
    own = data.draw(st.lists(st.integers(0, run.batch_rows - 1), min_size=1, unique=True))  # by another number of hosts
    cursors = np.array((first + second)[-1]["cursors"][own]) if first + second else None
    third = take(run.open(length, rows=own, cursors=cursors), 12 - second_stop)
    assert_same(third, [{name: batch[name][own] for name in batch} for batch in straight[second_stop:]])


def test_resumes_past_the_end_of_an_epoch():
    run = Setting([Source([b"one", b"", b"three"])], ByteRepresentation(), 2, 5)
    straight = take(run.open(4), 60)
    epochs = straight[29]["cursors"][:, 0] * 2 / 3
    assert (epochs > 5).all()
    assert_same(take(run.open(4, cursors=straight[29]["cursors"]), 30), straight[30:])


@any_run(max_examples=15)
@given(runs(), lengths, st.integers(0, 4), st.booleans())
def test_get_state_and_set_state(run, length, stop, prefetch):
    straight = take(run.open(length), 8)

    def opened():
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(run.open(length), prefetch_buffer_size=2)
            if prefetch
            else run.open(length)
        )

    iterator = opened()
    assert_same(take(iterator, stop), straight[:stop])
    state = iterator.get_state()
    np.testing.assert_array_equal(state["cursors"], straight[stop - 1]["cursors"] if stop else 0)
    assert_same(take(iterator, 2), straight[stop : stop + 2])
    iterator.set_state(state)
    assert_same(take(iterator, 2), straight[stop : stop + 2])
    iterator.close()
    another = opened()
    another.set_state(state)
    assert_same(take(another, 8 - stop), straight[stop:])
    another.close()


def test_a_state_is_not_changed_by_reading_on():
    iterator = iter(Setting([Source([b"some text"])], ByteRepresentation(), 1, 0).open(4))
    batch, state = next(iterator), iterator.get_state()
    next(iterator)
    assert batch["cursors"].tolist() == state["cursors"].tolist() == [[0, 4, 0, 0]]


@any_run(max_examples=15)
@given(runs(st.just(None)), lengths, lengths)
def test_representations_read_the_same_documents_in_the_same_order(
    read_until, window_representation, run, length, other_length
):
    of_bytes, of_windows = (
        dataclasses.replace(run, representation=x) for x in (ByteRepresentation(), window_representation)
    )
    assert read_until(of_bytes.open(length), 5) == read_until(of_windows.open(other_length), 5)


@pytest.mark.parametrize(
    "kind, document, expected_ids, expected_bytes",
    [
        ("byte", b"ab", [256, 97, 98, 256], 2),
        ("byte", b"", [256, 256], 0),
        ("window", b"1234", [8192, *divmod(0x1313233, 8192), *divmod(0x134, 8192), 8192], 4),
    ],
)
def test_positions_of_a_document(window_representation, kind, document, expected_ids, expected_bytes):
    representation = {"byte": ByteRepresentation(), "window": window_representation}[kind]
    [batch] = take(Setting([Source([document])], representation, 1, 0).open(len(expected_ids) - 1), 1)
    assert batch["ids"].tolist() == [expected_ids[:-1]] and batch["targets"].tolist() == [expected_ids[1:]]
    assert batch["num_bytes"].tolist() == [expected_bytes]


def pieces_of_row(batches, row: int) -> list[list[tuple[int, int]]]:
    """The (id, target) pairs of each segment of a row, batch after batch."""
    found = []
    for batch in batches:
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            where = batch["segment_ids"][row] == segment
            found.append(list(zip(batch["ids"][row][where].tolist(), batch["targets"][row][where].tolist())))
            assert batch["positions"][row][where].tolist() == list(range(where.sum()))
    return found


@any_run()
@given(runs(), lengths, lengths)
def test_pieces_are_no_longer_than_said_and_begin_with_the_end_of_a_document(run, length, piece_length):
    eod = run.representation.eod_id
    batches = take(run.open(length, piece_length=piece_length), 6)
    whole = take(run.open(length), 6)
    for row in range(run.batch_rows):
        assert stream(batches, row) == stream(whole, row), "every id is a target once, as without pieces"
        for piece in pieces_of_row(batches, row):
            assert len(piece) <= piece_length
            ids, targets = zip(*piece)
            assert ids == (eod, *targets[:-1]), "a piece sees nothing from before it"
    assert [batch["num_bytes"].tolist() for batch in batches] == [batch["num_bytes"].tolist() for batch in whole]
    np.testing.assert_array_equal(batches[-1]["cursors"], whole[-1]["cursors"])


@any_run()
@given(runs(), lengths, lengths, st.integers(0, 9), st.integers(0, 9))
def test_pieces_go_on_exactly_from_the_cursors_of_any_batch(run, length, piece_length, first_stop, second_stop):
    first_stop, second_stop = sorted((first_stop, second_stop))
    straight = take(run.open(length, piece_length=piece_length), 12)
    resumed = []
    for stop in (first_stop, second_stop, 12):
        cursors = resumed[-1]["cursors"] if resumed else None
        resumed += take(run.open(length, piece_length=piece_length, cursors=cursors), stop - len(resumed))
    assert_same(resumed, straight)


def cuts(seed: int, num_documents: int = 60, document_length: int = 23, piece_length: int = 8) -> list[tuple[int, ...]]:
    """Where each of some equal documents is cut."""
    run = Setting([Source([b"x" * document_length])], ByteRepresentation(), 1, seed)
    # A row as long as a document's positions, so that only pieces are cut.
    batches = take(run.open(document_length + 1, piece_length=piece_length), num_documents)
    lengths = [[len(piece) for piece in pieces_of_row([batch], 0)] for batch in batches]
    assert all(piece == piece_length for document in lengths for piece in document[1:-1])
    return [tuple(itertools.accumulate(document[:-1])) for document in lengths]


def test_documents_are_cut_from_a_random_place_on_each_time_another_one():
    first_cuts = [document[0] for document in cuts(0)]
    assert set(first_cuts) == set(range(1, 9)), "every place is as good as another"
    assert np.bincount(first_cuts).max() < 20
    assert cuts(0) == cuts(0) != cuts(1)


def encodes_together(windows: Representation, batch_documents: int) -> Representation:
    """The same representation, but better given several documents at once; notes how many it was given."""

    class EncodesTogether(type(windows)):
        def __init__(self):
            self.batch_documents, self.given = batch_documents, []

        def encode_many(self, texts):
            self.given.append(len(texts))
            return [(ids := self.encode(text), self.byte_lengths(ids)) for text in texts]

    return EncodesTogether()


def encoding_together(run: Setting, batch_documents: int) -> Setting:
    return dataclasses.replace(run, representation=encodes_together(run.representation, batch_documents))


@any_run(max_examples=15)
@given(runs(windows), lengths, st.integers(2, 9), st.integers(0, 5), st.integers(1, 4))
def test_encoding_ahead_changes_nothing(run, length, batch_documents, piece_length, num_workers):
    together = encoding_together(run, batch_documents)
    options = dict(piece_length=piece_length, num_workers=num_workers)
    assert_same(take(together.open(length, **options), 12), take(run.open(length, **options), 12))
    assert max(together.representation.given) > 1


@any_run(max_examples=15)
@given(runs(windows), lengths, st.integers(2, 9), st.integers(0, 9), st.data())
def test_encoding_ahead_goes_on_exactly_from_the_cursors_of_any_batch(run, length, batch_documents, stop, data):
    together = encoding_together(run, batch_documents)
    straight = take(run.open(length), 12)
    iterator = iter(together.open(length))
    assert_same(take(iterator, stop), straight[:stop])
    state = iterator.get_state()
    assert_same(take(iterator, 2), straight[stop : stop + 2])
    iterator.set_state(state)  # what was encoded ahead of there is still good
    assert_same(take(iterator, 2), straight[stop : stop + 2])
    own = data.draw(st.lists(st.integers(0, run.batch_rows - 1), min_size=1, unique=True))
    resumed = take(together.open(length, rows=own, cursors=state["cursors"][own]), 12 - stop)
    assert_same(resumed, [{name: batch[name][own] for name in batch} for batch in straight[stop:]])


def test_documents_are_encoded_once_and_dropped_when_read(window_representation):
    together = encodes_together(window_representation, 6)
    run = Setting([Source([bytes([n]) * 999 for n in range(7)])], together, 3, 0)
    iterator = iter(run.open(256))
    num_batches = 400
    take(iterator, num_batches)
    rows = iterator.workers[0].rows
    num_ids = num_batches * 3 * 256
    assert len(rows.pool.ids) < num_ids / 2 and rows.documents.queue_rq.shape[1] <= 6
    assert sum(together.given) <= num_ids / 666 + 9
