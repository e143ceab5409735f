"""The running hash of what a row has read."""

import itertools

import numpy as np
import pytest

from data.document_hash import is_noted
from data.encoder_rows import EncoderRow
from data.rows import RowStreams, Source
from tokenizer_lab.byte import ByteRepresentation


def take(batches, count: int) -> list[dict]:
    return list(itertools.islice(batches, count))


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
    noted = is_noted(np.arange(1 << 20))
    for number in range(1, 3000):
        assert noted[int(0.8 * number) + 1 : number + 1].any(), number
    assert noted[1:].sum() < 80
