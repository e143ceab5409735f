"""Equal-info windows as a representation: its contract for every width, its artifacts, and what fitting it measures."""

import collections
import concurrent.futures
import json
import math
import multiprocessing
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import tokenizer_lab
from tokenizer_lab.equal_info import (
    EqualInfoFit,
    EqualInfoRepresentation,
    byte_lm,
    representation as equal_info_module,
    window_code,
)
from tokenizer_lab.equal_info.window_code import Tree, build_tree
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import npy_array, npy_bytes

BITS = [(16, 8), (16, 16), (32, 8), (32, 16), (64, 16), (128, 8)]
TABLE, IN_LOOP = (16, 16), (32, 16)
TEXT = b"the end of the text and what is behind it, as it is in all of the documents"
any_part = st.binary(max_size=12) | st.sampled_from([b"the ", b"a" * 60, b"\0\xff" * 9, bytes(range(256))])
any_document = st.lists(any_part, max_size=4).map(b"".join)
few_examples = settings(max_examples=6, deadline=None)


def name_of(bits: tuple[int, int]) -> str:
    return "{}-{}".format(*bits)


@pytest.fixture(scope="module")
def all_bits(make_byte_lm, make_tree) -> dict[tuple[int, int], EqualInfoRepresentation]:
    """A representation of each (window_bits, id_bits)."""
    return {
        (window_bits, id_bits): EqualInfoRepresentation.of_tree(make_tree(window_bits), id_bits)
        if window_bits <= 24
        else EqualInfoRepresentation.of_lm(make_byte_lm(), window_bits, id_bits)
        for window_bits, id_bits in BITS
    }


@pytest.fixture(params=BITS, ids=name_of)
def representation(request, all_bits) -> EqualInfoRepresentation:
    return all_bits[request.param]


def assert_keeps_contract(representation: EqualInfoRepresentation, document: bytes) -> None:
    ids, lengths = representation.encode_many([document])[0]
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ids.min(initial=0) >= 0 and ids.max(initial=0) < representation.eod_id == representation.vocab_size - 1
    assert representation.decode(ids) == document
    ids_per_window = representation.window_bits // representation.id_bits
    assert lengths.dtype == np.int64 and lengths.shape == ids.shape and lengths.sum() == len(document)
    by_window = lengths.reshape(-1, ids_per_window)
    assert not by_window[:, :-1].any() and (by_window[:, -1] > 0).all()
    np.testing.assert_array_equal(representation.byte_lengths(ids), lengths)


@pytest.mark.parametrize("bits", BITS, ids=name_of)
@given(document=any_document)
@few_examples
def test_any_bytes_come_back(all_bits, bits, document):
    assert_keeps_contract(all_bits[bits], document)


@pytest.mark.slow
def test_windows_of_24_bits_keep_the_contract():
    """Of a model that finds all bytes as likely: strings of up to three, but the last byte gives way to STOP."""
    # Each child of a byte, and its children.
    children = np.concatenate([np.arange(256)[:, None], np.tile(np.arange(255), (256, 1))], axis=1)
    last_bytes = np.tile(np.append(0, children)[: 1 << 16], (256, 1))
    last_bytes[:, 0] = np.arange(256)
    depths = np.tile(np.append(1, np.where(np.arange(1 << 16) % 256, 3, 2))[: 1 << 16], 256)
    tree = Tree(depths.astype(np.uint16), last_bytes.ravel().astype(np.uint8))
    assert tree.window_bits == 24
    representation = EqualInfoRepresentation.of_tree(tree, 8)
    for document in (b"", TEXT, bytes(range(256)), b"\0" * 10, b"\xff" * 10):
        assert_keeps_contract(representation, document)
    assert len(representation.encode(b"abcdef")) == 6
    loaded = EqualInfoRepresentation.from_files(representation.to_files())
    assert loaded.decode(representation.encode(TEXT)) == TEXT


