import json
import pickle
import random
import zlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import tokenizer_lab
from tokenizer_lab import UserError
from tokenizer_lab.baselines.gzip_code import FIT_OPTIONS, GzipRepresentation

ID_BITS = [8, 16]
HEADER = [0x78, 0x9C]

any_document = st.lists(
    st.one_of(st.binary(max_size=20), st.sampled_from([b"abra ", b"a" * 300, b"\0" * 4000, bytes(range(256))])),
    max_size=6,
).map(b"".join)


@pytest.fixture(params=ID_BITS)
def representation(request) -> GzipRepresentation:
    return GzipRepresentation(request.param)


def assert_keeps_contract(representation: GzipRepresentation, document: bytes) -> None:
    ids = representation.encode(document)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ids.min(initial=0) >= 0 and ids.max(initial=0) < representation.eod_id == representation.vocab_size - 1
    assert representation.decode(ids) == document
    lengths = representation.byte_lengths(ids)
    assert lengths.dtype == np.int64 and lengths.shape == ids.shape and lengths.sum() == len(document)


@pytest.mark.parametrize("id_bits", ID_BITS)
@given(document=any_document)
@settings(max_examples=60, deadline=None)
def test_any_bytes_come_back(id_bits, document):
    assert_keeps_contract(GzipRepresentation(id_bits), document)


def test_each_byte_and_long_documents_come_back(representation):
    long = [random.Random(0).randbytes(50_000), b"a" * 2_000_000, b"abracadabra " * 5_000, bytes(range(256)) * 100]
    for document in [b"", *(bytes([byte]) for byte in range(256)), *long]:
        assert_keeps_contract(representation, document)


def test_ids_are_the_stream_s_bytes(documents):
    for document in documents:
        stream = zlib.compress(document)
        assert GzipRepresentation(8).encode(document).tolist() == list(stream)
        padded = stream + b"\0" * (len(stream) % 2)
        assert GzipRepresentation(16).encode(document).astype(">u2").tobytes() == padded


def test_tiny_streams_are_these_ids():
    assert GzipRepresentation(8).encode(b"").tolist() == [*HEADER, 0x03, 0, 0, 0, 0, 1]
    assert GzipRepresentation(8).encode(b"a").tolist() == [*HEADER, 0x4B, 0x04, 0, 0, 0x62, 0, 0x62]
    assert GzipRepresentation(16).encode(b"a").tolist() == [0x789C, 0x4B04, 0x0000, 0x6200, 0x6200]
    assert GzipRepresentation(8).byte_lengths([*HEADER, 0x4B, 0x04, 0, 0, 0x62, 0, 0x62]).sum() == 1
    assert GzipRepresentation(8).fingerprint == "2e394fa9b84289fdfb4b2f228acb86a7fa595948b8fce9dfcd4d0ac73268eedc"


def test_streams_of_other_makers_decode(representation):
    text = b"abracadabra " * 100
    for level in (0, 1, 9):
        code = zlib.compress(text, level, wbits=9)
        ids = np.frombuffer(code + b"\0" * (len(code) % 2), dtype=f">u{1 if representation.eod_id == 256 else 2}")
        assert representation.decode(ids) == text


