"""Representations to test the contract on: every kind, and tokenizers of other makers that lose parts of a text."""

import pydoc_data.topics
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.representation import Representation
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation

DOCUMENTS = [topic.encode() for topic in list(pydoc_data.topics.topics.values())[:20]]


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator([document.decode() for document in DOCUMENTS], trainer)
    return tokenizer


def wordpiece_lowercase() -> Tokenizer:
    """Like BERT: drops whitespace, lower-cases, knows few characters, adds [CLS] and [SEP], cuts and pads."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=3, pad_token="[PAD]")
    return tokenizer


def unigram_metaspace() -> Tokenizer:
    """Like T5: puts a space before the text, merges spaces, normalizes, fails without help on an unknown character."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _train(tokenizer, trainers.UnigramTrainer(vocab_size=600, show_progress=False))


def bpe_byte_fallback() -> Tokenizer:
    """Like Llama 2: no pre-tokenizer, spaces as "▁", 256 byte tokens, random merges."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁helowrd",
        "he",
        "ll",
        "hell",
        "▁w",
        "▁wo",
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            merges=[("h", "e"), ("l", "l"), ("he", "ll"), ("▁", "w"), ("▁w", "o")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
            dropout=0.5,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def bpe_byte_level() -> Tokenizer:
    """Like GPT-NeoX: byte-level with NFC, offsets without spaces, a special token, and added tokens that are text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens(["    ", "def "])
    return tokenizer


def word_level() -> Tokenizer:
    """Six words, of which one has an id far from the others; no token for what is unknown."""
    vocab = {"the": 0, "a": 1, "of": 2, "to": 3, "is": 4, "and": 77}
    tokenizer = Tokenizer(models.WordLevel(vocab))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


FOREIGN_TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker
    for maker in (wordpiece_lowercase, unigram_metaspace, bpe_byte_fallback, bpe_byte_level, word_level)
}
FITS = {
    "bpe-gpt2": SubwordFit(vocab_size=700, pretokenization="gpt2"),
    "bpe-gpt4": SubwordFit(vocab_size=700),
    "bpe-whitespace": SubwordFit(vocab_size=700, pretokenization="whitespace"),
    "bpe-of-bytes": SubwordFit(vocab_size=257),
    "unigram-gpt4": SubwordFit(vocab_size=700, algorithm="unigram"),
    "unigram-whitespace": SubwordFit(vocab_size=700, algorithm="unigram", pretokenization="whitespace"),
}
REPRESENTATIONS = ["byte", *FITS, *FOREIGN_TOKENIZERS]


def _make(name: str) -> Representation:
    if name == "byte":
        return ByteRepresentation()
    if name in FITS:
        return FITS[name].fit(DOCUMENTS, corpus_hash="abc")
    return SubwordRepresentation(FOREIGN_TOKENIZERS[name]().to_str().encode())


@pytest.fixture(scope="session")
def documents() -> list[bytes]:
    """English reference text that comes with Python."""
    return DOCUMENTS


@pytest.fixture(scope="session")
def foreign_tokenizers() -> dict[str, Tokenizer]:
    """Tokenizers of other makers, by name."""
    return {name: maker() for name, maker in FOREIGN_TOKENIZERS.items()}


@pytest.fixture(scope="session")
def representations() -> dict[str, Representation]:
    """One of each representation, by name."""
    return {name: _make(name) for name in REPRESENTATIONS}


@pytest.fixture(scope="session", params=REPRESENTATIONS)
def representation(request: pytest.FixtureRequest, representations: dict[str, Representation]) -> Representation:
    """Each of `representations` in turn."""
    return representations[request.param]
