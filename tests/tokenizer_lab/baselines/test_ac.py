"""Arithmetic coding under a byte language model: its contract, and what fitting it charges."""

import pickle

import numpy as np
import pytest

from tokenizer_lab.baselines import ac, arithmetic_coder
from tokenizer_lab.baselines.ac import ACFit, ACRepresentation
from tokenizer_lab.baselines.arithmetic_coder import END
from tokenizer_lab.equal_info import lockstep
from tokenizer_lab.errors import UserError

TEXTS = [b"", b"a", b"two pieces, and a third that is short.", bytes(range(250, 256)) * 2]


@pytest.fixture(scope="module", autouse=True)
def short_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ac, "PIECE_BYTES", 15)
        patch.setattr(lockstep, "NUM_LANES", 4)
        yield


@pytest.fixture(scope="module")
def lm(make_byte_lm):
    return make_byte_lm(context_bytes=8)


@pytest.fixture(scope="module", params=[8, 16])
def representation(request, lm) -> ACRepresentation:
    return ACRepresentation(lm, request.param)


def test_any_bytes_come_back_and_each_id_says_how_many_it_carries(representation):
    for text, (ids, lengths) in zip(TEXTS, representation.encode_many(TEXTS), strict=True):
        assert ids.dtype == np.int32 and ids.max(initial=0) < representation.eod_id == representation.vocab_size - 1
        assert representation.decode(ids) == text and lengths.sum() == len(text)
        np.testing.assert_array_equal(representation.byte_lengths(ids), lengths)
        np.testing.assert_array_equal(representation.encode(text), ids)


def test_any_ids_decode_and_ends_of_documents_stand_for_nothing(representation):
    ids = np.random.RandomState(0).randint(0, representation.vocab_size, 12)
    assert len(representation.decode(ids)) == representation.byte_lengths(ids).sum()
    ids = representation.encode(TEXTS[2])
    with_ends = np.insert(ids, [0, 3, len(ids)], representation.eod_id)
    assert representation.decode(with_ends) == TEXTS[2]
    assert representation.byte_lengths(with_ends)[[0, 4, -1]].tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="outside the vocabulary"):
        representation.decode([representation.vocab_size])


def test_ids_are_as_many_as_the_information_of_each_piece_takes(representation, lm):
    text = TEXTS[2]
    bits = 0.0
    for start in range(0, len(text), 15):
        piece = np.frombuffer(text[start : start + 15], np.uint8)
        shares = ac._frequencies(lm.shares_behind_each(piece))
        bits += -np.log2(shares[np.arange(len(piece) + 1), np.append(piece, END)] / 2**16).sum()
    id_bits = int(np.log2(representation.eod_id))
    assert bits / id_bits <= len(representation.encode(text)) <= bits / id_bits + 3 * (1 + 2 / id_bits)


def test_a_code_that_would_not_decode_is_noticed_when_it_is_made(representation, monkeypatch):
    decode = arithmetic_coder.decode

    def wrong(*arguments):
        symbols, num_bits_needed = decode(*arguments)
        return np.where(symbols == ord("p"), ord("q"), symbols), num_bits_needed

    monkeypatch.setattr(arithmetic_coder, "decode", wrong)
    assert representation.verifies_encoding and len(representation.encode(b"as it is"))
    with pytest.raises(RuntimeError, match="does not decode to its text"):
        representation.encode(b"a piece")


def test_an_artifact_and_a_worker_give_the_same_ids(representation, tmp_path):
    representation.save(tmp_path / "ac")
    for copy in (ac.ACRepresentation.from_files(representation.to_files()), pickle.loads(pickle.dumps(representation))):
        assert copy.fingerprint == representation.fingerprint
        np.testing.assert_array_equal(copy.encode(TEXTS[2]), representation.encode(TEXTS[2]))


def test_fitting_charges_the_positions_that_encoding_a_sample_takes(lm):
    """Of many documents, the empty ones and the short ones among them: before each byte of a piece, and at its end."""
    fitted = ACFit(sample_bytes=60).fit(iter([b"", b"x", *TEXTS, b"y" * 1000]), "abc", lm, 5.0, None)
    sample = sorted([b"", b"x", *TEXTS, b"y" * 1000], key=len)
    num_bytes, num_ids, flops = 0, 0, 0.0
    for number, text in enumerate(sample):
        text = text[: (60 - num_bytes) // (len(sample) - number)]
        num_bytes, num_ids = num_bytes + len(text), num_ids + len(fitted.encode(text))
        for start in range(0, len(text), 15):
            for depth in range(len(text[start : start + 15]) + 1):
                flops += lm.flops(np.eye(depth + 1, dtype=int)[-1])
    assert num_bytes == 60
    assert (fitted.fit_corpus_hash, fitted.costs["fit_flops"]) == ("abc", 5.0)
    assert fitted.statistics == {"bytes_per_id": 60 / num_ids}
    assert fitted.costs["encode_flops_per_id"] == pytest.approx(flops / num_ids)


def test_a_corpus_without_bytes_is_refused(lm):
    with pytest.raises(UserError, match="have 0 bytes"):
        ACFit().fit(iter([b""]), "", lm, 0.0, None)
