"""What only subword tokenizers promise: reproducible fits, and ids that are the library's own wherever they can be."""

import dataclasses
import inspect
import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors

import tokenizer_lab.subword.representation
from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation

GOLDEN_DOCUMENTS = [
    b"the quick brown fox jumps over the lazy dog, the lazy dog sleeps; the quick fox jumps again and again\n" * 3,
    "naïve café, déjà vu: 12345 67890; naïve café — 語言模型 語言模型 😀😀\n".encode() * 3,
    b"def quick(fox):\n    return fox + 1\n\n\ndef lazy(dog):\n    return dog + 1\n" * 3
    + b"\xff\xfe not text \xed\xa0\x80",
]
GOLDEN_TEXT = "the lazy fox returns 12345 déjà 語😀\n    again".encode() + b"\xff"
GOLDEN_FITS = {
    "bpe": SubwordFit(vocab_size=300),
    "unigram": SubwordFit(vocab_size=270, algorithm="unigram", pretokenization="whitespace"),
    "superword": SubwordFit(vocab_size=300, superword_transition=280, digits="rtl3"),
    "character": SubwordFit(vocab_size=261, algorithm="character"),
}
GOLDEN_FILE = pathlib.Path(__file__).parent / "golden_subword.json"


def golden_values() -> dict[str, dict]:
    fitted = {name: fit.fit(GOLDEN_DOCUMENTS, corpus_hash="") for name, fit in GOLDEN_FITS.items()}
    return {name: {"fingerprint": x.fingerprint, "ids": x.encode(GOLDEN_TEXT).tolist()} for name, x in fitted.items()}


def loaded(tokenizer: Tokenizer) -> SubwordRepresentation:
    return SubwordRepresentation(tokenizer.to_str().encode())


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_fits_are_the_golden_ones():
    assert golden_values() == json.loads(GOLDEN_FILE.read_text()), (
        "A fit on the same text gives other ids than before, so every subword artifact would change. If that is meant "
        "(or a new release of `tokenizers` writes its JSON differently), update the golden file with "
        "`python tests/tokenizer_lab/test_subword.py` and say why in the commit."
    )


@pytest.mark.parametrize("threads", ["1", "3"])
def test_fits_do_not_depend_on_the_process_or_its_threads(threads):
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
    code = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['golden_values']()))"
    command = [sys.executable, "-c", code, __file__]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == json.loads(GOLDEN_FILE.read_text())


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_the_order_of_documents_does_not_matter(documents, algorithm):
    fit = SubwordFit(vocab_size=1000, algorithm=algorithm)
    shuffled = random.Random(1).sample(documents, len(documents))
    assert fit.fit(documents, "").fingerprint == fit.fit(shuffled, "").fingerprint


def test_documents_are_read_once_one_at_a_time(documents):
    alive = []

    def stream():
        for document in documents * 5:
            alive.append(1)
            yield document

    representation = SubwordFit(vocab_size=300).fit(stream(), corpus_hash="abc")
    assert len(alive) == 5 * len(documents)
    assert representation.fit_corpus_hash == "abc"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_vocab_size_is_the_one_asked_for(documents, algorithm):
    for vocab_size in (257, 258, 300, 1000):
        assert SubwordFit(vocab_size=vocab_size, algorithm=algorithm).fit(documents, "").vocab_size == vocab_size


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_vocabulary_beyond_the_corpus_is_refused_with_the_size_that_works(documents, algorithm):
    with pytest.raises(
        UserError, match=r"the corpus supports [\d,]+ ids .*, --vocab-size is 50,000; use at most "
    ) as error:
        SubwordFit(vocab_size=50_000, algorithm=algorithm).fit(documents, "")
    supported = int(str(error.value).split("supports ")[1].split()[0].replace(",", ""))
    assert SubwordFit(vocab_size=supported, algorithm=algorithm).fit(documents, "").vocab_size == supported


def test_what_occurs_once_is_not_learned():
    with pytest.raises(UserError, match="supports 257 ids"):
        SubwordFit(vocab_size=258).fit([b"abcdefgh"], "")
    assert SubwordFit(vocab_size=258).fit([b"abcdefgh", b"ab"], "").decode([256]) == b"ab"


@pytest.mark.parametrize("vocab_size", [-1, 0, 256, 2**24 + 1])
def test_vocab_sizes_that_never_work_are_refused_at_once(vocab_size):
    with pytest.raises(UserError, match=f"--vocab-size is {vocab_size:,}; it is at least 257"):
        SubwordFit(vocab_size=vocab_size)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("documents", [[], [b""], [b"\xff"], [b"a"], [b" "], [b"\0"]])
def test_a_corpus_without_words_still_gives_bytes(algorithm, documents):
    representation = SubwordFit(vocab_size=257, algorithm=algorithm).fit(documents, "")
    every_byte = bytes(range(256)) * 2
    assert representation.decode(representation.encode(every_byte)) == every_byte
    with pytest.raises(UserError, match="the corpus supports 257 ids"):
        SubwordFit(vocab_size=300, algorithm=algorithm).fit(documents, "")


