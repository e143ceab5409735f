"""Every kind of model behind every kind of step, from the parts of `tokenizers`: exact bytes, and the library's ids or
a reason; the exported tokenizer has the same ids and gives back the text."""

import functools
import itertools
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordRepresentation
from tokenizer_lab.subword.spelling import CHARACTER_OF_BYTE
from train.export.tokenizer import tokenizer_files

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [*map(chr, range(0x21, 0x7F)), *"üß語▁"]
WORDS = [*("th", "the", "la", "lam", "lamp"), *("▁the", "▁lamp", "▁▁", "Ġthe", "Ġlamp", "ĠĠ")]
ALL_TOKENS = list(dict.fromkeys(["<unk>", "<s>", *BYTE_TOKENS, *CHARACTER_OF_BYTE, *LETTERS, *WORDS]))
MERGES = [("t", "h"), ("th", "e"), ("l", "a"), ("la", "m"), ("lam", "p"), ("▁", "the"), ("▁", "lamp"), ("▁", "▁")]
MERGES += [("Ġ", "the"), ("Ġ", "lamp"), ("Ġ", "Ġ")]


def bpe(**options: Any) -> models.Model:
    vocab = {token: id_ for id_, token in enumerate(ALL_TOKENS)}
    return models.BPE(vocab, MERGES, unk_token="<unk>", fuse_unk=True, **options)


def unigram(**options: Any) -> models.Model:
    return models.Unigram([(token, -10.0 / len(token)) for token in ALL_TOKENS], unk_id=0, **options)


def wordpiece() -> models.Model:
    tokens = [*ALL_TOKENS, *(f"##{token}" for token in [*LETTERS, *CHARACTER_OF_BYTE, "mp", "he"])]
    return models.WordPiece({token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}, unk_token="<unk>")


MODELS = {
    "bpe": bpe,
    "bpe with byte tokens": functools.partial(bpe, byte_fallback=True),
    "unigram": unigram,
    "unigram with byte tokens": functools.partial(unigram, byte_fallback=True),
    "wordpiece": wordpiece,
    "wordlevel": lambda: models.WordLevel({token: id_ for id_, token in enumerate(ALL_TOKENS)}, unk_token="<unk>"),
}
NORMALIZERS = {
    "none": None,
    "nfc": normalizers.NFC(),
    "lowercase": normalizers.Lowercase(),
    "llama": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "t5": normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace("  ", " ")]),
    "bert": normalizers.BertNormalizer(),
}


def steps(*parts: Any) -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence(list(parts))


PRE_TOKENIZERS = {
    "none": None,
    "byte-level": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "gpt4": steps(
        pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
    "words, byte-level": steps(pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace": pre_tokenizers.Metaspace(),
    "words, metaspace": steps(pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()),
    "punctuation, metaspace": steps(pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()),
    "bert": pre_tokenizers.BertPreTokenizer(),
}
DECODERS = {
    "none": None,
    "byte-level": decoders.ByteLevel(),
    "metaspace": decoders.Metaspace(),
    "llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "wordpiece": decoders.WordPiece(),
}
ADDED = {
    "none": [],
    "added": [
        AddedToken("<s>", special=True),
        AddedToken("für", normalized=False),
        AddedToken("Übung"),
        AddedToken("##x"),
        AddedToken("a▁b", normalized=False),
        AddedToken("é"),
        AddedToken("▁▁", normalized=False),
        AddedToken("<mask>", lstrip=True, rstrip=True),
    ],
}
TEXTS = [
    *("the lamp", "    the lamp", " the", "The lamp  the", "thelamp the\n\n\tlamp ", "für Übung, fürs the für"),
    *("##x the ##x a▁b", "<s> the <mask> lamp", "cafe\u0301 é 語 ▁ über 🙂", "<0x41> Ġthe \u00ad", ""),
]
PLAIN_TEXTS = TEXTS[:3]


def made(model: str, normalizer: str, pre_tokenizer: str, decoder: str, added: str) -> Tokenizer:
    tokenizer = Tokenizer(MODELS[model]())
    if NORMALIZERS[normalizer]:
        tokenizer.normalizer = NORMALIZERS[normalizer]
    if PRE_TOKENIZERS[pre_tokenizer]:
        tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre_tokenizer]
    if DECODERS[decoder]:
        tokenizer.decoder = DECODERS[decoder]
    tokenizer.add_tokens(ADDED[added])
    tokenizer.encode_special_tokens = True
    return tokenizer


def exported(representation: SubwordRepresentation) -> Tokenizer:
    files = tokenizer_files(representation, for_encoder=False, max_positions=64)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def cells(model: str) -> list[tuple[str, ...]]:
    return [(model, *rest) for rest in itertools.product(NORMALIZERS, PRE_TOKENIZERS, DECODERS, ADDED)]


def check_cell(cell: tuple[str, ...]) -> int:
    """How many texts have the library's ids and come back from the export."""
    representation = SubwordRepresentation(made(*cell).to_str().encode())
    try:
        export = exported(representation)
    except UserError as error:
        assert "lacks ids" in str(error) and not representation.spells_every_byte
        export = None
    kept = 0
    for text in TEXTS:
        ids = representation.encode(text.encode()).tolist()
        assert representation.decode(ids) == text.encode() and representation.byte_lengths(ids).sum() == len(
            text.encode()
        )
        library_ids = ids_of(representation.used_tokenizer, text)
        assert ids == library_ids or representation.spelled_bytes([text.encode()]), text
        if export and ids == library_ids:
            assert ids_of(export, text) == ids and export.decode(ids) == text, text
            kept += 1
    return kept


@pytest.mark.parametrize("model", MODELS)
def test_every_cell(model):
    kept = {cell: check_cell(cell) for cell in cells(model)}
    print(len(kept), sum(kept.values()))
