"""Exported tokenizers give the ids of the representations they come from."""

import functools
import json
import types

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings, strategies as st

from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.equal_info import EqualInfoRepresentation
from tokenizer_lab.equal_info.window_code import Matcher, build_tree
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import NUM_ENCODER_IDS, Representation
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation
from tokenizer_lab.subword.spelling import CHARACTER_OF_BYTE
from train.export.tokenizer import tokenizer_files, windows_pattern

TEXT = "The words of a text, and a few more of them: naïve 日本 text. def of(text):\n    return 'the words'\n" * 20


def bigram_shares(contexts: np.ndarray) -> np.ndarray:
    """A byte model that knows which byte follows which in `TEXT`."""
    characters = np.frombuffer(TEXT.encode(), np.uint8)
    counts = np.ones((256, 256), np.int64)
    np.add.at(counts, (characters[:-1], characters[1:]), 400)
    last = contexts[:, -1] if contexts.shape[1] else np.full(len(contexts), ord(" "))
    shares = counts[last] * 2**16 // counts[last].sum(axis=1, keepdims=True)
    shares[:, 0] += 2**16 - shares.sum(axis=1)
    return shares.astype(np.int32)


def deep_shares(contexts: np.ndarray) -> np.ndarray:
    """The last byte again, nearly always: a tree of long chains."""
    shares = np.ones((len(contexts), 256), np.int32)
    shares[np.arange(len(contexts)), contexts[:, -1] if contexts.shape[1] else 32] = 2**16 - 255
    return shares


REPRESENTATIONS = {
    "byte": ByteRepresentation,
    "bpe": lambda: SubwordFit(vocab_size=300).fit([TEXT.encode()], ""),
    "unigram": lambda: SubwordFit(vocab_size=265, algorithm="unigram", pretokenization="whitespace").fit(
        [TEXT.encode()], ""
    ),
    "windows": lambda: EqualInfoRepresentation.of_tree(build_tree(bigram_shares, 16), 16),
    "parts of windows": lambda: EqualInfoRepresentation.of_tree(build_tree(bigram_shares, 16), 8),
}


@functools.cache
def make_representation(name: str) -> Representation:
    return REPRESENTATIONS[name]()


TEXTS = st.lists(
    st.one_of(
        st.text(max_size=8), st.sampled_from(TEXT.split()), st.sampled_from(["<|endoftext|>", "[CLS]", " ", "\n", "  "])
    ),
    max_size=30,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """tokenizer_of(name, for_encoder): what transformers makes of an export."""
    transformers, made = pytest.importorskip("transformers", reason="transformers is not installed"), {}

    def make(name: str, for_encoder: bool = False):
        if (name, for_encoder) not in made:
            folder = tmp_path_factory.mktemp("export")
            for file, content in tokenizer_files(
                make_representation(name), for_encoder=for_encoder, max_positions=64
            ).items():
                (folder / file).write_bytes(content)
            (folder / "config.json").write_text(json.dumps({"model_type": "electra" if for_encoder else "qwen3"}))
            made[name, for_encoder] = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=name == "parts of windows"
            )
        return made[name, for_encoder]

    return make


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_ids_are_the_representation_s_and_come_back_as_the_text(tokenizer_of, name):
    representation, tokenizer = make_representation(name), tokenizer_of(name)

    @settings(deadline=None, max_examples=50)
    @given(TEXTS)
    def check(text):
        ids = representation.encode(text.encode()).tolist()
        assert tokenizer(text, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids) == text

    check()


@pytest.mark.parametrize("name", REPRESENTATIONS)
def test_documents_begin_as_in_training(tokenizer_of, name, tmp_path):
    representation, tokenizer = make_representation(name), tokenizer_of(name)
    ids = representation.encode(b"words").tolist()
    encoded = tokenizer("words")
    assert encoded.input_ids == [representation.eod_id, *ids] and "token_type_ids" not in encoded
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == representation.eod_id
    assert len(tokenizer) == representation.vocab_size
    assert tokenizer.decode([representation.eod_id, *ids], skip_special_tokens=True) == "words"
    padded = tokenizer(["words", "more words"], padding=True)
    assert len(padded.input_ids[0]) == len(padded.input_ids[1]) and 0 in padded.attention_mask[0]


