import json
import random

import pytest
import rich.console
from hypothesis import given, strategies as st

from train.evaluate import noise
from train.evaluate.bits_per_byte import make_judge
from train.evaluate.noise import add_noise, add_noise_to_pairs, evaluate_noise, find_pairs
from train.loop import train

TEXT = "The quick brown fox jumps over the lazy dog, and so on. " * 200


@given(st.text(max_size=200), st.floats(0, 1), st.integers(0, 99))
def test_noise_is_fixed_by_its_seed_and_none_changes_nothing(text, rate, seed):
    noisy = add_noise(text, rate, random.Random(seed))
    assert noisy == add_noise(text, rate, random.Random(seed))
    assert add_noise(text, 0.0, random.Random(seed)) == text


def test_each_kind_of_noise_comes_and_about_as_many_as_asked_for():
    noisy = add_noise("a" * 20_000, 0.1, random.Random(0))
    assert noisy.count("A") == pytest.approx(500, rel=0.2), "a quarter of a tenth changes its case"
    assert len(noisy) == pytest.approx(20_000, abs=150), "as many are doubled as left out"


class Scripted(random.Random):
    """Hits some of the characters that are looked at, always in one way."""

    def __init__(self, hits: str, kind: str):
        self.hits, self.kind = iter(hits), kind

    def random(self):
        return 0.0 if next(self.hits) == "x" else 1.0

    def choice(self, values):
        return self.kind if self.kind in values else values[-1]


@pytest.mark.parametrize(
    "kind, text, hits, noisy",
    [
        ("leave out", "abcd", "-x--", "acd"),
        ("double", "abcd", "x--x", "aabcdd"),
        ("exchange", "abcdef", "-x-x", "acbdfe"),
        ("exchange", "abcd", "---x", "abcd"),
        ("change", "aBc1", "xx-x", "Abc1"),
        ("change", "1xyz", "x---", "zxyz"),
    ],
)
def test_each_kind_of_noise_by_hand(kind, text, hits, noisy):
    assert add_noise(text, 0.5, Scripted(hits, kind)) == noisy


def test_pairs_are_of_lines_with_other_words_beside_each_other():
    lines = [
        b"one two three four five",
        b"too short a line",
        b"same same same same same",
        b"x" * 200 + b" a b c d e",
        "über das weite Meer gefahren".encode(),
    ]
    pairs = find_pairs([b"\n".join(lines)], 10)
    assert sorted(" ".join(words) for words, _ in pairs) == ["one two three four five", "über das weite Meer gefahren"]
    for good, bad in add_noise_to_pairs(pairs, 0.0):
        assert good != bad and sorted(good.split()) == sorted(bad.split()) and good in lines
    assert len(find_pairs([b"\n".join(lines)], 1)) == 1


def test_both_lines_of_a_pair_have_the_same_noise():
    for good, bad in add_noise_to_pairs(find_pairs([TEXT.encode()[:120]] * 20, 20), 0.3):
        assert sorted(good.split()) == sorted(bad.split())


def test_a_run_is_scored_at_each_rate(make_recipe, one_device, tmp_path, monkeypatch):
    monkeypatch.setattr(noise, "_MAX_BYTES", 2000)
    monkeypatch.setattr(noise, "_NUM_PAIRS", 8)
    train(make_recipe(), str(tmp_path / "run"), rich.console.Console(quiet=True), make_judge)
    result = evaluate_noise(str(tmp_path / "run"), None)
    assert json.loads((tmp_path / "run/noise.json").read_text()) == result
    assert [level["rate"] for level in result["levels"]] == list(noise.RATES)
    clean, *_, noisy = (level["bits_per_byte"] for level in result["levels"])
    assert noisy > clean > 0
