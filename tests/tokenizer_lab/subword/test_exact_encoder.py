"""Compiled code has the ids of the library: on every tokenizer that it takes, and on any text."""

import concurrent.futures
import functools
import json
import random

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tokenizer_lab.conftest import DOCUMENTS, FITS, FOREIGN_TOKENIZERS
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation, exact_encoder
from tokenizer_lab.subword.every_kind import texts_of_every_kind
from tokenizer_lab.subword.exact_encoder import NotCompiled
from tokenizer_lab.subword.pretokenization import DIGITS, PRETOKENIZATIONS, with_digits
from tokenizer_lab.subword.scanning import piece_end
from tokenizer_lab.subword.split_patterns import UnknownPattern, automaton
from tokenizer_lab.subword.superword import SUPERWORD_SPLIT

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]


def byte_level(*splits: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([document.decode() for document in DOCUMENTS], trainer)
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def whole_words() -> Tokenizer:
    """Like Llama 3: a word that is a token is that token, whatever the merges say. Here they say otherwise."""
    tokenizer = byte_level(split(with_digits(PRETOKENIZATIONS["gpt4"], "gpt4", None)), ignore_merges=True)
    spec = json.loads(tokenizer.to_str())
    spec["model"]["merges"] = spec["model"]["merges"][: len(spec["model"]["merges"]) // 2]
    return Tokenizer.from_str(json.dumps(spec))


def added_tokens() -> Tokenizer:
    """Like Qwen: added tokens that are text, one inside another and one inside a special one."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|im_start|>"])
    tokenizer.add_tokens(["<|im", "<think>", "<think>\n", "ab"])
    return tokenizer


def added_both_ways() -> Tokenizer:
    """Like DeepSeek: some added tokens are found before the text is normalized, some behind; here they overlap."""
    tokenizer = byte_level()
    tokenizer.add_tokens(
        [AddedToken("<x>", normalized=False), AddedToken("a<x", normalized=True), AddedToken(">b", normalized=True)]
    )
    return tokenizer


def words_of_marks() -> Tokenizer:
    """Like T5, but for its normalizer."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=500, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator([document.decode() for document in DOCUMENTS], trainer)
    return tokenizer


MAKERS = {name: fit for name, fit in FITS.items() if isinstance(fit, SubwordFit)}
MAKERS |= {
    f"{pretokenization}-{digits}": SubwordFit(vocab_size=600, pretokenization=pretokenization, digits=digits)
    for pretokenization in ("gpt2", "gpt4")
    for digits in DIGITS
}
MAKERS |= {"superword-rtl3": SubwordFit(vocab_size=700, superword_transition=500, digits="rtl3")}
MAKERS |= {
    "byte-level": byte_level,
    "o200k": lambda: byte_level(split(O200K)),
    "deepseek": lambda: byte_level(*map(split, DEEPSEEK)),
    "digits": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), split(PRETOKENIZATIONS["whitespace"])),
    "whole words": whole_words,
    "added tokens": added_tokens,
    "added both ways": added_both_ways,
    "words of marks": words_of_marks,
    "byte fallback": FOREIGN_TOKENIZERS["bpe_byte_fallback"],
    "neox": FOREIGN_TOKENIZERS["bpe_byte_level"],
}


@functools.cache
def representation(name: str) -> SubwordRepresentation:
    maker = MAKERS[name]
    if isinstance(maker, SubwordFit):
        return maker.fit(DOCUMENTS, "")
    return SubwordRepresentation(maker().to_str().encode())


any_text = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.text(" \t\n\r'sStT123aAé.,-ſ", max_size=12),
        st.sampled_from(
            [
                "hello wo",
                "<|im_start|>",
                "<|im",
                "<think>\n",
                "def ",
                "a<x>b",
                "a<x",
                "<x>>b",
                "    ",
                "日本語。",
                "é",
                "\u0301",
                "▁",
                "12345",
            ]
        ),
        st.sampled_from(DOCUMENTS).map(lambda document: document[:60].decode()),
    ),
    max_size=10,
).map("".join)
documents = st.lists(st.one_of(any_text.map(str.encode), st.binary(max_size=12)), max_size=4)


@pytest.mark.parametrize("name", MAKERS)
def test_ids_are_the_library_s(name):
    of = representation(name)
    assert of.encoded_by == "compiled code encodes, with the library's ids"

    @given(texts=documents)
    @example(texts=[b"ab" * 40, b"a" * 100, b"", b"the " * 50])
    @settings(max_examples=25, deadline=None, database=None)
    def check(texts):
        ids, _, ends = of.encode_batch(texts)
        for text, ids_of_text in zip(texts, np.split(ids, ends[:-1]) if texts else [], strict=True):
            assert ids_of_text.tolist() == of.encode_by_library(text).tolist(), text

    check()


@pytest.mark.parametrize("name", MAKERS)
def test_most_text_is_not_given_up(name):
    of = representation(name)
    *_, is_given_up = of._exact_encoder[0].encode(DOCUMENTS)
    assert is_given_up.mean() <= (0.5 if name in ("words of marks", "byte fallback") else 0)


