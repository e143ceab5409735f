"""Covers: what may follow what, compared with the ids of every short document there is."""

import itertools
import random

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tokenizer_lab.baselines.gzip_code import GzipRepresentation
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.covers import covers_of
from tokenizer_lab.equal_info import EqualInfoRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation

_CHARACTER_OF_BYTE = {character.encode("latin-1")[0]: character for character in map(chr, range(0x21, 0x7F))} | {
    0x20: "Ġ",
    0x0A: "Ċ",
}
_CHARACTER_OF_BYTE |= {byte: chr(byte) for byte in [*range(0xA1, 0xAD), *range(0xAE, 0x100)]} | {0x9E: "ŀ"}


def bpe(merges: list[tuple[bytes, bytes]], pretokenization: str | None = None) -> SubwordRepresentation:
    """Byte-level BPE with these merges."""

    def spell(token: bytes) -> str:
        return "".join(_CHARACTER_OF_BYTE[byte] for byte in token)

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(spell(left + right) for left, right in merges)]
    tokenizer = Tokenizer(
        models.BPE(
            {token: id_ for id_, token in enumerate(tokens)}, [(spell(left), spell(right)) for left, right in merges]
        )
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = (
        [pre_tokenizers.Split(Regex(SubwordFit(pretokenization=pretokenization).split_pattern), behavior="isolated")]
        if pretokenization
        else []
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([*split, byte_level]), decoders.ByteLevel()
    return SubwordRepresentation(tokenizer.to_str().encode())


def unigram() -> SubwordRepresentation:
    return SubwordFit(vocab_size=262, algorithm="unigram", pretokenization="whitespace").fit(
        [b"ab aab abb bab ba b a aba"] * 5, ""
    )


# (representation, the bytes of the documents, how long these are): what follows a beginning shows only in documents
# that are longer by the longest id and the end of a character, `MARGIN_BYTES`.
MARGIN_BYTES = 4
CASES = {
    "bpe": lambda: (bpe([(b"a", b"b"), (b"ab", b"a"), (b"b", b"b"), (b"a", b"a")]), b"ab", 8),
    "words": lambda: (
        bpe([(b" ", b"a"), (b"a", b"a"), (b"\n", b"\n"), (b" a", b"a"), (b" ", b"\n")], "gpt4"),
        b" a\n",
        7,
    ),
    "digits": lambda: (bpe([(b"1", b"1"), (b"11", b"1"), (b" ", b" "), (b"a", b"a")], "gpt4"), b" a1", 7),
    "unigram": lambda: (unigram(), b" ab", 7),
    "half a character": lambda: (bpe([(b"a", b"\xc3"), (b"\xa9", b"a")]), b"a\xc3\xa9", 7),
    "characters of three bytes": lambda: (
        bpe([(b" ", b"\xe8"), (b"\xe8", b"\xaa"), (b"\xaa", b"\x9e")]),
        b" \xe8\xaa\x9e",
        6,
    ),
    "letters of three bytes": lambda: (
        bpe([(b" ", b"\xe8"), (b"\xaa", b"\x9e"), (b"\xe8", b"\xaa")], "gpt4"),
        b" \xe8\xaa\x9e",
        6,
    ),
    "byte": lambda: (ByteRepresentation(), b"ab", 7),
}


@pytest.mark.parametrize("case", CASES)
def test_what_may_follow_is_what_does_follow_in_some_document(case):
    representation, alphabet, longest = CASES[case]()
    covers = covers_of(representation)
    documents = [
        bytes(letters) for length in range(longest + 1) for letters in itertools.product(alphabet, repeat=length)
    ]
    following: dict[tuple[int, ...], set[int]] = {}
    for encoded, _ in representation.encode_many(documents):
        ids = (*encoded.tolist(), representation.eod_id)
        for place in range(len(ids)):
            following.setdefault(ids[:place], set()).add(ids[place])
    over_alphabet = np.array([set(bytes_) <= set(alphabet) for bytes_ in covers.id_bytes])
    compared = 0
    for ids, follow in following.items():
        if len(representation.decode(ids)) <= longest - MARGIN_BYTES:
            assert np.flatnonzero(covers.may_follow(ids) & over_alphabet).tolist() == sorted(follow), (
                ids,
                representation.decode(ids),
            )
            compared += 1
    assert compared > 3


@pytest.mark.parametrize("name", ["bpe-gpt4", "bpe-gpt2", "bpe-whitespace", "unigram-gpt4", "bpe_byte_level"])
def test_the_borders_of_a_text_are_those_of_its_own_ids_and_of_others(representations, documents, name):
    representation = representations[name]
    covers = covers_of(representation)
    text = documents[0][:40] + "naïve 語言😀 x\n  12345".encode() + b"\xff\xc3"
    ids = tuple(representation.encode(text).tolist())
    ends = [0, *np.cumsum(representation.byte_lengths(ids)).tolist()]
    borders = list(covers.borders(text))
    assert all(ids[:place] in borders[end] for place, end in enumerate(ends))
    for end, sequences in enumerate(borders):
        assert all(representation.decode(sequence) == text[:end] for sequence in sequences)
        assert len(set(sequences)) == len(sequences) <= 2


def test_only_the_text_behind_a_border_between_words_is_encoded_again(representations, documents, monkeypatch):
    """A long beginning has the same ids behind it as its last words alone."""
    representation = representations["bpe-gpt4"]
    covers = covers_of(representation)
    for text, alone in [
        (b"some of the thing", b" thing"),
        (documents[0][:300] + b" of th", b" th"),
        (b"1 = 2;\nret", b"ret"),
    ]:
        ids, end = (tuple(representation.encode(part).tolist()) for part in (text, alone))
        np.testing.assert_array_equal(covers.may_follow(ids), covers.may_follow(end))
        assert covers._tail(ids) == end


def test_windows_follow_where_the_one_before_cannot_be_longer(make_tree, documents):
    representation = EqualInfoRepresentation.of_tree(make_tree(16), 16)
    covers, random_ = covers_of(representation), random.Random(0)
    ids = tuple(representation.encode(documents[0][:60]).tolist())
    for place in range(len(ids)):
        allowed = covers.may_follow(ids[:place])
        assert allowed[ids[place]] and allowed[representation.eod_id]
        for other in random_.sample(range(1 << 16), 60):
            again = representation.encode(representation.decode([*ids[:place], other])).tolist()
            assert allowed[other] == (again == [*ids[:place], other])
    assert covers.may_follow(()).all() and not all(covers.may_follow(ids[:place]).all() for place in range(len(ids)))


def test_ids_that_begin_with_some_bytes(representations):
    covers = covers_of(representations["bpe-gpt4"])
    for beginning in (b" th", b"\xff", b" ", b"zzzz"):
        assert sorted(covers.starting_with(beginning)) == [
            id_ for id_, bytes_ in enumerate(covers.id_bytes) if bytes_.startswith(beginning)
        ]
    ids = covers.starting_with(b" th")
    assert bytes(covers.bytes_at(ids, 2)) == b"h" * len(ids) and len(ids) > 2


@pytest.mark.parametrize(
    "make", [lambda tree: EqualInfoRepresentation.of_tree(tree, 8), lambda tree: GzipRepresentation(8)]
)
def test_ids_without_bytes_of_their_own_are_refused(make_tree, make):
    with pytest.raises(UserError, match="not each stands for bytes of its own"):
        covers_of(make(make_tree(16)))


def test_superwords_are_refused():
    texts = [b"by the way of the world " * 20, b"on the way to the end of the world " * 20]
    superwords = SubwordFit(vocab_size=280, superword_transition=265).fit(texts, "")
    with pytest.raises(UserError, match="is one id; use others than superwords"):
        covers_of(superwords)
    covers_of(SubwordFit(vocab_size=265).fit(texts, ""))
