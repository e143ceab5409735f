import concurrent.futures
import json
import math
import multiprocessing
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import tokenizer_lab
from tokenizer_lab import UserError
from tokenizer_lab.baselines.arithmetic_coder import FREQUENCY_SUM
from tokenizer_lab.baselines.static_ac import FIT_OPTIONS, StaticACFit, StaticACRepresentation

ID_BITS = [8, 16]
FITTED = {id_bits: StaticACFit(id_bits=id_bits).fit([b"abracadabra " * 9, b"the end"], "abc") for id_bits in ID_BITS}
SETTINGS = json.loads(FITTED[8].to_files()["static_ac.json"])

any_document = st.lists(
    st.one_of(st.binary(max_size=20), st.sampled_from([b"abra ", b"a" * 300, b"\0\xff" * 40, bytes(range(256))])),
    max_size=6,
).map(b"".join)


@pytest.fixture(params=ID_BITS)
def representation(request) -> StaticACRepresentation:
    return FITTED[request.param]


def assert_keeps_contract(representation: StaticACRepresentation, document: bytes) -> None:
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
    assert_keeps_contract(FITTED[id_bits], document)


def test_each_byte_and_long_documents_come_back(representation):
    long = [random.Random(0).randbytes(50_000), b"a" * 200_000, b"abracadabra " * 5_000, bytes(range(256)) * 100]
    for document in [b"", *(bytes([byte]) for byte in range(256)), *long]:
        assert_keeps_contract(representation, document)


def test_the_empty_document_has_no_ids(representation):
    assert representation.encode(b"").tolist() == []
    assert representation.decode([]) == b""


