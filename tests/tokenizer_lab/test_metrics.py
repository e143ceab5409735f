"""Metrics by hand on texts of a few bytes, and what holds of them whatever the text."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, models

from tokenizer_lab import metrics
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.metrics import MorphItem
from tokenizer_lab.subword import SubwordRepresentation

BYTES = ByteRepresentation()


def merged(*merges: str) -> SubwordRepresentation:
    """Bytes a to z, the space, and these pairs as ids: `merged("a b", "ab c")` has ab and abc."""
    tokens = [*"abcdefghijklmnopqrstuvwxyz ", *(merge.replace(" ", "") for merge in merges)]
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    model = models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    return SubwordRepresentation(Tokenizer(model).to_str().encode())


def test_a_sample_is_of_many_documents_and_as_even_as_their_lengths_allow():
    long, short = [b"l" * 1000] * 60, [b"s" * 5] * 4
    sample = metrics.sample_text(iter([*long, *short, b"not read"]), 620)
    assert len(sample) == 64 and sum(map(len, sample)) == 620
    assert sorted(set(map(len, sample))) == [5, 10]
    assert metrics.sample_text([b"abc", b"", b"abcdef"], 100) == [b"", b"abc", b"abcdef"]


def test_a_sample_of_short_documents_has_as_many_as_it_takes():
    read = iter([b"abc"] * 1000)
    assert sum(map(len, metrics.sample_text(read, 600))) == 600 and next(read) == b"abc"


def test_a_sample_without_bytes_is_refused():
    with pytest.raises(UserError, match="3 documents have 0 bytes"):
        metrics.sample_text([b""] * 3, 100)


class Dropping(ByteRepresentation):
    """Loses every x."""

    def encode(self, text):
        return super().encode(text.replace(b"x", b""))


class Lowering(ByteRepresentation):
    """Loses what is upper case."""

    def encode(self, text):
        return super().encode(text.lower())


class WithEnd(ByteRepresentation):
    """Ends a document with the id that does so, which an encoder should not."""

    def encode(self, text):
        return np.append(super().encode(text), np.int32(self.eod_id))


def counts(text: str) -> np.ndarray:
    return np.array([text.split().count(word) for word in sorted(set(text.split()))])


# ---- By hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, renyi, shannon",
    [
        ("pick @@ed pick @@l @@ed pick @@les", 0.8265064834225245, 0.9211854965885544),
        ("pick @@e @@d pick @@l @@e @@d pick @@l @@e @@s", 0.9204840242168808, 0.9609557933859342),
    ],
)
def test_renyi_efficiency_gives_the_values_of_the_reference_scorer(text, renyi, shannon):
    """tokenization_scorer/test.py of github.com/zouharvi/tokenization-scorer."""
    assert metrics.renyi_efficiency(counts(text)) == pytest.approx(renyi, abs=1e-12)
    assert metrics.renyi_efficiency(counts(text), alpha=1) == pytest.approx(shannon, abs=1e-12)


def test_a_text_by_hand():
    text = metrics.encode(merged("a b"), [b"ab ab", b"ba"])  # ab . ab | b a
    assert [ids.tolist() for ids in text.ids] == [[27, 26, 27], [1, 0]]
    assert (text.num_bytes, text.num_tokens) == (7, 5)
    assert metrics.bytes_per_token(text.num_bytes, text.num_tokens) == 7 / 5
    assert metrics.fertility(text) == 5 / 3
    share = np.array([2, 1, 1, 1]) / 5
    assert metrics.unigram_bits_per_byte(text.id_counts, 7) == pytest.approx(-(share * np.log2(share)).sum() * 5 / 7)
    assert metrics.renyi_efficiency(text.id_counts) == pytest.approx(math.log2((share**2.5).sum()) / -1.5 / 2)
    assert metrics.vocabulary_use(text) == (28 + 256, 4)  # what it has no letter for is written in 256 byte ids
    assert metrics.uniform_bits_per_byte(text.id_counts, 7) == pytest.approx(math.log2(28 + 256) * 5 / 7)
    assert text.units == {0: b"a", 1: b"b", 26: b" ", 27: b"ab"}


def test_words_are_between_whitespace_of_any_kind():
    text = metrics.encode(BYTES, ["don't  stop,\u2003東京\tタワー\xa0".encode(), b"\xff \xfe"])
    assert metrics.fertility(text) == text.num_bytes / 6
    assert metrics.fertility(metrics.encode(BYTES, [b" \n", b""])) is None


def test_premium_is_a_ratio_of_totals():
    lines = {"pivot": [b"ab ab", b"ba"], "other": [b"ab", b"abab ba"]}
    tokens = {name: metrics.encode(merged("a b"), of_language).num_tokens for name, of_language in lines.items()}
    assert tokens == {"pivot": 5, "other": 6}
    assert metrics.premium(tokens["other"], tokens["pivot"]) == 6 / 5
    assert metrics.premium(tokens["pivot"], tokens["pivot"]) == 1.0 and metrics.premium(3, 0) is None


def test_morph_score_by_hand():
    """In the order of the published examples: at the boundary, elsewhere, at it and elsewhere, and a word that is one
    token."""
    items = [MorphItem(b"abc", 2), MorphItem(b"abcd", 1), MorphItem(b"dabcd", 3), MorphItem(b"ab", 1)]
    assert metrics.morph_score(merged("a b"), items) == (2 / 3, 3)  # ab c | ab c d | d ab c d | ab
    assert metrics.morph_score(merged("a b"), items[3:]) == (None, 0)
    assert metrics.morph_score(BYTES, items) == (1.0, 4)


def test_a_morpheme_boundary_is_where_its_bytes_end():
    word, boundary = "aé".encode(), 1
    assert metrics.morph_score(BYTES, [MorphItem(word, boundary)]).share == 1.0  # é is cut too, which costs nothing
    assert (
        metrics.morph_score(BYTES, [MorphItem(word, len(word))]).share == 0.0
    )  # the end of a word is no boundary in it


# ---- What holds whatever the text ----------------------------------------------------------------


def test_bytes_are_eight_bits_uniformly():
    text = metrics.encode(BYTES, [b"any text", b"at all"])
    assert metrics.uniform_bits_per_byte(text.id_counts, text.num_bytes) == 8.0
    assert metrics.vocabulary_use(text) == (256, len(set(b"any textat all")))


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 50), st.floats(0.5, 5))
def test_equally_frequent_ids_have_efficiency_one(size, times, alpha):
    unseen = [0, 0, 0]
    assert metrics.renyi_efficiency(np.array([times] * size + unseen), alpha) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=50))
def test_efficiency_falls_with_alpha_and_no_id_code_is_shorter_than_the_unigram(id_counts):
    id_counts = np.array(id_counts)
    efficiencies = [metrics.renyi_efficiency(id_counts, alpha) for alpha in (0.5, 1, 2.5, 4)]
    assert all(0 <= later <= earlier + 1e-9 <= 1 + 2e-9 for earlier, later in zip(efficiencies, efficiencies[1:]))
    assert metrics.unigram_bits_per_byte(id_counts, 7) <= metrics.uniform_bits_per_byte(id_counts, 7) + 1e-9


def test_one_id_alone_has_no_efficiency():
    assert metrics.renyi_efficiency(np.array([5, 0])) is None and metrics.renyi_efficiency(np.array([0, 0])) is None


def test_every_representation_is_counted_in_full(representation, documents):
    text = metrics.encode(representation, [document[:200] for document in documents[:3]])
    assert text.num_tokens == sum(map(len, text.ids)) and text.num_bytes == sum(
        lengths.sum() for lengths in text.lengths
    )
    assert metrics.round_trip_share(text) == 1.0
    assert text.num_tokens == text.id_counts.sum() and len(text.id_counts) == representation.vocab_size - 1
    use = metrics.vocabulary_use(text)
    assert 0 < use.used <= use.size < representation.vocab_size


# ---- Traps ---------------------------------------------------------------------------------------


def test_ids_are_units_where_they_stand_for_bytes_whatever_is_around_them(representations, documents):
    units = {
        name
        for name, each in representations.items()
        if metrics.encode(each, [document[:200] for document in documents[:3]]).units is not None
    }
    of_windows = {name for name in representations if getattr(representations[name], "window_bits", 0)}
    whole = {name for name in of_windows if representations[name].window_bits == representations[name].id_bits}
    codes = {name for name, each in representations.items() if each.kind in ("gzip", "static_ac", "ac")}
    assert codes and whole and of_windows - whole, "one of each"
    assert units == representations.keys() - codes - (of_windows - whole)


def test_what_is_lost_shows_in_the_round_trip_and_leaves_no_units():
    text = metrics.encode(Dropping(), [b"abc", b"axb", b"x", b""])
    assert metrics.round_trip_share(text) == 2 / 4
    assert text.units is None
    assert metrics.encode(Lowering(), [b"AB"]).units is None and metrics.encode(Lowering(), [b"ab"]).units is not None


def test_the_end_of_a_document_is_no_text():
    plain, ended = (metrics.encode(each, [b"abab", b"ba"]) for each in (BYTES, WithEnd()))
    assert ended.num_tokens == plain.num_tokens == 6 and np.array_equal(ended.id_counts, plain.id_counts)
    assert metrics.vocabulary_use(ended).used == 2 and metrics.fertility(ended) == 3


def test_special_tokens_are_no_text(foreign_tokenizers):
    """[CLS] and [SEP] are not put around a document, and that they do not occur does not make them dead."""
    representation = SubwordRepresentation(foreign_tokenizers["wordpiece_lowercase"].to_str().encode())
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    text = metrics.encode(representation, [b"the end", " ".join(special).encode()])
    assert text.units is not None and metrics.round_trip_share(text) == 1.0
    assert metrics.vocabulary_use(text).size == representation.vocab_size - len(special) - 1


def test_speeds_are_positive_and_a_library_is_not_asked_for_more_than_ids(monkeypatch):
    assert min(metrics.speed(BYTES, [b"text" * 100])) > 0
    lengths_asked = []
    monkeypatch.setattr(
        ByteRepresentation, "byte_lengths", lambda self, ids: lengths_asked.append(ids) or np.ones(len(ids), np.int64)
    )
    metrics.speed(BYTES, [b"text"])
    assert len(lengths_asked) == 1, "once to have something to decode, never while the clock runs"


def test_progress_tells_all_bytes():
    told = []
    metrics.round_trip_share(metrics.encode(BYTES, [b"abc", b"de"], told.append), told.append)
    assert told == [3, 2, 3, 2]


@pytest.mark.parametrize("tick_seconds, num_passes", [(0.5, 7), (1.0, 5), (2.0, 3), (9.0, 1)])
def test_a_speed_is_the_median_of_seven_passes_or_of_five_seconds(monkeypatch, tick_seconds, num_passes):
    ticks, decoded = itertools.count(), []
    monkeypatch.setattr("time.perf_counter", lambda: tick_seconds * next(ticks))
    monkeypatch.setattr(ByteRepresentation, "decode", lambda self, ids: decoded.append(len(ids)))
    found = metrics.speed(BYTES, [b"x" * 3_000, b"y" * 1_000])
    assert found == pytest.approx((0.004 / tick_seconds, 0.004 / tick_seconds), rel=1e-9)
    assert decoded == [3_000, 1_000] * (1 + num_passes), "one pass more that is not timed"


def test_of_no_text_there_is_no_share_and_no_division_by_zero():
    assert metrics.bytes_per_token(7, 0) == 7.0
    assert metrics.Spelled(0, {}).share == 0.0 and metrics.script(b"12 \xff") == "none"
    assert metrics.unigram_bits_per_byte(np.zeros(256, np.int64), 7) == 0.0


def test_what_is_spelled_in_bytes_is_told_in_percent():
    spelled = metrics.Spelled(200, {"a": 10, "b": 5})
    assert spelled.share == 0.075
    assert str(spelled) == "7.5 % of 200 bytes are spelled in bytes: 5.0 % as a, 2.5 % as b"


@pytest.mark.parametrize(
    "text, script", [("ab же", "Latin"), ("a жук", "Cyrillic"), ("東京 ab 大阪", "CJK"), ("タワー", "Katakana")]
)
def test_the_script_is_that_of_most_letters(text, script):
    assert metrics.script(text.encode() * 3) == script
