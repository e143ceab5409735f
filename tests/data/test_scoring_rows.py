"""Batches for evaluation: every position and byte once, whatever else is in the batch."""

import collections
import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data.encoded import encode
from data.scoring_rows import scoring_batches
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation

representations = st.from_type(Representation)


# Longer than a row, empty, fewer than there are rows: all in here.
documents = st.lists(st.binary(max_size=20), min_size=1, max_size=8)
lengths = st.integers(1, 9)
any_run = functools.partial(settings, deadline=None, max_examples=25)


def positions_of(representation, document):
    """All ids of a document between two that end documents, and the source bytes of each target."""
    [(ids, lengths)] = encode(representation, [document])
    eod = representation.eod_id
    return np.array([eod, *ids, eod]), np.array([*lengths, 0])


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
        ids, target_bytes = positions_of(representation, document)
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


@any_run()
@given(documents, representations, st.integers(1, 4), lengths, lengths)
def test_scoring_in_pieces_has_every_byte_once(documents, representation, batch_rows, length, piece_length):
    options = dict(batch_rows=batch_rows, sequence_length=length, piece_length=piece_length)
    scored, eod = pieces(scoring_batches(enumerate(documents), representation, **options)), representation.eod_id
    for number, document in enumerate(documents):
        ids, target_bytes = positions_of(representation, document)
        assert [id_ for piece in scored[number] for id_ in piece.targets] == ids[1:].tolist()
        assert [count for piece in scored[number] for count in piece.target_bytes] == target_bytes.tolist()
        for piece in scored[number]:
            assert len(piece.ids) <= min(length, piece_length)
            assert piece.ids == (eod, *piece.targets[:-1]) and piece.positions == tuple(range(len(piece.ids)))


@any_run()
@given(documents, representations, st.integers(1, 4), lengths, st.data())
def test_a_sliding_window_scores_every_position_once_behind_enough_of_the_document(
    documents, representation, batch_rows, length, data
):
    stride = data.draw(st.integers(1, length))
    options = dict(batch_rows=batch_rows, sequence_length=length, stride=stride)
    scored = collections.defaultdict(list)
    for batch in scoring_batches(enumerate(documents), representation, **options):
        for row in range(batch_rows):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                where = np.flatnonzero(batch["segment_ids"][row] == segment)
                window = {name: value[row, where] for name, value in batch.items()}
                new = np.flatnonzero(window["documents"] >= 0)
                assert len(new) and (np.diff(new) == 1).all() and new[-1] == len(where) - 1, "the end of a window"
                assert window["positions"].tolist() == list(range(len(where)))
                assert window["ids"][1:].tolist() == window["targets"][:-1].tolist(), "and the rest is its context"
                assert not window["target_bytes"][: new[0]].any()
                [number] = set(window["documents"][new].tolist())
                assert new[0] == (length - stride if scored[number] else 0)
                scored[number] += zip(window["targets"][new].tolist(), window["target_bytes"][new].tolist())
    for number, document in enumerate(documents):
        ids, target_bytes = positions_of(representation, document)
        assert scored[number] == list(zip(ids[1:].tolist(), target_bytes.tolist()))


def test_a_window_that_moves_on_by_its_length_is_a_piece():
    documents = [bytes(range(number)) for number in range(40)]
    options = dict(batch_rows=3, sequence_length=7)
    pieces = list(scoring_batches(enumerate(documents), ByteRepresentation(), **options))
    windows = list(scoring_batches(enumerate(documents), ByteRepresentation(), stride=7, **options))
    for piece, window in zip(pieces, windows, strict=True):
        for name in piece:
            np.testing.assert_array_equal(piece[name], window[name])


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


def test_scoring_stops_at_a_damaged_document(damaged_documents):
    with pytest.raises(UserError, match="record 9"):
        list(
            scoring_batches(
                ((n, damaged_documents[n]) for n in range(10)), ByteRepresentation(), batch_rows=2, sequence_length=10
            )
        )