@pytest.mark.parametrize("id_bits", ID_BITS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_ids_decode_and_each_prefix_to_the_bytes_its_ids_carry(id_bits, data):
    representation = FITTED[id_bits]
    ids = data.draw(st.lists(st.integers(0, representation.vocab_size - 1), max_size=40))
    lengths = representation.byte_lengths(ids)
    text = representation.decode(np.array(ids, dtype=np.uint32))
    assert lengths[np.array(ids, dtype=int) == representation.eod_id].sum() == 0
    for count in range(len(ids) + 1):
        assert representation.decode(ids[:count]) == text[: lengths[:count].sum()]


def test_every_single_id_decodes_to_as_many_bytes_as_stated(representation):
    for id_ in range(0, representation.vocab_size, 1 if representation.vocab_size < 1000 else 97):
        assert [len(representation.decode([id_]))] == representation.byte_lengths([id_]).tolist()


def test_decoded_ids_are_bounded_by_their_bits():
    peaked = StaticACFit(id_bits=16).fit([b"\0" * 10**6], "")
    text = peaked.decode(np.zeros(100, dtype=np.int32))
    assert 100_000 < len(text) <= 178 * 16 * 100  # As `tokenizer_lab.baselines.arithmetic_coder` states.


def test_end_of_document_is_an_id_without_bytes(representation):
    ids, eod = representation.encode(b"abracadabra"), representation.eod_id
    mixed = [eod, ids[0], eod, eod, *ids[1:], eod]
    assert representation.decode(mixed) == b"abracadabra"
    lengths = representation.byte_lengths(mixed).tolist()
    assert [lengths[1], *lengths[4:-1]] == representation.byte_lengths(ids).tolist()
    assert lengths[0] == lengths[2] == lengths[3] == lengths[-1] == 0


def test_nothing_after_the_end_counts(representation):
    ids = [*representation.encode(b"abracadabra"), 5, 6, 7]
    assert representation.decode(ids) == b"abracadabra"
    assert representation.byte_lengths(ids)[-3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("beyond", [-1, 0, 10**12])
def test_ids_out_of_range_are_refused(representation, beyond):
    wrong = -1 if beyond < 0 else representation.vocab_size + beyond
    for lookup in (representation.decode, representation.byte_lengths):
        with pytest.raises(UserError, match=f"id {wrong} is outside .*, 0 to {representation.vocab_size - 1}"):
            lookup([0, wrong])


def test_a_byte_counts_for_the_id_that_completes_it():
    frequencies = np.ones(257, dtype=np.int32)
    frequencies[[0, 256]] = [2**15, 2**15 - 255]  # Byte 0 is one bit, 0.
    representation = StaticACRepresentation(frequencies, id_bits=8)
    assert representation.encode(bytes(20)).tolist() == [0, 0, 0b0000_1100]  # The end: 11.
    assert representation.byte_lengths([0, 0, 0b0000_1100]).tolist() == [8, 8, 4]
    assert representation.byte_lengths([0, 0b1000_0000, 0b0111_1111, 0b1100_0000]).tolist() == [8, 0, 1, 0]


def test_frequencies_are_the_corpus_s():
    representation = StaticACFit().fit([b"aaab", b"", b"aab\0"], "abc")
    frequencies = json.loads(representation.to_files()["static_ac.json"])["frequencies"]
    points = FREQUENCY_SUM - 257
    shares = {b"a"[0]: 5, b"b"[0]: 2, 0: 1, 256: 2}  # The empty document has no end to code.
    for symbol in range(257):
        assert abs(frequencies[symbol] - 1 - points * shares.get(symbol, 0) / 10) <= 1
    assert sum(frequencies) == FREQUENCY_SUM
    assert representation.fit_corpus_hash == "abc"


@given(documents=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=8), data=st.data())
@settings(max_examples=30, deadline=None)
def test_the_order_of_documents_does_not_matter(documents, data):
    shuffled = data.draw(st.permutations(documents))
    assert StaticACFit().fit(iter(shuffled), "").fingerprint == StaticACFit().fit(documents, "").fingerprint


def test_ids_have_the_length_of_the_byte_entropy(documents):
    text = b"\n".join(documents)
    counts = np.unique_counts(np.frombuffer(text, dtype=np.uint8)).counts
    entropy_bits = -(counts * np.log2(counts / len(text))).sum()
    end_bits = math.log2(FREQUENCY_SUM)
    for id_bits in ID_BITS:
        ids = StaticACFit(id_bits=id_bits).fit([text], "").encode(text)
        num_bits = id_bits * len(ids)
        assert entropy_bits < num_bits < entropy_bits * 1.005 + end_bits + 2 + id_bits


def test_a_fixed_artifact_gives_fixed_ids():
    frequencies = np.ones(257, dtype=np.int32)
    frequencies[[ord("a"), ord("b"), 256]] = [2**15, 2**14, 2**14 - 254]
    representation = StaticACRepresentation(frequencies, id_bits=8)
    assert representation.fingerprint == "6c6c3e7311d1565ef66d800d75b518039c44182f6abc771e33ddae017d2e494a"
    golden = {b"a": [112], b"abba": [84, 0], b"a" * 16: [0, 194, 208], b"\0\xff": [0, 0, 192, 253, 224]}
    assert {text: representation.encode(text).tolist() for text in golden} == golden
    wide = StaticACRepresentation(frequencies, id_bits=16)
    assert wide.encode(b"abba").tolist() == [84 << 8]
    assert wide.encode(b"\0\xff").tolist() == [0, 192 << 8 | 253, 224 << 8]
    assert representation.byte_lengths(golden[b"a" * 16]).tolist() == [0, 15, 1]


def test_an_artifact_gives_back_the_representation(representation, tmp_path):
    representation.save(tmp_path / "artifact")
    loaded = tokenizer_lab.load(tmp_path / "artifact")
    assert type(loaded) is StaticACRepresentation
    for name in ("kind", "vocab_size", "eod_id", "fingerprint", "fit_corpus_hash"):
        assert getattr(loaded, name) == getattr(representation, name)
    assert loaded.encode(b"abracadabra").tolist() == representation.encode(b"abracadabra").tolist()


def test_id_widths_have_different_fingerprints():
    assert len({representation.fingerprint for representation in FITTED.values()}) == len(ID_BITS)


def test_a_flipped_byte_is_found(tmp_path):
    FITTED[8].save(tmp_path / "artifact")
    path = tmp_path / "artifact" / "static_ac.json"
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match="static_ac.json is damaged"):
            tokenizer_lab.load(tmp_path / "artifact")