@pytest.mark.parametrize("bits", BITS, ids=name_of)
@given(data=st.data())
@few_examples
def test_any_ids_decode_and_each_prefix_to_the_bytes_its_ids_carry(all_bits, bits, data):
    representation = all_bits[bits]
    any_id = st.integers(0, representation.vocab_size - 1) | st.just(representation.eod_id)
    ids = data.draw(st.lists(any_id, min_size=1, max_size=40))
    text, lengths = representation.decode(ids), representation.byte_lengths(ids)
    assert len(text) == lengths.sum()
    ids_per_window = representation.window_bits // representation.id_bits
    since_end = 0
    for id_, length in zip(ids, lengths, strict=True):
        since_end = 0 if id_ == representation.eod_id else since_end + 1
        assert (length > 0) == (since_end > 0 and since_end % ids_per_window == 0), "only a whole window has bytes"
    count = data.draw(st.integers(0, len(ids)))
    assert representation.decode(np.array(ids[:count], np.uint32)) == text[: lengths[:count].sum()]


def test_windows_are_the_parts_of_a_text(representation):
    ids, lengths = representation.encode_many([TEXT])[0]
    ends = np.cumsum(lengths[lengths > 0])
    assert representation.windows(ids) == [TEXT[end - size : end] for end, size in zip(ends, lengths[lengths > 0])]


def test_documents_between_ends_stand_for_themselves(representation):
    eod, cut = representation.eod_id, representation.encode(TEXT)[:-1]
    ids = np.concatenate([representation.encode(b"one"), [eod, eod], representation.encode(b"two"), [eod], cut])
    expected = b"onetwo" + representation.decode(cut)
    assert representation.decode(ids) == expected
    assert TEXT.startswith(representation.decode(cut)) and len(representation.decode(cut)) < len(TEXT)
    assert representation.byte_lengths(ids)[ids == eod].tolist() == [0, 0, 0]


def test_many_are_encoded_as_each_alone(representation):
    texts = [TEXT, b"", b"\0", TEXT[:20], b"", TEXT * 2, b"x"]
    for text, (ids, lengths) in zip(texts, representation.encode_many(texts), strict=True):
        np.testing.assert_array_equal(ids, representation.encode(text))
        np.testing.assert_array_equal(lengths, representation.byte_lengths(ids))


def test_only_where_the_language_model_runs_are_documents_encoded_together_and_verified(representation):
    assert (representation.batch_documents > 1) == (representation.window_bits > 24)
    assert representation.verifies_encoding == (representation.window_bits > 24) and representation.is_lossless


def test_an_artifact_gives_back_the_representation(representation, tmp_path):
    representation = representation.fitted("abc", statistics={"bytes_per_id": 2.5})
    representation.save(tmp_path / "artifact")
    for copy in (tokenizer_lab.load(tmp_path / "artifact"), pickle.loads(pickle.dumps(representation))):
        assert type(copy) is EqualInfoRepresentation
        for name in ("window_bits", "id_bits", "rule", "vocab_size", "eod_id", "fingerprint", "fit_corpus_hash"):
            assert getattr(copy, name) == getattr(representation, name)
        assert copy.statistics == representation.statistics and copy.costs == representation.costs
        np.testing.assert_array_equal(copy.encode(TEXT), representation.encode(TEXT))


def test_every_width_and_language_model_has_a_fingerprint_of_its_own(all_bits, make_byte_lm, count_shares):
    others = [
        EqualInfoRepresentation.of_lm(make_byte_lm(mlp=8), 32, 16),
        EqualInfoRepresentation.of_tree(build_tree(lambda contexts: count_shares(contexts)[:, ::-1], 16), 16),
    ]
    fingerprints = {representation.fingerprint for representation in [*all_bits.values(), *others]}
    assert len(fingerprints) == len(BITS) + 2