@pytest.mark.parametrize("id_bits", ID_BITS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_ids_decode_and_each_prefix_to_the_bytes_its_ids_carry(id_bits, data):
    representation = GzipRepresentation(id_bits)
    random_ids = st.lists(st.integers(0, representation.vocab_size - 1), max_size=30)
    start = representation.encode(b"abracadabra abracadabra").tolist()
    ids = start[: data.draw(st.integers(0, len(start)))] + data.draw(random_ids)
    lengths = representation.byte_lengths(ids)
    text = representation.decode(np.array(ids, dtype=np.uint32))
    assert lengths[np.array(ids, dtype=int) == representation.eod_id].sum() == 0
    for count in range(len(ids) + 1):
        assert representation.decode(ids[:count]) == text[: lengths[:count].sum()]


def test_every_single_id_decodes_to_as_many_bytes_as_stated(representation):
    for id_ in range(0, representation.vocab_size, 1 if representation.vocab_size < 1000 else 97):
        assert [len(representation.decode([id_]))] == representation.byte_lengths([id_]).tolist()


def test_what_came_before_the_damage_is_kept():
    representation, text = GzipRepresentation(8), random.Random(0).randbytes(30) * 40 + b"the end of it"
    ids = representation.encode(text)
    lengths = representation.byte_lengths(ids)
    assert representation.decode(ids[:-4]) == text
    for position in range(2, len(ids)):
        damaged = ids.copy()
        damaged[position] ^= 0x55
        assert representation.decode(damaged).startswith(text[: lengths[:position].sum()])
    wrong_checksum = [*ids[:-1], ids[-1] ^ 1]
    assert representation.decode(wrong_checksum) == text
    assert representation.decode([0x79, *ids[1:]]) == b""


def test_output_is_at_most_what_deflate_can_give():
    representation = GzipRepresentation(8)
    ids = representation.encode(bytes(10**6))
    assert representation.byte_lengths(ids).max() <= 1032
    assert len(representation.decode(ids[: len(ids) // 2])) <= 1032 * len(ids)


def test_end_of_document_is_an_id_without_bytes(representation):
    ids, eod = representation.encode(b"abracadabra"), representation.eod_id
    mixed = [eod, ids[0], eod, eod, *ids[1:], eod]
    assert representation.decode(mixed) == b"abracadabra"
    lengths = representation.byte_lengths(mixed).tolist()
    assert [lengths[1], *lengths[4:-1]] == representation.byte_lengths(ids).tolist()
    assert lengths[0] == lengths[2] == lengths[3] == lengths[-1] == 0


def test_nothing_after_the_end_counts(representation):
    stream = representation.encode(b"abracadabra")
    ids = [*stream, *stream]
    assert representation.decode(ids) == b"abracadabra"
    assert representation.byte_lengths(ids)[len(stream) :].sum() == 0


@pytest.mark.parametrize("beyond", [-1, 0, 10**12])
def test_ids_out_of_range_are_refused(representation, beyond):
    wrong = -1 if beyond < 0 else representation.vocab_size + beyond
    for lookup in (representation.decode, representation.byte_lengths):
        with pytest.raises(UserError, match=f"id {wrong} is outside .*, 0 to {representation.vocab_size - 1}"):
            lookup([0, wrong])


def test_fitting_does_not_touch_the_corpus():
    def documents():
        raise AssertionError("read")
        yield b""

    representation = FIT_OPTIONS(id_bits=16).fit(documents(), corpus_hash="abc")
    assert representation.fingerprint == GzipRepresentation(16).fingerprint != GzipRepresentation(8).fingerprint
    assert representation.fit_corpus_hash == ""


def test_an_artifact_gives_back_the_representation(representation, tmp_path):
    representation.save(tmp_path / "artifact")
    loaded = tokenizer_lab.load(tmp_path / "artifact")
    assert type(loaded) is GzipRepresentation
    for name in ("kind", "vocab_size", "eod_id", "fingerprint", "fit_corpus_hash"):
        assert getattr(loaded, name) == getattr(representation, name)
    (tmp_path / "artifact" / "gzip.json").write_bytes(b'{"id_bits": 9}\n')
    with pytest.raises(UserError, match="gzip.json is damaged"):
        tokenizer_lab.load(tmp_path / "artifact")


def test_other_processes_get_the_same_representation(representation):
    copy = pickle.loads(pickle.dumps(representation))
    assert copy.fingerprint == representation.fingerprint
    assert copy.encode(b"abracadabra").tolist() == representation.encode(b"abracadabra").tolist()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"id_bits": 12}, "id_bits 12, an id has 8 or 16 bits; fit the representation again"),
        ({"id_bits": True}, "id_bits True"),
        ({"id_bits": None}, "id_bits None"),
        ({"id_bits": 8, "level": 9}, "does not have just id_bits"),
        ({}, "does not have just id_bits"),
        ([8], "does not have just id_bits"),
    ],
)
def test_settings_that_are_none_are_refused(settings_, message):
    with pytest.raises(UserError, match=f"gzip.json .*{message}"):
        GzipRepresentation.from_files({"gzip.json": json.dumps(settings_).encode()})


@pytest.mark.parametrize("names", [[], ["static_ac.json"], ["gzip.json", "more.npy"]])
def test_other_files_are_refused(names):
    with pytest.raises(UserError, match=rf"has the file gzip\.json, not {', '.join(names) or 'none'}; fit it again"):
        GzipRepresentation.from_files(dict.fromkeys(names, b"{}"))


@pytest.mark.parametrize("id_bits", [-8, 0, 1, 12, 24, 32])
def test_other_id_widths_are_refused(id_bits):
    with pytest.raises(UserError, match=f"--id-bits is {id_bits}; an id has 8 or 16 bits; choose one of them"):
        FIT_OPTIONS(id_bits=id_bits)
