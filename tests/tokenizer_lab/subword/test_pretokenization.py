"""Where tokens may not cross, and how numbers are cut."""

import dataclasses

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer

from tokenizer_lab.subword import SubwordFit


def pieces_of(fit: SubwordFit, text: str) -> list[str]:
    split = Tokenizer.from_str(fit.fit([], "").to_files()["tokenizer.json"].decode()).pre_tokenizer.pre_tokenize_str(
        text
    )
    return [text[start:end] for _, (start, end) in split]


def test_pretokenization_sets_where_tokens_may_not_cross():
    text = "12345 don't stop.\n\n  a\n"
    pieces = {
        name: pieces_of(SubwordFit(vocab_size=257, pretokenization=name), text)
        for name in ("gpt2", "gpt4", "whitespace")
    }
    assert pieces == {
        "gpt2": ["12345", " don", "'t", " stop", ".", "\n\n ", " a", "\n"],
        "gpt4": ["123", "45", " don", "'t", " stop", ".\n\n", " ", " a", "\n"],
        "whitespace": ["12345", " don't", " stop.", "\n\n ", " a", "\n"],
    }


@pytest.mark.parametrize("pretokenization", ["gpt2", "gpt4"])
@given(
    before=st.sampled_from(["", " ", "a ", "a", ".", "  ", "\n"]),
    number=st.integers(1, 10**12).map(str),
    after=st.sampled_from(["", " ", "b", ".5"]),
)
@settings(max_examples=20, deadline=None)
def test_digits_are_cut_as_asked_for(pretokenization, before, number, after):
    first = len(number) % 3 or 3
    expected = {
        "single": list(number),
        "ltr3": [number[i : i + 3] for i in range(0, len(number), 3)],
        "rtl3": [number[:first], *(number[i : i + 3] for i in range(first, len(number), 3))],
    }
    for digits, groups in expected.items():
        pieces = pieces_of(
            SubwordFit(vocab_size=257, pretokenization=pretokenization, digits=digits), f"{before}{number}{after}"
        )
        numbers = [piece for piece in pieces if any(map(str.isdigit, piece))]
        assert numbers == [*groups, *(["5"] if after == ".5" else [])]
    free = pieces_of(
        SubwordFit(vocab_size=257, pretokenization=pretokenization, digits="free"), f"{before}{number}{after}"
    )
    assert number in [piece.lstrip(" ") for piece in free]


def test_digits_are_published_with_the_pretokenization():
    for pretokenization, digits in [("gpt2", "free"), ("gpt4", "ltr3")]:
        fit = SubwordFit(vocab_size=257, pretokenization=pretokenization)
        assert fit.fit([], "").fingerprint == dataclasses.replace(fit, digits=digits).fit([], "").fingerprint


def test_numbers_of_any_length_are_cut_from_the_right_also_among_superwords():
    documents = [b"It is 1234567 and 89 of 1234567 there. It is 1234567890 and 89 of it there."] * 3
    representation = SubwordFit(vocab_size=284, superword_transition=268, digits="rtl3").fit(documents, "")
    assert b"It is " in [representation.decode([id_]) for id_ in range(267, 283)]
    ids = representation.encode(b"of 1234567, 89 it 1234567890")
    assert {3, 4, 7, 10, 12, 14, 18, 19, 22, 25, 28} <= set(representation.byte_lengths(ids).cumsum().tolist())
    assert len(representation.encode(b"56" + 6_000 * b"234")) == 6_001
