"""Any tokenizer.json is read, or refused in one line."""

import inspect
import json
import sys

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import pre_tokenizers

from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation
from tokenizer_lab.subword.spelling import BYTE_OF_CHARACTER


def minimal(**changes) -> bytes:
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}} | changes
    ).encode()


def test_any_tokenizer_json_is_taken_as_it_is(foreign_tokenizers, tmp_path):
    for name, tokenizer in foreign_tokenizers.items():
        tokenizer.save(str(tmp_path / name))
        representation = SubwordFit(from_file=tmp_path / name).fit(iter(()), corpus_hash="abc")
        assert representation.to_files() == {"tokenizer.json": (tmp_path / name).read_bytes()}
        assert representation.fit_corpus_hash == ""


def test_byte_level_alphabet_is_the_library_s():
    alphabet = BYTE_OF_CHARACTER
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("Aé \n\x7f語\u00ad")[
        0
    ][0]
    assert bytes(map(alphabet.__getitem__, spelled)) == "Aé \n\x7f語\u00ad".encode()


@pytest.mark.parametrize(
    "content",
    [
        *[
            b"",
            b"{",
            b"[]",
            b"null",
            b"{}",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"model": 5}',
            b'{"model": {}}',
            b'{"model": {"type": "BPE"}}',
        ],
        minimal(version="99"),
        minimal(normalizer={"type": "Sequence", "normalizers": 5}),
        minimal(normalizer=7),
        minimal(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
        minimal(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
        minimal(model={"type": "BPE", "vocab": {"a": 0, "b": 4_000_000_000}, "merges": []}),
        minimal(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a z"]}),
        minimal(model={"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": ["a"]}),
        minimal(model={"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}),
        *(
            minimal(model={"type": "Unigram", "vocab": x})
            for x in ([["a", None]], ["a"], [5], [["a", 0], ["b", "c"]], [["a"]], [{}], [[[], 0]])
        ),
        minimal(model={"type": "Quantum"}),
    ],
)
def test_what_is_no_tokenizer_json_is_refused(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.json is not a tokenizer\.json") as error:
        SubwordFit(from_file=tmp_path / "file.json").fit([], "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("free_frames", [200, 900])
def test_nesting_of_any_depth_is_refused(free_frames):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + free_frames)
    try:
        for depth in range(150, 1500, 25):
            steps = b'{"type": "Sequence", "normalizers": [' * depth + b"]}" * depth
            with pytest.raises(UserError, match="not a tokenizer.json"):
                SubwordRepresentation(minimal()[:-1] + b', "normalizer": ' + steps + b"}")
    finally:
        sys.setrecursionlimit(limit)


def test_a_tokenizer_json_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json does not exist"):
        SubwordFit(from_file=tmp_path / "nothing.json").fit([], "")
    with pytest.raises(UserError, match="has no tokenizer.json"):
        SubwordFit(from_file=tmp_path).fit([], "")


@pytest.mark.parametrize(
    "model",
    [
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "WordLevel", "vocab": {}, "unk_token": "?"},
        {"type": "Unigram", "vocab": []},
    ],
)
def test_an_empty_vocabulary_leaves_the_bytes(model):
    representation = SubwordRepresentation(minimal(model=model))
    assert representation.vocab_size == 257
    assert representation.encode(b"a\xff").tolist() == [97, 255]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_tokenizer_json_with_anything_changed_is_refused_or_keeps_the_contract(foreign_tokenizers, data):
    content = bytearray(
        foreign_tokenizers[data.draw(st.sampled_from(["bpe_byte_fallback", "word_level"]))].to_str().encode()
    )
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.sampled_from(b'0123456789"{}[]:,-.aeE \\ntf')
        )
    try:
        representation = SubwordRepresentation(bytes(content))
    except UserError:
        return
    text = "the hello world 語 <s>".encode() + b"\xff"
    ids = representation.encode(text)
    assert representation.decode(ids) == text and representation.byte_lengths(ids).sum() == len(text)
    assert isinstance(representation.decode(range(min(representation.vocab_size, 1000))), bytes)