def test_a_spawned_worker_gives_the_same_ids(all_bits, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as in conftest.py
    representation = all_bits[IN_LOOP]
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        np.testing.assert_array_equal(worker.submit(representation.encode, TEXT).result(), representation.encode(TEXT))


@pytest.mark.parametrize("bits", BITS, ids=name_of)
@given(prompt=st.binary(max_size=4) | st.integers(1, len(TEXT)).map(lambda length: TEXT[:length]), data=st.data())
@few_examples
def test_what_begins_with_a_prompt_has_its_certain_ids_and_then_some_between_low_and_high(all_bits, bits, prompt, data):
    representation = all_bits[bits]
    certain, low, high = representation.open_prompt(prompt)
    if not prompt:
        assert len(certain) == 0 and low == high == ()
        return
    assert certain.dtype == np.int32 and len(low) == len(high) == representation.window_bits // representation.id_bits
    texts = [prompt + data.draw(st.sampled_from([b"", TEXT, b"\xff" * 30]) | st.binary(max_size=20)) for _ in range(3)]
    for ids, _ in representation.encode_many(texts):
        assert ids[: len(certain)].tolist() == certain.tolist()
        assert low <= tuple(ids[len(certain) : len(certain) + len(low)].tolist()) <= high
    # Both ends are reached, and what is beyond them is no longer the prompt.
    for end, step in ((low, -1), (high, 1)):
        assert representation.decode([*certain, *end]).startswith(prompt)
        beyond = int.from_bytes(b"".join(id_.to_bytes(representation.id_bits // 8) for id_ in end)) + step
        if 0 <= beyond < 1 << representation.window_bits:
            shifts = range(representation.window_bits - representation.id_bits, -1, -representation.id_bits)
            beyond_ids = [beyond >> shift & representation.eod_id - 1 for shift in shifts]
            assert not representation.decode([*certain, *beyond_ids]).startswith(prompt)
    assert representation.encode(prompt).tolist() == [*certain, *low], "a text that ends there has the node's first"


@pytest.mark.parametrize("bits", [(24, 16), (20, 8), (8, 8), (16, 4), (32, 32), (0, 8), (40, 8)], ids=name_of)
def test_other_widths_are_refused(make_tree, make_byte_lm, bits):
    window_bits, id_bits = bits
    message = f"windows of {window_bits} bits in ids of {id_bits}: a window has 16, 24, 32, 64, 128 bits, an id 8 or 16"
    with pytest.raises(UserError, match=message):
        EqualInfoFit(window_bits=window_bits, id_bits=id_bits)
    with pytest.raises(UserError, match=message):
        EqualInfoRepresentation.of_lm(make_byte_lm(), window_bits, id_bits)
    settings_file = json.dumps({"window_bits": window_bits, "id_bits": id_bits, "rule": "exact"}).encode()
    with pytest.raises(UserError, match=message):
        EqualInfoRepresentation.from_files({"equal_info.json": settings_file})
    with pytest.raises(UserError, match="windows of 12 bits"):
        EqualInfoRepresentation.of_tree(make_tree(12), 8)


def test_too_little_memory_is_said_before_anything_is_fitted(monkeypatch):
    monkeypatch.setattr(window_code, "available_bytes", lambda: 4_096_000)
    EqualInfoFit(window_bits=32)
    for window_bits, id_bits in ((24, 8), (16, 16)):
        with pytest.raises(UserError, match=f"a table for windows of {window_bits} bits takes about"):
            EqualInfoFit(window_bits=window_bits, id_bits=id_bits)


def cut(files):
    return files | {"depths.npy": files["depths.npy"][:-1]}


def shorter(files):
    return files | {"depths.npy": npy_bytes(npy_array(files["depths.npy"], "depths")[:-1])}


def without(name):
    return lambda files: {other: content for other, content in files.items() if other != name}


def with_settings(**settings):
    return lambda files: files | {"equal_info.json": json.dumps(settings).encode()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "depths.npy is not a whole .npy file"),
        (shorter, "not one of a window code"),
        (lambda files: files | {"more.npy": b""}, "is depths.npy and last_bytes.npy, not"),
        (without("last_bytes.npy"), "is depths.npy and last_bytes.npy"),
        (with_settings(window_bits=24, id_bits=8, rule="exact"), "the table has windows of 16 bits, not 24"),
        (with_settings(window_bits=24, id_bits=16, rule="exact"), "windows of 24 bits in ids of 16"),
        (with_settings(window_bits=32, id_bits=16, rule="exact"), "has no query of 4 axes"),
        (with_settings(window_bits=16, id_bits=16, rule="paper"), "has no query of 4 axes"),
    ],
)
def test_files_that_are_no_artifact_are_refused(all_bits, damage, message):
    with pytest.raises(UserError, match=message):
        EqualInfoRepresentation.from_files(damage(all_bits[TABLE].to_files()))


@pytest.mark.parametrize(
    "damage",
    [
        without("equal_info.json"),
        lambda files: files | {"equal_info.json": b"{"},
        lambda files: files | {"equal_info.json": b"[" * 100_000},
        with_settings(window_bits=16, rule="exact"),
        with_settings(window_bits=16, id_bits=16),
        with_settings(window_bits=16, id_bits=16, rule="exact", more=1),
        with_settings(window_bits=16.0, id_bits=16, rule="exact"),
        with_settings(window_bits=True, id_bits=16, rule="exact"),
        with_settings(window_bits=16, id_bits=16, rule="other"),
        with_settings(window_bits=16, id_bits=16, rule=[]),
    ],
)
def test_settings_that_are_none_are_refused(damage):
    with pytest.raises(UserError, match="has equal_info.json with window_bits, id_bits and rule"):
        EqualInfoRepresentation.from_files(damage({}))


def test_a_language_model_with_an_array_missing_or_changed_is_refused(all_bits):
    files = all_bits[IN_LOOP].to_files()
    for name in files.keys() - {"equal_info.json"}:
        with pytest.raises(UserError, match="fit the representation again"):
            EqualInfoRepresentation.from_files({other: content for other, content in files.items() if other != name})
    with pytest.raises(UserError, match="too large for exact sums"):
        too_large = npy_bytes(np.full((16, 256), 32767, np.int16))
        EqualInfoRepresentation.from_files(files | {"lm_unembedding.npy": too_large})


@pytest.mark.parametrize("bits", [TABLE, IN_LOOP], ids=name_of)
def test_a_damaged_artifact_folder_is_named(all_bits, bits, tmp_path):
    all_bits[bits].save(tmp_path / "artifact")
    for path in sorted((tmp_path / "artifact").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        with pytest.raises(UserError, match=f"{path.name}"):
            tokenizer_lab.load(tmp_path / "artifact")
        path.unlink()
        with pytest.raises(UserError, match=f"{path.name} does not exist"):
            tokenizer_lab.load(tmp_path / "artifact")
        path.write_bytes(content)
    path = tmp_path / "artifact" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "tokenizer-lab representation 1"}))
    with pytest.raises(UserError, match="has format 'tokenizer-lab representation 1', this version reads .*; fit the"):
        tokenizer_lab.load(tmp_path / "artifact")