PATTERNS = {
    f"{name} {digits}": with_digits(p, name, digits) for name, p in PRETOKENIZATIONS.items() for digits in DIGITS
}
PATTERNS |= {f"superword {digits}": with_digits(SUPERWORD_SPLIT, "gpt4", digits) for digits in DIGITS}
PATTERNS |= {
    "o200k": O200K,
    "deepseek": DEEPSEEK[2],
    "gaps": "b+|[0-9][0-9][0-9]",
    "choice": "(?:a|ab)(?:c|bcd)?|x{2,}",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_an_automaton_splits_as_the_library_does(name):
    by_library = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    splits = exact_encoder._splits(
        {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False},
        None,
        np.zeros(0x110000, bool),
    )

    @given(text=st.one_of(any_text, st.text("abcdx12 \n'sS", max_size=30)))
    @settings(max_examples=40, deadline=None, database=None)
    def check(text):
        padded = np.frombuffer(text.encode() + bytes(16), np.uint8)
        at, end, pieces = 0, len(text.encode()), []
        while at < end:
            piece = piece_end(splits, 0, padded, 0, at, end)
            if piece < 0:
                return
            pieces.append(padded[at:piece].tobytes().decode())
            at = piece
        assert pieces == [piece for piece, _ in by_library.pre_tokenize_str(text)]

    check()


@pytest.mark.parametrize(
    "pattern",
    [r"a*", r"\bword", r"a+?b", r"a++", r"(?=ab)c", r"[a&&b]", r"(a", r"a{1000}", r"\1", r"x|(?!a)", r"^a", "."],
)
def test_what_is_not_read_of_a_pattern_is_said(pattern):
    with pytest.raises(UnknownPattern):
        automaton(pattern)


@pytest.mark.parametrize("name", ["wordpiece_lowercase", "unigram_metaspace", "word_level"])
def test_what_compiled_code_does_not_take_the_library_encodes(name):
    of = SubwordRepresentation(FOREIGN_TOKENIZERS[name]().to_str().encode())
    assert of.encoded_by.startswith("the library encodes, as there is no compiled code for the ")
    for document in DOCUMENTS[:2]:
        assert of.encode(document).tolist() == of.encode_by_library(document).tolist()


def test_code_that_has_other_ids_is_found_and_not_used(monkeypatch):
    merges = exact_encoder._merges
    monkeypatch.setattr(exact_encoder, "_merges", lambda model: dict(reversed(merges(model).items())))
    of = SubwordFit(vocab_size=600).fit(DOCUMENTS, "")
    with pytest.warns(UserWarning, match="the library encodes, as compiled code has other ids of b'"):
        ids = of.encode(DOCUMENTS[0])
    assert ids.tolist() == of.encode_by_library(DOCUMENTS[0]).tolist()
    assert of.decode(ids) == DOCUMENTS[0]


def test_a_memory_of_words_stays_as_large_as_it_is(monkeypatch):
    monkeypatch.setattr(exact_encoder, "_SLOT_BITS", 6)
    of, usual = SubwordFit(vocab_size=600).fit(DOCUMENTS, ""), representation("bpe-gpt4")
    rng = random.Random(0)
    texts = [" ".join("".join(rng.choices("abcdefgh", k=rng.randint(1, 40))) for _ in range(50)) for _ in range(40)]
    encoder, _ = of._exact_encoder
    for text in texts:
        assert of.encode(text.encode()).tolist() == of.encode_by_library(text.encode()).tolist()
        [words] = encoder._free_words
        assert 0 < words.used[0] <= len(words.slots) // 2
        assert words.used[1] <= len(words.keys) - 8 and words.used[2] <= len(words.ids)
    assert usual._exact_encoder[0] is not encoder


def test_a_memory_that_another_thread_has_just_taken_is_not_waited_for(monkeypatch):
    class TakenMeanwhile(list):
        def __bool__(self):
            return True

    of = SubwordFit(vocab_size=600).fit(DOCUMENTS, "")
    encoder, _ = of._exact_encoder
    monkeypatch.setattr(encoder, "_free_words", TakenMeanwhile())
    assert of.encode(DOCUMENTS[0]).tolist() == of.encode_by_library(DOCUMENTS[0]).tolist()


def test_threads_have_memories_of_their_own():
    of = representation("bpe-gpt4")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(of.encode_batch, [DOCUMENTS] * 8))
    ids = np.concatenate([of.encode_by_library(document) for document in DOCUMENTS])
    assert all(np.array_equal(batch.ids, ids) for batch in encoded)
    assert 1 <= len(of._exact_encoder[0]._free_words) <= 4


def test_a_word_too_long_for_compiled_code_is_the_library_s():
    of, text = representation("bpe-gpt4"), b"ab" * 40_000
    assert of._exact_encoder[0].encode([b"x", text, b"y"])[2].tolist() == [False, True, False]
    ids, _, ends = of.encode_batch([b"x", text, b"y"])
    assert [ids[0], ids[-1]] == [*of.encode(b"x"), *of.encode(b"y")] and np.diff(ends, prepend=0)[[0, 2]].tolist() == [
        1,
        1,
    ]
    assert of.decode(ids) == b"x" + text + b"y"


def test_texts_of_every_kind_have_all_categories():
    import unicodedata

    categories = {unicodedata.category(c) for text in texts_of_every_kind([b"a"]) for c in text.decode(errors="ignore")}
    assert categories >= {unicodedata.category(chr(point)) for point in range(0x110000)} - {"Cs", "Cn"}


def test_a_tokenizer_that_marks_bytes_as_added_text_is_not_compiled():
    spec = json.loads(byte_level().to_str())
    spec["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    with pytest.raises(NotCompiled, match="the normalizer Replace"):
        exact_encoder.ExactEncoder(Tokenizer.from_str(json.dumps(spec)), [b""] * 700, dict.fromkeys(range(256), 0))
