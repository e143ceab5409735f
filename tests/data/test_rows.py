"""Row streams: every document in the shuffled order, the same whoever reads, wherever it was cut and resumed."""

import collections
import dataclasses
import functools
import itertools
import threading

import grain
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data import rows
from data.encoder_rows import EncoderRow
from data.rows import RowStreams, Source, document_positions, draw_source, is_noted, scoring_batches
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation

ORDER_CHANGED = (
    "the order in which documents are trained on has changed, by this code or by a new version of grain: a run that was"
    " begun before goes on with other data, and its numbers no longer compare with new runs'. If that is what you want,"
    " copy the new order from below."
)


class WindowRepresentation(Representation):
    """Up to 3 bytes a window, 2 ids a window, the second of which carries the window's bytes."""

    kind = "window"
    vocab_size = (1 << 13) + 1
    eod_id = 1 << 13

    def encode(self, text: bytes) -> np.ndarray:
        windows = [int.from_bytes(b"\1" + text[start : start + 3]) for start in range(0, len(text), 3)]
        return np.array([id_ for window in windows for id_ in divmod(window, 1 << 13)], np.int32)

    def decode(self, ids) -> bytes:
        windows = [high << 13 | low for high, low in zip(map(int, ids[::2]), map(int, ids[1::2]), strict=True)]
        return b"".join(window.to_bytes(4).lstrip(b"\0")[1:] for window in windows)

    def byte_lengths(self, ids) -> np.ndarray:
        return np.array(
            [n for high, low in zip(ids[::2], ids[1::2]) for n in (0, len(self.decode([high, low])))], np.int64
        )

    def to_files(self):
        return {}

    @classmethod
    def from_files(cls, files):
        return cls()