# ---- Fitting -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[TABLE, IN_LOOP], ids=name_of)
def fitted(request, make_byte_lm) -> tuple[EqualInfoRepresentation, list[bytes]]:
    """A fitted representation and the texts it was measured on, of which the longest are cut short."""
    window_bits, id_bits = request.param
    options = EqualInfoFit(window_bits=window_bits, id_bits=id_bits, sample_bytes=200)
    lm, told = make_byte_lm(context_bytes=4), []
    documents = [TEXT, b"", TEXT[:50], TEXT * 5]
    representation = options.fit(documents, "abc", lm, 1e6, lambda done, total: told.append((done, total)))
    assert told == ([] if window_bits > 24 else sorted(told)) and (window_bits > 24 or told[-1] == (65536, 65536))
    return representation, [b"", TEXT[:50], TEXT, TEXT[:75]]


def test_what_is_lost_and_what_the_model_takes_are_all_bits(fitted):
    representation, texts = fitted
    statistics, num_bytes = representation.statistics, sum(map(len, texts))
    assert num_bytes == 200
    num_ids = sum(len(representation.encode(text)) for text in texts)
    assert statistics["bytes_per_id"] == pytest.approx(num_bytes / num_ids)
    parts = [statistics[f"{part}_bits_per_byte"] for part in ("lm", "stop", "closing")]
    assert min(parts) >= 0 and statistics["lost_windows"] == 0
    assert sum(parts) == pytest.approx(representation.id_bits * num_ids / num_bytes)
    assert all(math.isfinite(value) and isinstance(value, float) for value in statistics.values())


