"""What only subword tokenizers promise: ids that are the library's own wherever they can be."""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, processors

from tokenizer_lab.subword import SubwordRepresentation


def loaded(tokenizer: Tokenizer) -> SubwordRepresentation:
    return SubwordRepresentation(tokenizer.to_str().encode())


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@given(
    text=st.lists(
        st.sampled_from(["a", "b", " ", "  ", "\n", "1", "1234567", "é", "語", "don't", "X", ".,"]), max_size=30
    ).map("".join)
)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize(
    "name", ["bpe-gpt2", "bpe-gpt4", "bpe-whitespace", "superword", "character", "unigram-gpt4", "unigram-whitespace"]
)
def test_ids_of_valid_text_are_the_library_s(representations, name, text):
    representation = representations[name]
    tokenizer = Tokenizer.from_str(representation.to_files()["tokenizer.json"].decode())
    ids = representation.encode(text.encode())
    assert ids.tolist() == library_ids(tokenizer, text)
    assert tokenizer.decode(ids.tolist()) == text


@pytest.mark.parametrize(
    "name", ["bpe-gpt2", "bpe-rtl3", "bpe-whitespace", "superword", "character", "unigram-gpt4", "unigram-whitespace"]
)
def test_our_fits_never_take_the_slow_path(representations, documents, name, monkeypatch):
    monkeypatch.setattr(SubwordRepresentation, "_encode_aligned", None)
    for text in [b"\n".join(documents), "  ,, \0\0 ’’ 語語 ÿÿ \n\n\n\n".encode() * 100, bytes(range(256)) * 10]:
        representations[name].encode(text)


def test_wordpiece_ids_are_kept_where_they_are_the_text(foreign_tokenizers):
    tokenizer = foreign_tokenizers["wordpiece_lowercase"]
    representation, vocab = loaded(tokenizer), tokenizer.get_vocab()
    byte_id = {bytes([b]): tokenizer.get_vocab_size() + b for b in range(256)}
    assert representation.eod_id == tokenizer.get_vocab_size() + 256
    ids = representation.encode(b"the value  Of\xff [CLS]")
    words = [vocab["the"], byte_id[b" "], vocab["value"], byte_id[b" "], byte_id[b" "]]
    assert ids[: len(words)].tolist() == words
    assert ids[len(words) :][:4].tolist() == [byte_id[b"O"], byte_id[b"f"], byte_id[b"\xff"], byte_id[b" "]]
    assert not {vocab[special] for special in ("[CLS]", "[SEP]", "[PAD]", "[UNK]")} & set(ids.tolist())
    pieces = representation.encode(b"attributeserror")
    assert len(pieces) > 1 and pieces.max() < tokenizer.get_vocab_size()


def test_metaspace_ids_have_no_space_before_the_text(foreign_tokenizers):
    tokenizer = foreign_tokenizers["unigram_metaspace"]
    representation, text = loaded(tokenizer), "statement the object is a class"
    ids = representation.encode(text.encode()).tolist()
    assert max(ids) < tokenizer.get_vocab_size()
    assert representation.encode(b" " + text.encode()).tolist() == library_ids(tokenizer, text)


def test_one_unknown_character_does_not_spoil_its_neighbours(foreign_tokenizers):
    tokenizer = foreign_tokenizers["unigram_metaspace"]
    with pytest.raises(Exception, match="unk_id"):
        library_ids(tokenizer, "the object 語 the object")
    representation = loaded(tokenizer)
    ids = representation.encode("the object 語 the object".encode())
    assert (ids >= tokenizer.get_vocab_size()).sum() <= 3 + len("object ")
    assert representation.decode(ids[ids >= tokenizer.get_vocab_size()]).endswith("語".encode())


def test_byte_fallback_ids_are_the_tokenizer_s_own(foreign_tokenizers):
    tokenizer = foreign_tokenizers["bpe_byte_fallback"]
    representation, vocab = loaded(tokenizer), tokenizer.get_vocab()
    assert representation.eod_id == tokenizer.get_vocab_size()
    assert representation.encode("語".encode()).tolist() == [vocab["<0xE8>"], vocab["<0xAA>"], vocab["<0x9E>"]]
    assert representation.encode(b"hell wo<0x41>").tolist()[:2] == [vocab["hell"], vocab["▁wo"]]
    assert representation.decode([vocab["<0x41>"], vocab["<s>"], vocab["▁"]]) == b"A "


def test_random_merges_are_off(foreign_tokenizers):
    tokenizer = foreign_tokenizers["bpe_byte_fallback"]
    assert len({tuple(library_ids(tokenizer, "hell " * 20)) for _ in range(10)}) > 1
    representation = loaded(tokenizer)
    assert len({tuple(representation.encode(b"hell " * 20).tolist()) for _ in range(10)}) == 1


def test_special_tokens_in_a_document_are_text_and_other_added_tokens_are_used(foreign_tokenizers):
    tokenizer = foreign_tokenizers["bpe_byte_level"]
    representation = loaded(tokenizer)
    special, indent, define = (tokenizer.token_to_id(token) for token in ("<|endoftext|>", "    ", "def "))
    assert special in library_ids(tokenizer, "<|endoftext|>")
    ids = representation.encode(b"<|endoftext|>    def f")
    assert special not in ids and indent in ids and define in ids
    assert representation.decode(ids) == b"<|endoftext|>    def f"
    assert representation.decode([special]) == b""


def test_a_normalizer_costs_only_the_characters_it_changes(foreign_tokenizers, documents):
    tokenizer = foreign_tokenizers["bpe_byte_level"]
    representation = loaded(tokenizer)
    text = b"\n".join(documents).decode()[:30_000] + " naïve 語 5‰"
    expected = representation.encode(text.encode()).tolist()
    assert representation._tokenizer.encode(text).ids == expected
    assert representation.byte_lengths(expected[-2:]).tolist() == [
        2,
        1,
    ]  # Two ids for one character, not just its bytes.
    ids = representation.encode((text + "e\u0301").encode())
    assert ids[: len(expected)].tolist() == expected
    assert representation.decode(ids[len(expected) :]) == "e\u0301".encode()


def test_words_are_kept_beside_words_that_the_vocabulary_lacks(foreign_tokenizers):
    tokenizer = foreign_tokenizers["word_level"]
    with pytest.raises(Exception, match="Missing \\[UNK\\]"):
        library_ids(tokenizer, "the xylophone is")
    representation = loaded(tokenizer)
    assert set(range(6)) - set(representation.encode(b"the xylophone of and to a is").tolist()) == {5}
    assert representation.encode(b"and").tolist() == [77]


def test_templates_special_tokens_truncation_and_padding_are_off(representations):
    tokenizer = Tokenizer.from_str(representations["bpe-gpt4"].to_files()["tokenizer.json"].decode())
    tokenizer.add_special_tokens(["<s>", "statement with"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 699)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    for text in (b"a", b"some longer statement with <s> in it"):
        assert np.array_equal(loaded(tokenizer).encode(text), representations["bpe-gpt4"].encode(text))


def test_old_spellings_of_the_prefix_space_are_off(foreign_tokenizers):
    spec = json.loads(foreign_tokenizers["unigram_metaspace"].to_str())
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    old = SubwordRepresentation(json.dumps(spec).encode())
    assert np.array_equal(
        old.encode(b"the object"), loaded(foreign_tokenizers["unigram_metaspace"]).encode(b"the object")
    )