REPRESENTATIONS = [ByteRepresentation(), WindowRepresentation()]
representations = st.sampled_from(REPRESENTATIONS)
# Longer than a row, empty, fewer than there are rows: all in here.
documents = st.lists(st.binary(max_size=20), min_size=1, max_size=8)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What decides the streams of a run."""

    sources: list[Source]
    representation: object
    batch_rows: int
    seed: int

    def open(self, sequence_length: int, **options) -> RowStreams:
        streams = self._open(sequence_length, **options)
        streams.shuffled = self._shuffled
        return streams

    @functools.cached_property
    def _shuffled(self) -> "list[Remembered]":
        return [Remembered(shuffled) for shuffled in self._open(1).shuffled]

    def _open(self, sequence_length: int, **options) -> RowStreams:
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
def runs(draw, representations=representations):
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


def finished_documents(representation, targets: list[int]) -> list[bytes]:
    """The documents that a stream of targets holds whole."""
    ends = [at for at, id_ in enumerate(targets) if id_ == representation.eod_id]
    starts = [0, *(end + 1 for end in ends)]
    return [representation.decode(np.array(targets[start:end], np.int32)) for start, end in zip(starts, ends)]


def read_until(streams: RowStreams, num_documents: int) -> list[list[bytes]]:
    """The first `num_documents` documents of each row."""
    batches, num_finished = [], 0
    for batch in streams:
        batches.append(batch)
        num_finished += (batch["targets"] == streams.representation.eod_id).sum(axis=1)
        if min(num_finished) >= num_documents:
            break
    return [
        finished_documents(streams.representation, stream(batches, row))[:num_documents]
        for row in range(len(streams.rows))
    ]


@any_run()
@given(documents, representations, st.integers(1, 10), lengths, st.integers(0, 2**64))
def test_each_epoch_has_every_document_once_in_the_shuffled_order(documents, representation, batch_rows, length, seed):
    streams = Setting([Source(documents)], representation, batch_rows, seed).open(length)
    num_epochs = 3
    by_row = read_until(streams, -(-num_epochs * len(documents) // batch_rows))
    in_order = [by_row[n % batch_rows][n // batch_rows] for n in range(num_epochs * len(documents))]
    for epoch in range(num_epochs):
        one_epoch = in_order[epoch * len(documents) : (epoch + 1) * len(documents)]
        assert collections.Counter(one_epoch) == collections.Counter(documents), epoch
    assert in_order == [streams.shuffled[0][n] for n in range(len(in_order))]


def test_epochs_and_seeds_are_shuffled_differently():
    numbered = [bytes([n]) for n in range(100)]

    def order(seed):
        return [
            document
            for [document] in zip(*read_until(Setting([Source(numbered)], ByteRepresentation(), 1, seed).open(50), 200))
        ]

    first, second = order(0)[:100], order(0)[100:]
    assert first != second != numbered != first
    assert order(1)[:100] not in (first, second)  # a seed is not the epochs of another one, shifted


def test_golden_order():
    source, other = ([name + bytes([n]) for n in range(10)] for name in (b"a", b"b"))
    streams = Setting([Source(source, 2.0), Source(other, 1.0)], ByteRepresentation(), 3, 17).open(16)
    order = [" ".join(f"{chr(document[0])}{document[1]}" for document in row) for row in read_until(streams, 12)]
    assert order == [
        "a4 a0 a8 a5 a8 a4 a7 a2 a6 b6 b2 a5",
        "a7 a2 a3 b4 a1 a3 b1 a6 a0 a7 b5 a9",
        "a9 a1 a6 a9 b7 a2 a5 a8 a1 a3 b0 a0",
    ], f"{ORDER_CHANGED}\n{order}"


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
            expected += document_positions(run.representation, [document])[0][1].tolist()
            if len(expected) >= left:
                break
        by_batch = np.reshape(expected[:left], (num_batches, length)).sum(axis=1)
        assert [int(batch["num_bytes"][row]) for batch in batches] == by_batch.tolist()


def row_documents(run: Setting, row: int):
    """The documents of a row, from the definition in the docstring of `data/rows.py`."""
    shuffled, finished = run.open(1).shuffled, [0] * len(run.sources)
    for draw in itertools.count():
        source = draw_source(run.seed, row, draw, [source.weight for source in run.sources])
        yield shuffled[source][row + run.batch_rows * finished[source]]
        finished[source] += 1


@any_run()
@given(runs(), lengths)
def test_a_row_draws_its_sources_and_their_documents_in_order(run, length):
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
def test_representations_read_the_same_documents_in_the_same_order(run, length, other_length):
    of_bytes, of_windows = (
        dataclasses.replace(run, representation=representation) for representation in REPRESENTATIONS
    )
    assert read_until(of_bytes.open(length), 5) == read_until(of_windows.open(other_length), 5)


def test_draws_are_near_their_weights_in_every_row():
    for row in range(3):
        draws = np.array([draw_source(1, row, draw, (1.0, 0.5, 2.5)) for draw in range(20_000)])
        np.testing.assert_allclose(np.bincount(draws) / len(draws), [0.25, 0.125, 0.625], atol=0.015)  # > 4 sigma
        neighbours = np.corrcoef(draws[1:], draws[:-1])[0, 1]
        assert abs(neighbours) < 0.03


def test_draws_depend_on_seed_row_and_draw_only():
    def draws(seed, row, numbers=range(64), weights=(1, 1)):
        return [draw_source(seed, row, n, weights) for n in numbers]

    assert draws(1, 2) == draws(1, 2)
    assert draws(1, 2) == draws(1, 2, range(63, -1, -1))[::-1]
    assert draws(1, 2) == draws(1, 2, weights=(0.5, 0.5))
    assert len({tuple(draws(seed, row)) for seed in (1, 2, 11) for row in (1, 2, 12)}) == 9
    assert not any(draws(1, 2, weights=(3.0,)))


@pytest.mark.parametrize("digest", [b"\0" * 8, b"\xff" * 8])
def test_a_draw_at_either_end_is_a_source(monkeypatch, digest):
    class Digest:
        def __init__(self, *args, **options): ...

        def digest(self):
            return digest

    monkeypatch.setattr(rows.hashlib, "blake2b", Digest)
    for weights in [(1.0, 1.0), (0.1, 0.2, 0.3), (3.0, 1e-9)]:
        assert draw_source(0, 0, 0, weights) == (0 if digest[0] == 0 else len(weights) - 1)


def test_a_corpus_without_documents_is_refused():
    with pytest.raises(UserError, match="without documents.*ingest"):
        Setting([Source([b"text"]), Source([])], ByteRepresentation(), 1, 0).open(4)


class DamagedDocuments:
    """Ten documents, the last of which cannot be read."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 9:
            raise UserError("shard 3, record 9, is damaged")
        return b"fine"


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_damaged_document_stops_the_stream(prefetch):
    streams = Setting([Source(DamagedDocuments())], ByteRepresentation(), 2, 0).open(4)
    batches = (
        iter(grain.experimental.ThreadPrefetchIterDataset(streams, prefetch_buffer_size=2))
        if prefetch
        else iter(streams)
    )
    with pytest.raises(UserError, match="record 9"):
        take(batches, 20)
    batches.close()