def test_invalid_bytes_separate_the_text_that_is_learned():
    mixed = SubwordFit(vocab_size=259).fit([b"abab\xffabab\xed\xa0\x80abab", b"\xfe"], "")
    apart = SubwordFit(vocab_size=259).fit([b"abab", b"abab", b"abab"], "")
    assert mixed.fingerprint == apart.fingerprint
    assert mixed.decode([257]) == b"abab"


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


def pieces_of(fit: SubwordFit, text: str) -> list[str]:
    split = Tokenizer.from_str(fit.fit([], "").to_files()["tokenizer.json"].decode()).pre_tokenizer.pre_tokenize_str(
        text
    )
    return [text[start:end] for _, (start, end) in split]


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


def test_characters_are_the_most_frequent_ones_beside_the_bytes():
    documents = ["äöü 語語語 éé ü".encode(), "ö ß".encode() + b"\xff"]
    fit = SubwordFit(vocab_size=260, algorithm="character")
    representation = fit.fit(documents, "")
    assert [representation.decode([id_]).decode() for id_ in (256, 257, 258)] == ["語", "é", "ö"]
    assert representation.encode("aé語ü<0x41>".encode()).tolist() == [97, 257, 256, *"ü<0x41>".encode()]
    with pytest.raises(UserError, match=r"supports 261 ids \(character\), --vocab-size is 262"):
        dataclasses.replace(fit, vocab_size=262).fit(documents, "")


@pytest.mark.parametrize("name", ["bpe-gpt2", "bpe-gpt4", "bpe-whitespace", "character", "unigram-gpt4"])
def test_segments_do_not_show_in_the_ids(representations, documents, name):
    text = b"\n".join(documents) * 2
    assert len(text) > 3 * tokenizer_lab.subword.SEGMENT_BYTES
    tokenizer = Tokenizer.from_str(representations[name].to_files()["tokenizer.json"].decode())
    assert representations[name].encode(text).tolist() == library_ids(tokenizer, text.decode())


@given(
    unit=st.sampled_from(
        [b"a", b" ", "é".encode(), "語".encode(), "😀".encode(), b"\xff", b"\x80", b"two words ", b"\xe8\xaa"]
    ),
    count=st.integers(0, 300),
    offset=st.integers(0, 3),
)
@settings(deadline=None)
def test_segments_are_short_and_end_between_characters(unit, count, offset):
    document = b"x" * offset + unit * count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_lab.subword.representation, "SEGMENT_BYTES", 64)
        patch.setattr(tokenizer_lab.subword.representation, "_WORD_BORDER_SEARCH_BYTES", 16)
        segments = list(tokenizer_lab.subword._segments(document))
    assert b"".join(segments) == document
    assert all(0 < len(segment) <= 64 for segment in segments) or document == b""
    assert len(segments) <= 1 + len(document) // 45
    if unit.decode(errors="ignore").encode() == unit:
        assert all(segment.decode().encode() == segment for segment in segments)


@pytest.mark.slow
def test_whitespace_beyond_the_library_s_retry_limit_is_encoded(representations):
    document = b" " * 10_500_000 + b"x"
    ids = representations["bpe-gpt4"].encode(document)
    assert representations["bpe-gpt4"].decode(ids) == document
    assert len(ids) < len(document) / 2  # Not byte ids, which stand for what the library fails on.


def test_byte_level_alphabet_is_the_library_s():
    alphabet = tokenizer_lab.subword._BYTE_OF_CHARACTER
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("Aé \n\x7f語\u00ad")[
        0
    ][0]
    assert bytes(map(alphabet.__getitem__, spelled)) == "Aé \n\x7f語\u00ad".encode()


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


def test_any_tokenizer_json_is_taken_as_it_is(foreign_tokenizers, tmp_path):
    for name, tokenizer in foreign_tokenizers.items():
        tokenizer.save(str(tmp_path / name))
        representation = SubwordFit(from_file=tmp_path / name).fit(iter(()), corpus_hash="abc")
        assert representation.to_files() == {"tokenizer.json": (tmp_path / name).read_bytes()}
        assert representation.fit_corpus_hash == ""


def test_old_spellings_of_the_prefix_space_are_off(foreign_tokenizers):
    spec = json.loads(foreign_tokenizers["unigram_metaspace"].to_str())
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    old = SubwordRepresentation(json.dumps(spec).encode())
    assert np.array_equal(
        old.encode(b"the object"), loaded(foreign_tokenizers["unigram_metaspace"]).encode(b"the object")
    )


def minimal(**changes) -> bytes:
    return json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}} | changes
    ).encode()


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
    with pytest.raises(UserError, match="cannot read"):
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


if __name__ == "__main__":
    GOLDEN_FILE.write_text(json.dumps(golden_values(), indent=1) + "\n")
