"""Merges across spaces: the trainer against the library's and against a naive one, its sample, the rules of its
tokens."""

import collections
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation, superword
from tokenizer_lab.subword.superword import BORDER, TextSample, add_superwords, learn_merges


def spec_of(representation: SubwordRepresentation) -> dict:
    return json.loads(representation.to_files()["tokenizer.json"])


def naive_merges(pieces: list[list[int]], tokens: list[str], vocab_size: int, is_allowed) -> list[tuple[int, int]]:
    """BPE as it is told: count all pairs, take the most frequent, write it everywhere, again."""
    tokens, merges = list(tokens), []
    while len(tokens) < vocab_size:
        counts = collections.Counter(pair for piece in pieces for pair in zip(piece, piece[1:], strict=False))
        counts = {(a, b): count for (a, b), count in counts.items() if count >= 2 and is_allowed(tokens[a] + tokens[b])}
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        pieces = [naive_merge(piece, best, len(tokens)) for piece in pieces]
        merges.append(best)
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return merges


def naive_merge(piece: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged = []
    while piece:
        at_pair = tuple(piece[:2]) == pair
        merged.append(new if at_pair else piece[0])
        piece = piece[2 if at_pair else 1 :]
    return merged


@given(
    pieces=st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=8),
    num_merges=st.integers(0, 30),
    max_length=st.sampled_from([2, 3, 5, 100]),
)
@settings(max_examples=200, deadline=None)
def test_merges_are_those_of_a_naive_trainer(pieces, num_merges, max_length):
    def is_allowed(token: str) -> bool:
        return len(token) <= max_length and token != "ab"

    ids = np.array([BORDER, *(id_ for piece in pieces for id_ in [*piece, BORDER])], np.int32)
    naive = naive_merges(pieces, list("abcd"), 4 + num_merges, is_allowed)
    assert learn_merges(ids, list("abcd"), 4 + num_merges, is_allowed) == naive


@pytest.mark.parametrize("from_size", [257, 500])
def test_going_on_within_words_gives_the_library_s_own_bpe(documents, from_size):
    tokenizer = Tokenizer.from_str(json.dumps(spec_of(SubwordFit(vocab_size=from_size).fit(documents, ""))))
    texts = [document.decode() for document in documents]
    assert add_superwords(tokenizer, texts, 1999) == spec_of(SubwordFit(vocab_size=2000).fit(documents, ""))


def test_the_first_ids_are_those_of_bpe_and_the_others_cross_spaces(documents):
    first = SubwordFit(vocab_size=500).fit(documents, "")
    bpe = SubwordFit(vocab_size=700).fit(documents, "")
    superwords = SubwordFit(vocab_size=700, superword_transition=500).fit(documents, "")
    assert [superwords.decode([id_]) for id_ in range(499)] == [first.decode([id_]) for id_ in range(499)]
    assert b" of the" in [superwords.decode([id_]) for id_ in range(499, 699)]
    text = b"\n".join(documents)
    assert len(superwords.encode(text)) < len(bpe.encode(text))


def test_what_superwords_may_be():
    sentence = "one two three four five six: seven eight (nine ten) 1234 1234 ... "
    fit = SubwordFit(vocab_size=600, superword_transition=290)
    with pytest.raises(UserError, match=r"supports [\d,]+ ids \(bpe, gpt4, superwords\)") as error:
        fit.fit([sentence.encode() * 50], "")
    supported = int(str(error.value).split("supports ")[1].split()[0])
    superwords = SubwordFit(vocab_size=supported, superword_transition=290).fit([sentence.encode() * 50], "")
    tokens = [superwords.decode([id_]).decode() for id_ in range(256, supported)]
    assert max(len(token.split()) for token in tokens) == 4
    assert not any(": " in token for token in tokens)
    assert any("six:" in token for token in tokens) and any(" (nine ten)" in token for token in tokens)
    assert {token for token in tokens if any(map(str.isdigit, token))} == {"12", "123"}
    assert {token.strip(" ") for token in tokens if ".." in token} <= {"..", "..."}


def test_text_is_learned_from_in_any_order_and_no_more_than_asked_for(documents, monkeypatch):
    fit = SubwordFit(vocab_size=600, superword_transition=400, superword_sample_bytes=1 << 15)
    sizes = []

    def add_and_note(tokenizer, texts, vocab_size):
        texts = list(texts)
        sizes.append(sum(len(text.encode()) for text in texts))
        return add_superwords(tokenizer, texts, vocab_size)

    monkeypatch.setattr("tokenizer_lab.subword.fit.add_superwords", add_and_note)
    assert fit.fit(documents, "").fingerprint == fit.fit(documents[::-1], "").fingerprint
    assert sizes[0] == sizes[1] and 1 << 13 < sizes[0] <= 1 << 15


@given(texts=st.lists(st.text(max_size=6), max_size=20), max_bytes=st.integers(0, 60), seed=st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_sample_is_the_texts_of_lowest_hash_that_fit(texts, max_bytes, seed):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    shuffled = seed.sample(texts, len(texts))
    sample = TextSample(max_bytes)
    assert list(sample.passing(shuffled)) == shuffled
    fitting, num_bytes = [], 0
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        num_bytes += len(text.encode())
        if num_bytes > max_bytes:
            break
        fitting.append(text)
    assert sorted(sample.texts()) == sorted(fitting)


def test_rules_of_superwords_on_their_own():
    assert superword.is_allowed("ĠaĠbĠcĠd") and not superword.is_allowed("ĠaĠbĠcĠdĠe")
    assert superword.is_allowed("ĠĠĠĠĠĠ") and superword.is_allowed("a:") and not superword.is_allowed("a:Ġb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(superword_transition=256),
            "--superword-transition is 256; it is at least 257 and below --vocab-size 4,096",
        ),
        (dict(superword_transition=4096), "--superword-transition is 4,096; it is at least 257 and below"),
        (
            dict(superword_transition=300, algorithm="unigram"),
            "goes on with BPE merges .* not with --algorithm unigram",
        ),
        (dict(superword_transition=300, algorithm="character"), "goes on with BPE merges"),
        (dict(superword_transition=300, pretokenization="whitespace"), "not with .* --pretokenization whitespace"),
        (
            dict(superword_transition=300, superword_sample_bytes=1000),
            "--superword-sample-bytes is 1000; it must be at least 32768",
        ),
        (dict(digits="rtl3", pretokenization="whitespace"), "--digits rtl3 has no numbers to cut with .* whitespace"),
        (
            dict(digits="single", algorithm="character"),
            "--digits single has no numbers to cut with --algorithm character",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SubwordFit(**options)


def test_a_transition_beyond_the_corpus_is_refused(documents):
    with pytest.raises(
        UserError, match=r"the corpus supports [\d,]+ ids .*--superword-transition is 50,000; use --sup"
    ) as error:
        SubwordFit(vocab_size=60_000, superword_transition=50_000).fit(documents[:2], "")
    supported = int(str(error.value).split("supports ")[1].split()[0].replace(",", ""))
    fit = SubwordFit(vocab_size=supported + 10, superword_transition=supported)
    assert fit.fit(documents[:2], "").vocab_size == supported + 10