@pytest.mark.parametrize(
    "representation, document, expected_ids, expected_bytes",
    [
        (ByteRepresentation(), b"ab", [256, 97, 98, 256], [1, 1, 0]),
        (ByteRepresentation(), b"", [256, 256], [0]),
        (
            WindowRepresentation(),
            b"1234",
            [8192, *divmod(0x1313233, 8192), *divmod(0x134, 8192), 8192],
            [0, 3, 0, 1, 0],
        ),
    ],
)
def test_document_positions(representation, document, expected_ids, expected_bytes):
    [(ids, target_bytes)] = document_positions(representation, [document])
    assert ids.tolist() == expected_ids
    assert target_bytes.tolist() == expected_bytes  # of the targets ids[1:]


def test_wrong_byte_lengths_are_a_bug():
    class Forgetful(ByteRepresentation):
        def byte_lengths(self, ids):
            return super().byte_lengths(ids)[:-1]

    with pytest.raises(AssertionError, match="byte: 3 bytes of a text of 4"):
        document_positions(Forgetful(), [b"text"])


def test_a_cursor_behind_the_end_of_its_document_is_a_bug():
    streams = Setting([Source([b"text"])], ByteRepresentation(), 1, 0).open(4, cursors=[[0, 5, 0, 0]])
    with pytest.raises(AssertionError, match="position 5"):
        next(iter(streams))


def test_the_workers_of_a_dropped_iterator_end():
    before = set(threading.enumerate())
    iterator = iter(Setting([Source([b"text"])], ByteRepresentation(), 4, 0).open(4, num_workers=3))
    next(iterator)
    workers = set(threading.enumerate()) - before
    assert workers
    del iterator
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()


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


@any_run()
@given(documents, representations, st.integers(1, 4), lengths, lengths)
def test_scoring_in_pieces_has_every_byte_once(documents, representation, batch_rows, length, piece_length):
    options = dict(batch_rows=batch_rows, sequence_length=length, piece_length=piece_length)
    scored, eod = pieces(scoring_batches(enumerate(documents), representation, **options)), representation.eod_id
    for number, document in enumerate(documents):
        [(ids, target_bytes)] = document_positions(representation, [document])
        assert [id_ for piece in scored[number] for id_ in piece.targets] == ids[1:].tolist()
        assert [count for piece in scored[number] for count in piece.target_bytes] == target_bytes.tolist()
        for piece in scored[number]:
            assert len(piece.ids) <= min(length, piece_length)
            assert piece.ids == (eod, *piece.targets[:-1]) and piece.positions == tuple(range(len(piece.ids)))


class EncodesTogether(WindowRepresentation):
    """`WindowRepresentation` that is better given several documents at once; notes how many it was given."""

    def __init__(self, batch_documents: int):
        self.batch_documents, self.given = batch_documents, []

    def encode_many(self, texts):
        self.given.append(len(texts))
        return [(ids := self.encode(text), self.byte_lengths(ids)) for text in texts]


