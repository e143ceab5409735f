"""The contract of `tokenizer_lab.representation`, over every kind; damaged and hostile artifacts."""

import concurrent.futures
import errno
import hashlib
import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import tokenizer_lab
from tokenizer_lab import Representation, UserError, representation as representation_module
from tokenizer_lab.byte import ByteRepresentation

AWKWARD = [
    *"<|endoftext|> [CLS] [SEP] [PAD] [UNK] <s> </s> <unk> <0x0A> ▁ Ġ ## \ufeff \0 \x7f \x85 \u2028".split(" "),
    *["e\u0301", "\u1100\u1161\u11a8", "ﬁ", "Å", "İ", "👩‍👩‍👧", "🇪🇺", "語言", "नि", "\u200f", "\u0301", "\U0010ffff"],
    *[" ", "  ", "   \n", "\r\n", "\t", "\u00a0", "\u3000", "The", "the and of", "def f():\n    ", "12345", "don't"],
]
# Surrogates, bytes that never occur, overlong forms, characters cut short: what UTF-8 is not.
INVALID = [b"\xed\xa0\x80", b"\xff", b"\xc0\xaf", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xf4\x90\x80\x80"]

any_text = st.text(st.characters(), max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))
any_part = st.one_of(
    st.binary(max_size=20),
    any_text,
    st.sampled_from(AWKWARD).map(str.encode),
    st.sampled_from(INVALID),
    st.just(b"hello world"),
)
any_document = st.lists(any_part, max_size=12).map(b"".join)
examples = settings(max_examples=20, deadline=None)
# Of the others, what an id stands for depends on those before it.
STANDING_ALONE = [
    "byte",
    "bpe-gpt4",
    "bpe-of-bytes",
    "superword",
    "character",
    "unigram-gpt4",
    "bpe_byte_level",
    "word_level",
]


def assert_keeps_contract(representation: Representation, document: bytes) -> None:
    ids = representation.encode(document)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert representation.decode(ids) == document
    assert representation.byte_lengths(ids).dtype == np.int64
    assert representation.byte_lengths(ids).sum() == len(document)
    assert ids.min(initial=0) >= 0 and ids.max(initial=0) < representation.vocab_size
    assert representation.eod_id not in ids
    together, bytes_per_id, ends = representation.encode_batch([b"", document, document])
    parts = [representation.encode(b""), ids, ids]
    assert together.dtype == bytes_per_id.dtype == np.int32 and together.tolist() == np.concatenate(parts).tolist()
    assert bytes_per_id.tolist() == np.concatenate(list(map(representation.byte_lengths, parts))).tolist()
    assert ends.dtype == np.int64 and ends.tolist() == np.cumsum(list(map(len, parts))).tolist()


@given(document=any_document)
@examples
def test_any_bytes_come_back(representation, document):
    assert_keeps_contract(representation, document)


def test_each_awkward_text_comes_back_alone(representation):
    for document in [b"", *(text.encode() for text in AWKWARD), *INVALID, *(bytes([byte]) for byte in range(256))]:
        assert_keeps_contract(representation, document)


def in_size(representation: Representation, document: bytes) -> bytes:
    """A document cut short where a language model has to read it, a byte at a time."""
    return document[:100] if representation.batch_documents > 1 else document


def test_documents_longer_than_a_segment_come_back(representation, documents):
    text = b"\n".join(documents) * 2
    assert len(text) > 70_000
    for document in [
        text,
        text.upper(),
        "語言😀e\u0301".encode() * 6_000,
        random.Random(0).randbytes(70_000),
        b" " * 70_000,
    ]:
        assert_keeps_contract(representation, in_size(representation, document))


@given(data=st.data())
@examples
def test_any_ids_decode(representation, data):
    ids = data.draw(st.lists(st.integers(0, representation.vocab_size - 1), max_size=50))
    assert len(representation.decode(ids)) == representation.byte_lengths(ids).sum()
    assert representation.decode(np.array(ids, dtype=np.uint32)) == representation.decode(ids)


@pytest.mark.parametrize("name", STANDING_ALONE)
def test_every_single_id_decodes_to_as_many_bytes_as_stated(representations, name):
    representation = representations[name]
    every_id = np.arange(representation.vocab_size)
    assert [len(representation.decode([id_])) for id_ in every_id] == representation.byte_lengths(every_id).tolist()


def test_end_of_document_is_an_id_without_bytes(representation):
    eod = representation.eod_id
    assert 0 <= eod < representation.vocab_size
    assert representation.decode([eod, *representation.encode(b"a"), eod]) == b"a"
    assert representation.byte_lengths([eod]).tolist() == [0]


@pytest.mark.parametrize("beyond", [-1, 0, 10**12])
def test_ids_out_of_range_are_refused(representation, beyond):
    wrong = -1 if beyond < 0 else representation.vocab_size + beyond
    for lookup in (representation.decode, representation.byte_lengths):
        with pytest.raises(
            UserError, match=f"id {wrong} is outside the vocabulary, 0 to {representation.vocab_size - 1}"
        ):
            lookup([0, wrong])


def test_threads_get_the_same_ids(representation, documents):
    documents = [in_size(representation, document) for document in documents]
    alone = [representation.encode(document) for document in documents]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(representation.encode, documents * 3))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 3, together, strict=True))


def test_other_processes_get_the_same_representation(representation):
    copy = pickle.loads(pickle.dumps(representation))
    assert (copy.fingerprint, copy.fit_corpus_hash) == (representation.fingerprint, representation.fit_corpus_hash)
    for text in AWKWARD:
        assert np.array_equal(copy.encode(text.encode()), representation.encode(text.encode()))


