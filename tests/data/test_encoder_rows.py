"""Rows for encoders: every id of every document once and in order, and resumable like all rows."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from data.encoder_rows import EncoderRow, PairRow, held_out_batches
from data.rows import RowStreams, Source
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.representation import CLS, SEP, EncodedBatch

BYTES = ByteRepresentation()
CLS_ID, SEP_ID = BYTES.vocab_size + CLS, BYTES.vocab_size + SEP
lengths = st.integers(8, 40)
few_examples = settings(max_examples=8, deadline=None)
# Empty documents, some of one id, some longer than a row.
texts = st.lists(st.binary(max_size=90), min_size=1, max_size=8)


def open_rows(documents, length, layout=EncoderRow, *, batch_rows=2, seed=0, **options) -> RowStreams:
    return RowStreams(
        [Source(documents)], BYTES, batch_rows=batch_rows, sequence_length=length, seed=seed, layout=layout, **options
    )


def pieces(row: dict) -> list[bytes]:
    """What stands between the marks of each segment of one row, after a look at its form."""
    found = []
    for segment in range(1, row["segment_ids"].max() + 1):
        where = row["segment_ids"] == segment
        ids = row["ids"][where]
        assert ids[0] == CLS_ID and ids[-1] == SEP_ID and (ids[1:-1] < BYTES.vocab_size).all()
        np.testing.assert_array_equal(row["positions"][where], np.arange(len(ids)))
        found.append(BYTES.decode(ids[1:-1]))
    padding = row["segment_ids"] == 0
    assert not row["ids"][padding].any() and (np.diff(padding.astype(int)) >= 0).all()  # behind everything
    return found


def rows_of(batches, number):
    return [{name: value[number] for name, value in batch.items()} for batch in batches]


@few_examples
@given(texts, lengths, st.integers(0, 2**64))
def test_every_byte_is_seen_in_order(documents, length, seed):
    streams = open_rows(documents, length, seed=seed)
    batches = list(itertools.islice(streams, 12))
    for number in range(2):
        rows = rows_of(batches, number)
        text = b"".join(piece for row in rows for piece in pieces(row))
        # Documents that are finished, and what is done of the one the row is in.
        finished, done = map(int, batches[-1]["cursors"][number][:2])
        ordinals = range(number, number + 2 * finished, 2)
        [order] = streams.setting.orders
        *expected, current = order.documents(np.array([*ordinals, number + 2 * finished]))
        assert text == b"".join(documents[index] for index in expected) + documents[current][:done]
        assert sum(int(row["num_bytes"]) for row in rows) == len(text)


@few_examples
@given(texts, lengths, st.sampled_from([EncoderRow, PairRow]), st.integers(0, 5), st.integers(1, 5))
def test_rows_go_on_from_any_cursor_on_any_host(documents, length, layout, before, after):
    documents = [*documents, b"a\nb\nc"]
    straight = list(itertools.islice(open_rows(documents, length, layout), before + after))
    cursors = straight[before - 1]["cursors"] if before else np.zeros((2, 4), np.int32)
    for number in range(2):
        resumed = open_rows(documents, length, layout, rows=[number], cursors=cursors[number : number + 1])
        for ours, theirs in zip(resumed, straight[before:]):
            for name, value in ours.items():
                np.testing.assert_array_equal(value[0], theirs[name][number], err_msg=name)


def test_chance_is_another_in_every_row_and_sequence():
    batches = list(itertools.islice(open_rows([b"abc" * 40], 16, batch_rows=4), 50))
    seeds = np.concatenate([batch["row_seeds"] for batch in batches])
    assert seeds.dtype == np.uint32 and len(np.unique(seeds)) == len(seeds)
    assert set(open_rows([b"abc"], 16, seed=1).__iter__().__next__()["row_seeds"]).isdisjoint(seeds)


def test_rows_are_nearly_full():
    documents = [
        bytes(random.Random(number).choices(range(97, 123), k=length))
        for number, length in enumerate([5, 700, 31, 90] * 10)
    ]
    filled = [(batch["segment_ids"] > 0).mean() for batch in itertools.islice(open_rows(documents, 64), 100)]
    assert np.mean(filled) > 0.95 and min(filled) > 0.8


LINES = [b"%d: %s\n" % (number, b"x" * (number * 7 % 23)) for number in range(60)]


def test_pairs_are_neighbouring_lines():
    batches = list(itertools.islice(open_rows([b"".join(LINES)], 64, PairRow, batch_rows=1), 400))
    singles, splits = 0, []
    for batch in batches:
        ids, types = batch["ids"][0], batch["types"][0]
        assert (batch["segment_ids"][0] <= 1).all() and ids[0] == CLS_ID
        ends = np.flatnonzero(ids == SEP_ID)
        first = ids[1 : ends[0]].astype(np.uint8).tobytes()
        second = ids[ends[0] + 1 : ends[1]].astype(np.uint8).tobytes() if len(ends) == 2 else b""
        assert len(ends) == 1 + bool(second)
        # Line numbers of each segment, without the last line, of which a part may be cut off.
        numbers = [[int(line.split(b":")[0]) for line in segment.splitlines()[:-1]] for segment in (first, second)]
        assert all(segment == sorted(segment) for segment in numbers)
        both = sorted(numbers[0] + numbers[1])
        assert len(set(both)) == len(both) and (not both or both[-1] - both[0] < len(both) + 2)
        assert not types[: ends[0] + 1].any() and types[ends[0] + 1 : ends[-1] + 1].all()
        assert batch["num_bytes"][0] == len(first) + len(second)
        singles += not second
        splits.append(len(first))
    assert 0.05 < singles / len(batches) < 0.5  # by design a tenth, and where the text or the target is short
    assert 15 < np.mean(splits) < 40  # about half a row


def test_blank_documents_give_empty_pairs():
    [batch] = itertools.islice(open_rows([b"", b" \n\n"], 16, PairRow), 1)
    assert (batch["segment_ids"] > 0).sum(axis=1).tolist() == [2, 2] and batch["num_bytes"].tolist() == [0, 0]


@few_examples
@given(texts, lengths, st.integers(1, 4))
def test_held_out_text_is_read_once(documents, length, batch_rows):
    batches = list(held_out_batches(documents, BYTES, batch_rows=batch_rows, sequence_length=length))
    found = [
        piece
        for batch, _ in batches
        for number in range(batch_rows)
        for piece in pieces({name: value[number] for name, value in batch.items()})
    ]
    assert b"".join(found) == b"".join(documents)
    assert sum(num_bytes for _, num_bytes in batches) == len(b"".join(documents))
    again = list(held_out_batches(documents, BYTES, batch_rows=batch_rows, sequence_length=length))
    for (ours, _), (theirs, _) in zip(batches, again, strict=True):
        np.testing.assert_array_equal(ours["row_seeds"], theirs["row_seeds"])


def test_wrong_byte_lengths_are_a_bug():
    class Forgetful(ByteRepresentation):
        def encode_batch(self, texts):
            ids, bytes_per_id, ends = super().encode_batch(texts)
            return EncodedBatch(ids, bytes_per_id * 2, ends)

    streams = RowStreams([Source([b"text"])], Forgetful(), batch_rows=1, sequence_length=16, seed=0, layout=EncoderRow)
    with pytest.raises(AssertionError):
        next(iter(streams))