def encoding_together(run: Setting, batch_documents: int) -> Setting:
    together = dataclasses.replace(run, representation=EncodesTogether(batch_documents))
    vars(together)["_shuffled"] = run._shuffled
    return together


@any_run(max_examples=15)
@given(runs(st.just(WindowRepresentation())), lengths, st.integers(2, 9), st.integers(0, 5), st.integers(1, 4))
def test_encoding_ahead_changes_nothing(run, length, batch_documents, piece_length, num_workers):
    together = encoding_together(run, batch_documents)
    options = dict(piece_length=piece_length, num_workers=num_workers)
    assert_same(take(together.open(length, **options), 12), take(run.open(length, **options), 12))
    assert max(together.representation.given) > 1


@any_run(max_examples=15)
@given(runs(st.just(WindowRepresentation())), lengths, st.integers(2, 9), st.integers(0, 9), st.data())
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


def test_documents_encoded_ahead_are_dropped_when_read():
    run = Setting([Source([bytes([n]) * 3 for n in range(7)])], EncodesTogether(6), 3, 0)
    iterator = iter(run.open(4))
    take(iterator, 200)
    open_ = iterator._rows[0]._open
    assert len(open_._ready) <= 6 + 3 and sum(run.representation.given) <= 800 + 9


@dataclasses.dataclass(frozen=True)
class Piece:
    """Part of a document as it is scored."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    positions: tuple[int, ...]
    target_bytes: tuple[int, ...]


def pieces(batches) -> dict[int, list[Piece]]:
    """Document number -> its pieces, in the order of the batches."""
    found = collections.defaultdict(list)
    for batch in batches:
        for row in range(len(batch["ids"])):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                where = batch["segment_ids"][row] == segment
                [number] = set(batch["documents"][row][where].tolist())
                found[number].append(
                    Piece(*(tuple(batch[field.name][row][where].tolist()) for field in dataclasses.fields(Piece)))
                )
    return found


@any_run()
@given(documents, representations, st.integers(1, 4), lengths, st.integers(1, 3))
def test_scoring_has_every_position_and_byte_once(documents, representation, batch_rows, length, num_workers):
    numbered = list(enumerate(documents, start=100))
    batches = list(
        scoring_batches(
            numbered, representation, batch_rows=batch_rows, sequence_length=length, num_workers=num_workers
        )
    )
    scored = pieces(batches)
    assert scored.keys() == dict(numbered).keys()
    for number, document in numbered:
        [(ids, target_bytes)] = document_positions(representation, [document])
        join = lambda name: [x for piece in scored[number] for x in getattr(piece, name)]
        assert join("ids") == ids[:-1].tolist()
        assert join("targets") == ids[1:].tolist()
        assert join("target_bytes") == target_bytes.tolist()
        assert sum(join("target_bytes")) == len(document)
        assert join("positions") == [position % length for position in range(len(ids) - 1)]
    assert sum(batch["target_bytes"].sum() for batch in batches) == sum(map(len, documents))


@any_run()
@given(documents, representations, st.integers(1, 4), lengths)
def test_scoring_batches_have_one_shape_and_marked_padding(documents, representation, batch_rows, length):
    for batch in scoring_batches(enumerate(documents), representation, batch_rows=batch_rows, sequence_length=length):
        assert {(array.shape, array.dtype) for array in batch.values()} == {((batch_rows, length), np.dtype(np.int32))}
        padding = batch["segment_ids"] == 0
        assert not padding.all()
        assert (batch["documents"][padding] == -1).all() and (batch["documents"][~padding] >= 0).all()
        for name in ("ids", "targets", "positions", "target_bytes"):
            assert not batch[name][padding].any()


@any_run()
@given(documents, representations, st.integers(1, 4), lengths)
def test_the_pieces_of_a_document_do_not_depend_on_the_others(documents, representation, batch_rows, length):
    options = dict(representation=representation, batch_rows=batch_rows, sequence_length=length)
    together = pieces(scoring_batches(enumerate(documents), **options))
    for number, document in enumerate(documents):
        assert together[number] == pieces(scoring_batches([(number, document)], **options))[number]


def test_what_is_left_over_of_documents_shares_rows():
    four = enumerate([b"four"] * 3 + [b"twelve bytes"])
    [batch] = scoring_batches(four, ByteRepresentation(), batch_rows=4, sequence_length=10)
    assert batch["segment_ids"].tolist() == [[1] * 5 + [2] * 5, [1] * 10, [1] * 5 + [2] * 3 + [0] * 2, [0] * 10]
    assert batch["documents"].tolist() == [[0] * 5 + [1] * 5, [3] * 10, [2] * 5 + [3] * 3 + [-1] * 2, [-1] * 10]


def test_scoring_reads_only_what_it_needs():
    read = []

    def many():
        for number in range(10_000):
            read.append(number)
            yield number, b"text"

    batches = scoring_batches(many(), ByteRepresentation(), batch_rows=2, sequence_length=10, num_workers=2)
    next(batches)
    assert len(read) < 30
    batches.close()


def test_scoring_stops_at_a_damaged_document():
    damaged = DamagedDocuments()
    with pytest.raises(UserError, match="record 9"):
        list(
            scoring_batches(
                ((n, damaged[n]) for n in range(10)), ByteRepresentation(), batch_rows=2, sequence_length=10
            )
        )


# The running hash of what a row has read.


def hashes_of(representation, length: int, texts=None, batches: int = 40, **options) -> dict[tuple[int, int], bytes]:
    """(row, documents finished) -> the hash that was noted there."""
    noted = {}
    documents = [text.encode() for text in texts or ["one", "two and", "three", "", "five is here", "six", "7"]]
    streams = RowStreams(
        [Source(documents)],
        representation,
        batch_rows=2,
        sequence_length=length,
        seed=options.pop("seed", 3),
        note_hash=lambda row, number, digest: noted.setdefault((row, number), digest),
        **options,
    )
    take(streams, batches)
    return noted


def test_rows_note_the_same_hashes_however_the_documents_are_encoded_and_cut():
    """Bytes in rows of 5 and 16, for decoders and encoders: other batches, the same documents."""
    several = [
        hashes_of(ByteRepresentation(), 5),
        hashes_of(ByteRepresentation(), 16),
        hashes_of(ByteRepresentation(), 16, layout=EncoderRow),
    ]
    assert len(several[0]) > 10 and several[0].keys() < several[1].keys()
    for others in several[1:]:
        assert {key: others[key] for key in several[0]} == several[0]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"texts": ["one", "two and", "three", "", "five is hera", "six", "7"]},
        {"texts": ["onetwo and", "", "three", "", "five is here", "six", "7"]},
    ],
)
def test_another_order_or_another_byte_is_another_hash(change):
    straight, other = hashes_of(ByteRepresentation(), 16), hashes_of(ByteRepresentation(), 16, **change)
    last = max(number for row, number in straight.keys() & other.keys())
    assert any(straight[row, last] != other[row, last] for row in range(2))


def test_a_row_goes_on_with_its_hash():
    open_ = lambda **options: RowStreams(
        [Source([b"some", b"text", b"or other"])],
        ByteRepresentation(),
        batch_rows=1,
        sequence_length=4,
        seed=0,
        **options,
    )
    straight, noted = take(open_(), 12), {}
    resumed = take(
        open_(cursors=straight[4]["cursors"], note_hash=lambda row, number, digest: noted.setdefault(number, digest)), 7
    )
    assert (
        noted
        and resumed[-1]["cursors"].tolist() == straight[11]["cursors"].tolist()
        and straight[11]["cursors"][0, -2:].all()
    )
    assert take(open_(), 12)[11]["cursors"][0, -2:].tobytes() == straight[11]["cursors"][0, -2:].tobytes()


def test_two_rows_that_have_come_to_n_documents_have_noted_one_number_near_it():
    for number in range(1, 3000):
        assert any(is_noted(near) for near in range(int(0.8 * number) + 1, number + 1)), number
    assert sum(map(is_noted, range(1, 1 << 20))) < 80