def test_different_representations_have_different_fingerprints(representations):
    assert len({representation.fingerprint for representation in representations.values()}) == len(representations)


def test_an_artifact_gives_back_the_representation(representation, documents, tmp_path):
    representation.save(tmp_path / "deep" / "artifact")
    loaded = tokenizer_lab.load(tmp_path / "deep" / "artifact")
    assert type(loaded) is type(representation)
    for name in ("kind", "vocab_size", "eod_id", "fingerprint", "fit_corpus_hash"):
        assert getattr(loaded, name) == getattr(representation, name)
    for document in [in_size(representation, document) for document in documents]:
        assert np.array_equal(loaded.encode(document), representation.encode(document))


def test_saving_again_changes_nothing(representation, tmp_path):
    representation.save(tmp_path / "artifact")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "artifact").iterdir()}
    representation.save(tmp_path / "artifact")
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "artifact").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_saving_over_something_else_is_refused(representations, tmp_path):
    representations["bpe-gpt2"].save(tmp_path / "artifact")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("artifact", "notes", "file"):
        with pytest.raises(UserError, match=f"{name} already exists and is not this artifact"):
            representations["bpe-gpt4"].save(tmp_path / name)
    assert tokenizer_lab.load(tmp_path / "artifact").fingerprint == representations["bpe-gpt2"].fingerprint
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "file", "notes"]


def test_saving_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write .*a file is where a folder is needed"):
        ByteRepresentation().save(tmp_path / "file" / "artifact")


def test_a_full_disk_leaves_no_half_artifact(representations, tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(representation_module, "write_json", full)
    with pytest.raises(UserError, match="cannot write .*artifact: No space left on device; free some space"):
        representations["bpe-gpt4"].save(tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_in_any_file_is_found(representations, tmp_path):
    representations["bpe-gpt4"].save(tmp_path / "artifact")
    for path in (tmp_path / "artifact").iterdir():
        content = path.read_bytes()
        for position in {*range(0, len(content), max(1, len(content) // 97)), len(content) - 2}:
            damaged = bytearray(content)
            damaged[position] ^= 1 << (position % 8)
            path.write_bytes(damaged)
            if path.name == "manifest.json" and _json_or_none(bytes(damaged)) == json.loads(content):
                continue  # Another kind of white space: the same manifest.
            with pytest.raises(
                UserError, match=path.name if path.name == "manifest.json" else f"{path.name} is damaged"
            ):
                tokenizer_lab.load(tmp_path / "artifact")
        path.write_bytes(content)
    tokenizer_lab.load(tmp_path / "artifact")


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_a_missing_or_cut_file_is_named(representations, tmp_path, name):
    representations["bpe-gpt4"].save(tmp_path / "artifact")
    path = tmp_path / "artifact" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=name):
        tokenizer_lab.load(tmp_path / "artifact")
    with pytest.raises(UserError, match=name):
        representations["bpe-gpt4"].save(tmp_path / "artifact")
    path.unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        tokenizer_lab.load(tmp_path / "artifact")
    path.mkdir()
    with pytest.raises(UserError, match=f"cannot read .*{name}"):
        tokenizer_lab.load(tmp_path / "artifact")


def test_what_is_no_folder_is_no_artifact(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(UserError, match="manifest.json does not exist"):
            tokenizer_lab.load(path)


SHA256_OF_NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="quantum"), "kind 'quantum'; this version knows byte, subword"),
        (dict(format="tokenizer-lab representation 99"), "this version reads"),
        (dict(vocab_size=300), "does not give back"),
        (dict(vocab_size=10**30), "does not give back"),
        (dict(vocab_size=257.0), "does not have just"),
        (dict(vocab_size=True), "does not have just"),
        (dict(fingerprint="0" * 64), "does not give back"),
        (dict(more=1), "does not have just"),
        (dict(files=[]), "does not have just"),
        (dict(files={"../secret": SHA256_OF_NOTHING}), "'../secret' is not a plain name"),
        (dict(files={"/secret": SHA256_OF_NOTHING}), "'/secret' is not a plain name"),
        (dict(files={"..": SHA256_OF_NOTHING}), "'..' is not a plain name"),
        (dict(files={"\ud800": SHA256_OF_NOTHING}), "is not a plain name"),
        (dict(files={"empty": SHA256_OF_NOTHING.upper()}), "empty is damaged"),
        (dict(files={"empty": 10**18}), "does not have just"),
        (dict(files={"empty": {"deep": []}}), "does not have just"),
        (dict(files={"empty": SHA256_OF_NOTHING}), "a byte artifact has no files"),
        (dict(kind="subword"), "a subword artifact has the file tokenizer.json, not none"),
    ],
)
def test_a_hostile_manifest_is_refused(tmp_path, change, message):
    (tmp_path / "secret").write_bytes(b"")
    ByteRepresentation().save(tmp_path / "artifact")
    (tmp_path / "artifact" / "empty").write_bytes(b"")
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text()) | change
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        tokenizer_lab.load(tmp_path / "artifact")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b"9" * 10_000])
def test_a_manifest_that_is_something_else_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="manifest"):
        tokenizer_lab.load(tmp_path)


def test_a_file_larger_than_any_artifact_is_not_read(tmp_path, monkeypatch, representations):
    representations["bpe-gpt4"].save(tmp_path / "artifact")
    monkeypatch.setattr(representation_module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(UserError, match="more than the 1,000 of a representation artifact"):
        tokenizer_lab.load(tmp_path / "artifact")


def _json_or_none(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None