def test_encoding_is_charged_where_it_asks_the_language_model(fitted, make_byte_lm):
    representation, texts = fitted
    charged = representation.costs["encode_flops_per_id"]
    assert representation.fit_corpus_hash == "abc"
    if representation.window_bits == 16:
        assert charged == 0
        return
    assert representation.costs["fit_flops"] == 1e6
    lm, steps = make_byte_lm(context_bytes=4), collections.Counter()
    for text in texts:
        for window in representation.windows(representation.encode(text)):
            steps.update(range(1, len(window) + 1))
    by_hand = 2 * sum(count * lm.flops(np.eye(depth + 1, dtype=int)[-1]) for depth, count in steps.items())
    assert charged == pytest.approx(by_hand / sum(len(representation.encode(text)) for text in texts))


def test_a_table_is_charged_what_the_language_model_was_asked(make_byte_lm, count_product_flops, monkeypatch):
    """Counted in the programs of all contexts that building it looks at, START included; of fewer bits, for time."""
    lm, asked = make_byte_lm(context_bytes=4), []

    def build_small(shares, window_bits, on_progress):
        return build_tree(lambda contexts: (asked.append(contexts.shape), shares(contexts))[1], 9)

    monkeypatch.setattr(window_code, "build_tree", build_small)
    monkeypatch.setattr(
        EqualInfoRepresentation, "of_tree", lambda *_: EqualInfoRepresentation(None, 16, 16, "exact", {})
    )
    monkeypatch.setattr(equal_info_module, "_measure", lambda *_: {"bytes_per_id": 1.0})
    monkeypatch.setattr(EqualInfoRepresentation, "encoding_depths", lambda *_: np.zeros(0, int))
    fitted = EqualInfoFit(window_bits=16).fit([TEXT], "", lm, 1e6, lambda *_: None)
    by_hand = 0.0
    for rows, num_bytes in asked:
        length = num_bytes % 4 + 1
        ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        flops = count_product_flops(byte_lm._shares_at, lm.weights, ids, length - 1)
        by_hand += flops["dense"] + flops["attention"] * (length + 1) / 2 / length
    assert len({num_bytes for _, num_bytes in asked}) > 2
    assert fitted.costs["fit_flops"] == pytest.approx(1e6 + by_hand, rel=1e-9)


def test_a_fitted_artifact_keeps_what_was_measured(fitted, tmp_path):
    representation, _ = fitted
    representation.save(tmp_path / "artifact")
    loaded = tokenizer_lab.load(tmp_path / "artifact")
    assert loaded.statistics == representation.statistics and loaded.costs == representation.costs


@pytest.mark.parametrize("bits", [TABLE, IN_LOOP], ids=name_of)
def test_no_text_to_measure_on_is_refused_before_anything_is_walked(bits):
    with pytest.raises(UserError, match="2 documents have 0 bytes, of which nothing can be measured"):
        EqualInfoFit(window_bits=bits[0]).fit(iter([b"", b""]), "", None, 0.0, lambda done, total: None)
