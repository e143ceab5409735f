"""The published rule and its variant, against fractions worked out by hand; nothing is compiled."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from tokenizer_lab.equal_info import EqualInfoRepresentation, lockstep
from tokenizer_lab.equal_info.paper_windows import PaperCode, paper_shares

WIDTH = 16
Window = tuple[int, int]  # its number, and how many bytes it takes


@pytest.fixture(scope="module", autouse=True)
def walks_of_counts(count_shares):
    """Each walk by itself along the counts of pairs of bytes."""

    def run(lm, walks):
        results = []
        for walk in walks:
            try:
                _, byte = next(walk)
                while True:
                    _, byte = walk.send(count_shares(np.array([[byte]], np.uint8))[0])
            except StopIteration as end:
                results.append(end.value)
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lockstep, "run", run)
        yield


@pytest.fixture(scope="module")
def make_code(count_shares):
    return lambda rule, width=WIDTH: PaperCode(SimpleNamespace(shares=count_shares), width, rule)


@pytest.fixture(scope="module")
def padded(count_shares):
    """padded(text, width): the number of its shortest dyadic interval with zeros up to `width` bits; None if longer."""

    def number(text: bytes, width: int) -> int | None:
        low, size = Fraction(0), Fraction(1)
        for at, byte in enumerate(text):
            shares = paper_shares(count_shares(np.frombuffer(text[:at], np.uint8)[None])[0]).tolist()
            low, size = low + size * Fraction(sum(shares[:byte]), 1 << 14), size * Fraction(shares[byte], 1 << 14)
        for bits in range(width + 1):
            first = math.ceil(low * 2**bits)
            if Fraction(first + 1, 2**bits) <= low + size:
                return first << width - bits
        return None

    return number


def windows_by_hand(text: bytes, rule: str, padded, width: int) -> list[Window]:
    windows: list[Window] = []
    at = 0
    while at < len(text):
        numbers = []
        while at + len(numbers) < len(text) and (n := padded(text[at : at + len(numbers) + 1], width)) is not None:
            numbers.append(n)
        length = numbers.index(numbers[-1]) + 1 if rule == "delay" else len(numbers)
        windows.append((numbers[-1], length))
        at += length
    return windows


@pytest.mark.parametrize("rule", ["paper", "delay"])
@pytest.mark.parametrize("width", [16, 24, 64])
def test_windows_are_those_worked_out_by_hand(make_code, padded, documents, rule, width):
    text = documents[0][:60] + bytes(range(250, 256))
    [(numbers, lengths)] = make_code(rule, width).encode([text])
    found = [int.from_bytes(number.tobytes(), "big") for number in numbers]
    assert list(zip(found, lengths.tolist(), strict=True)) == windows_by_hand(text, rule, padded, width)
    assert numbers.shape == (len(found), width // 8)


def test_the_delayed_rule_loses_nothing(make_code, documents):
    code, texts = make_code("delay"), [documents[1][:500], b"", bytes(range(256))]
    encoded = code.encode(texts)
    for text, (numbers, lengths) in zip(texts, encoded, strict=True):
        decoded, decoded_lengths = code.decode(numbers)
        assert decoded == text
        np.testing.assert_array_equal(decoded_lengths, lengths)


def test_a_delayed_window_that_would_not_decode_is_noticed(make_code, monkeypatch):
    code = make_code("delay")
    monkeypatch.setattr(PaperCode, "_decode_noting", lambda self, numbers, depths: (b"another", np.ones(7, np.int64)))
    with pytest.raises(RuntimeError, match="do not decode to their texts"):
        code.encode([b"a text"])


def test_the_published_rule_gives_the_longest_text_of_a_number(make_code, padded, documents):
    """Any number has one, or none; some of those that a text was written with have another than the text."""
    code, text = make_code("paper"), documents[0][:300]
    [(numbers, lengths)] = code.encode([text])
    ends = np.cumsum(lengths)
    lost = 0
    for number, end, length in zip(numbers, ends, lengths, strict=True):
        decoded, [size] = code.decode(number[None])
        assert size == len(decoded) >= length and padded(decoded, WIDTH) == int.from_bytes(number.tobytes(), "big")
        lost += decoded != text[end - length : end]
    assert lost > 0, "this text cannot tell the two rules apart"
    assert code.decode(np.array([[255, 255]], np.uint8))[1].shape == (1,)


def test_only_the_published_rule_says_that_it_loses_text(make_code, make_byte_lm):
    of_rule = {
        rule: EqualInfoRepresentation(make_code(rule), WIDTH, 8, rule, {}) for rule in ("exact", "paper", "delay")
    }
    assert {rule: found.is_lossless for rule, found in of_rule.items()} == {
        "exact": True,
        "paper": False,
        "delay": True,
    }
    assert not of_rule["paper"].verifies_encoding and of_rule["delay"].verifies_encoding


@pytest.mark.parametrize("rule", ["paper", "delay"])
def test_every_question_to_the_language_model_is_counted(make_code, documents, monkeypatch, rule):
    asked, run = [], lockstep.run

    def noting(lm, walks):
        def noted(walk):
            shares = None
            while True:
                try:
                    question = walk.send(shares)
                except StopIteration as end:
                    return end.value
                asked.append(question[0])
                shares = yield question

        return run(lm, map(noted, walks))

    monkeypatch.setattr(lockstep, "run", noting)
    depths = make_code(rule).encoding_depths([documents[0][:200], b"", b"a"])
    assert depths.tolist() == np.bincount(asked).tolist()
    assert depths.sum() > 200 * 0.9