@pytest.mark.parametrize("name", ["byte", "bpe", "parts of windows"])
def test_encoders_get_their_marks(tokenizer_of, name):
    representation, tokenizer = make_representation(name), tokenizer_of(name, for_encoder=True)
    first, second = (representation.encode(text).tolist() for text in (b"words", b"a text"))
    mask, cls, sep = representation.vocab_size + np.arange(NUM_ENCODER_IDS)
    assert (tokenizer.mask_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (mask, cls, sep)
    assert tokenizer("words").input_ids == [cls, *first, sep]
    pair = tokenizer("words", "a text")
    assert pair.input_ids == [cls, *first, sep, *second, sep]
    assert pair.token_type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_parts_of_windows_survive_being_saved_again(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of("parts of windows")
    tokenizer.save_pretrained(tmp_path / "again")
    assert {"depths.npy", "last_bytes.npy"} <= {file.name for file in (tmp_path / "again").iterdir()}


def test_parts_of_windows_decode_whatever_they_are(tokenizer_of):
    representation, tokenizer = make_representation("parts of windows"), tokenizer_of("parts of windows")
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.integers(0, 257, 31)
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False).replace(
            "<|endoftext|>", ""
        ) == representation.decode(ids).decode("utf-8", "replace")


@settings(deadline=None, max_examples=40)
@given(
    st.integers(9, 12),
    st.lists(
        st.one_of(st.binary(max_size=6), st.sampled_from([b"the ", b"aaaaaaaa", b"    ", b"text"])), max_size=20
    ).map(b"".join),
    st.sampled_from([bigram_shares, deep_shares]),
)
def test_the_pattern_matches_the_windows_of_any_bytes(window_bits, text, shares):
    tree = build_tree(shares, window_bits)
    spelled = "".join(CHARACTER_OF_BYTE[byte] for byte in text)
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(windows_pattern(tree)), behavior="isolated")
    lengths = [len(window) for window, _ in cut.pre_tokenize_str(spelled)]
    assert lengths == Matcher(tree).decode(Matcher(tree).encode(text).astype(np.int64))[1].tolist()


def test_a_tree_of_long_chains_and_a_long_text_are_no_trouble():
    representation = EqualInfoRepresentation.of_tree(build_tree(deep_shares, 16), 16)
    content = tokenizer_files(representation, for_encoder=False, max_positions=64)["tokenizer.json"].decode()
    tokenizer = tokenizers.Tokenizer.from_str(content)
    text = " " * 100_000 + "ab" * 20_000 + TEXT
    assert tokenizer.encode(text, add_special_tokens=False).ids == representation.encode(text.encode()).tolist()


def test_what_no_tokenizer_can_do_is_refused():
    lossy = tokenizers.Tokenizer(tokenizers.models.WordLevel({"word": 0, "?": 1}, unk_token="?"))
    fields = {"kind": "equal_info", "window_bits": 32, "rule": "exact", "to_files": lambda: {"lm_embedding.npy": b""}}
    for representation, named in (
        (SubwordRepresentation(lossy.to_str().encode()), "lacks ids"),
        (types.SimpleNamespace(kind="gzip"), "ids of kind gzip; byte, subword and equal_info can be exported"),
        (types.SimpleNamespace(**fields), "windows of 32 bits"),
    ):
        with pytest.raises(UserError, match=named) as error:
            tokenizer_files(representation, for_encoder=False, max_positions=64)
        assert "\n" not in str(error.value)


def test_a_name_that_a_tokenizer_has_already_is_not_taken_twice():
    spec = json.loads(make_representation("bpe").used_tokenizer.to_str())
    taken = tokenizers.Tokenizer.from_str(json.dumps(spec))
    taken.add_special_tokens(["<|endoftext|>"])
    representation = SubwordRepresentation(taken.to_str().encode())
    exported = tokenizers.Tokenizer.from_str(
        tokenizer_files(representation, for_encoder=False, max_positions=64)["tokenizer.json"].decode()
    )
    assert exported.token_to_id("<<|endoftext|>>") == representation.eod_id == 300
