"""Documents of any length have the ids that the library gives the whole of them, in every script."""

import functools
import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokenizer_lab.subword import SubwordFit, SubwordRepresentation, borders


def words(alphabet: str, separator: str = " ") -> Callable[[random.Random], str]:
    return lambda rng: "".join(rng.choices(alphabet, k=rng.randint(1, 9))) + separator


RUSSIAN = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфё"
CHINESE = "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会"
THAI = "กขคงจชซดตถทนบปผพมยรลวสหอะาิีึืุูเแโใไ่้๊๋์"
SCRIPTS: dict[str, Callable[[random.Random], str]] = {
    "english": words("etaoinshrdlu"),
    "russian": words(RUSSIAN),
    "chinese": words(CHINESE, "，"),
    "chinese in one run": words(CHINESE, ""),
    "thai": words(THAI, ""),
    "digits": words("0123456789", ""),
    "numbers": words("0123456789"),
    "spaces": lambda rng: " ",
    "lines without text": lambda rng: rng.choice(["\n", " ", "  ", "\n\n"]),
    "indentation": lambda rng: "\n" + " " * rng.randint(0, 20) + "x = 1",
    "emoji": lambda rng: chr(0x1F600 + rng.randint(0, 60)),
    "punctuation": lambda rng: rng.choice(".,-=*#"),
    "one letter": lambda rng: "a",
    "all at once": lambda rng: SCRIPTS[rng.choice(list(SCRIPTS)[:-1])](rng),
}


@functools.cache
def document(script: str, num_bytes: int) -> str:
    rng, parts, size = random.Random(script), [], 0
    while size < num_bytes:
        parts.append(SCRIPTS[script](rng))
        size += len(parts[-1].encode())
    return "".join(parts)


def training_texts() -> list[str]:
    return [document(script, 1000)[: 60 if script in ("spaces", "one letter") else 1000] for script in SCRIPTS]


def foreign(tokenizer: Tokenizer, trainer: trainers.Trainer) -> SubwordRepresentation:
    tokenizer.train_from_iterator(training_texts(), trainer)
    return SubwordRepresentation(tokenizer.to_str().encode())


def like_llama() -> SubwordRepresentation:
    """No pre-tokenizer: the whole text is one word."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<0x00>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return foreign(tokenizer, trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, show_progress=False))


def like_t5() -> SubwordRepresentation:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return foreign(tokenizer, trainers.UnigramTrainer(vocab_size=400, unk_token="<unk>", show_progress=False))


def like_bert() -> SubwordRepresentation:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return foreign(tokenizer, trainers.WordPieceTrainer(vocab_size=400, show_progress=False))


MAKERS: dict[str, Callable[[], SubwordRepresentation]] = {
    "gpt4": lambda: SubwordFit(vocab_size=500).fit([text.encode() for text in training_texts()], ""),
    "gpt2": lambda: SubwordFit(vocab_size=500, pretokenization="gpt2").fit(
        [text.encode() for text in training_texts()], ""
    ),
    "rtl3": lambda: SubwordFit(vocab_size=500, digits="rtl3").fit([text.encode() for text in training_texts()], ""),
    "superword": lambda: SubwordFit(vocab_size=600, superword_transition=400).fit(
        [text.encode() for text in training_texts()], ""
    ),
    "unigram": lambda: SubwordFit(vocab_size=400, algorithm="unigram").fit(
        [text.encode() for text in training_texts()], ""
    ),
    "llama": like_llama,
    "t5": like_t5,
    "bert": like_bert,
}


@functools.cache
def representation(name: str) -> SubwordRepresentation:
    return MAKERS[name]()


def ids_by_the_library(of: SubwordRepresentation, text: str) -> list[int]:
    return of.used_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "script", ["russian", "chinese in one run", "thai", "digits", "spaces", "indentation", "emoji", "all at once"]
)
def test_ids_of_a_long_document_are_the_library_s(script):
    text = document(script, 200 << 10)
    ids = representation("gpt4").encode(text.encode()).tolist()
    assert ids == ids_by_the_library(representation("gpt4"), text)


@pytest.mark.parametrize("name", MAKERS)
def test_pieces_do_not_show_in_the_ids(name, monkeypatch):
    of = representation(name)
    in_one_piece = {script: of.encode(document(script, 4_000).encode()).tolist() for script in SCRIPTS}
    monkeypatch.setattr(borders, "SEGMENT_CHARACTERS", 1200)
    for script, ids in in_one_piece.items():
        assert of.encode(document(script, 4_000).encode()).tolist() == ids, script


def test_text_is_cut_wherever_the_tokenizer_cuts(monkeypatch):
    monkeypatch.setattr(borders, "SEGMENT_CHARACTERS", 1200)
    for script in SCRIPTS:
        text = document(script, 4_000)
        pieces = list(representation("gpt4")._borders.pieces(text))
        assert "".join(pieces) == text and all(pieces)
        in_one = script in ("digits", "spaces", "lines without text", "one letter")
        assert (max(map(len, pieces)) <= 1200) == (not in_one), script


def test_a_text_without_borders_is_cut_where_memory_ends(monkeypatch):
    monkeypatch.setattr(borders, "SEGMENT_CHARACTERS", 1200)
    monkeypatch.setattr(borders, "MAX_SEGMENT_CHARACTERS", 3000)
    of, text = representation("gpt4"), " " * 10_000 + "語"
    assert {len(piece) for piece in of._borders.pieces(text)} == {3000, 1001}
    assert of.decode(of.encode(text.encode())) == text.encode()


@pytest.mark.parametrize("added", ["€", "€€", "€€€"])
def test_groups_of_digits_that_fill_what_is_looked_at_are_no_borders(added, monkeypatch):
    tokenizer = Tokenizer.from_str(representation("gpt4").to_files()["tokenizer.json"].decode())
    tokenizer.add_tokens([added])  # The longest one says how far is looked: among these, a multiple of three.
    of = SubwordRepresentation(tokenizer.to_str().encode())
    monkeypatch.setattr(borders, "SEGMENT_CHARACTERS", 1200)
    text = document("digits", 4_000)
    assert of.encode(text.encode()).tolist() == ids_by_the_library(of, text)
