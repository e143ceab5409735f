"""Subword tokenizers that are learned here: reproducible, and as large as asked for."""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordFit

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


def test_fits_are_the_golden_ones():
    assert golden_values() == json.loads(GOLDEN_FILE.read_text()), (
        "A fit on the same text gives other ids than before, so every subword artifact would change. If that is meant "
        "(or a new release of `tokenizers` writes its JSON differently), update the golden file with "
        "`python tests/tokenizer_lab/subword/test_fit.py` and say why in the commit."
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
        UserError, match=r"the corpus supports [\d,]+ ids .*, --vocab-size is 50,000; use --vocab-size "
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


def test_characters_are_the_most_frequent_ones_beside_the_bytes():
    documents = ["äöü 語語語 éé ü".encode(), "ö ß".encode() + b"\xff"]
    fit = SubwordFit(vocab_size=260, algorithm="character")
    representation = fit.fit(documents, "")
    assert [representation.decode([id_]).decode() for id_ in (256, 257, 258)] == ["語", "é", "ö"]
    assert representation.encode("aé語ü<0x41>".encode()).tolist() == [97, 257, 256, *"ü<0x41>".encode()]
    with pytest.raises(UserError, match=r"supports 261 ids \(character\), --vocab-size is 262"):
        dataclasses.replace(fit, vocab_size=262).fit(documents, "")


if __name__ == "__main__":
    GOLDEN_FILE.write_text(json.dumps(golden_values(), indent=1) + "\n")