def test_other_processes_get_the_same_representation(representation):
    copy = pickle.loads(pickle.dumps(representation))
    assert (copy.fingerprint, copy.fit_corpus_hash) == (representation.fingerprint, "abc")
    assert copy.encode(b"abracadabra").tolist() == representation.encode(b"abracadabra").tolist()


def test_worker_processes_compile_and_encode():
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        ids = pool.submit(FITTED[8].encode, b"abracadabra").result()
    assert ids.tolist() == FITTED[8].encode(b"abracadabra").tolist()


def changed(position: int, value: object) -> list:
    return SETTINGS["frequencies"][:position] + [value] + SETTINGS["frequencies"][position + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(frequencies=changed(0, 2)), "not 257 whole numbers from 1 on that sum to 65,536; fit it again"),
        (dict(frequencies=changed(0, 0)), "not 257 whole numbers"),
        (dict(frequencies=changed(0, -(10**30))), "not 257 whole numbers"),
        (dict(frequencies=changed(0, 1.0)), "not 257 whole numbers"),
        (dict(frequencies=changed(0, True)), "not 257 whole numbers"),
        (dict(frequencies=changed(0, math.nan)), "not 257 whole numbers"),
        (dict(frequencies=changed(0, [1])), "not 257 whole numbers"),
        (dict(frequencies=[2**8] * 256), "not 257 whole numbers"),
        (dict(frequencies=[-1, 1] + [1] * 254 + [FREQUENCY_SUM - 254]), "not 257 whole numbers"),
        (dict(frequencies="a" * 257), "not 257 whole numbers"),
        (dict(frequencies=None), "not 257 whole numbers"),
        (dict(id_bits=12), "id_bits 12, an id has 8 or 16 bits; fit the representation again"),
        (dict(id_bits=8.0), "id_bits 8.0"),
        (dict(id_bits="8"), "id_bits '8'"),
        (dict(id_bits=10**4000), "id_bits 1000"),
        (dict(more=1), "does not have just frequencies, id_bits"),
    ],
)
def test_settings_that_are_none_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        StaticACRepresentation.from_files({"static_ac.json": json.dumps(SETTINGS | change).encode()})
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b"9" * 10_000])
def test_what_is_no_settings_file_is_refused(content):
    with pytest.raises(UserError, match=r"static_ac\.json (is not JSON|does not have just)") as error:
        StaticACRepresentation.from_files({"static_ac.json": content})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [[], ["gzip.json"], ["static_ac.json", "more.npy"]])
def test_other_files_are_refused(names):
    with pytest.raises(UserError, match=rf"has the file static_ac\.json, not {', '.join(names) or 'none'}; fit it"):
        StaticACRepresentation.from_files(dict.fromkeys(names, b"{}"))


@pytest.mark.parametrize("documents", [[], [b""], [b"", b""]])
def test_a_corpus_without_bytes_is_refused(documents):
    with pytest.raises(UserError, match="the corpus has 0 bytes, byte frequencies need at least 1; choose a corpus"):
        FIT_OPTIONS().fit(documents, "")


@pytest.mark.parametrize("id_bits", [-8, 0, 1, 12, 24, 32])
def test_other_id_widths_are_refused(id_bits):
    with pytest.raises(UserError, match=f"--id-bits is {id_bits}; an id has 8 or 16 bits; choose one of them"):
        FIT_OPTIONS(id_bits=id_bits)
