"""Representations to test the contract on: every kind, and tokenizers of other makers that lose parts of a text.

For compressed text, language models so small that they compile and run in little time.
"""

import collections
import functools
import math
import pydoc_data.topics
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.extend
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokenizer_lab.baselines.gzip_code import GzipFit
from tokenizer_lab.baselines.static_ac import StaticACFit
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.equal_info import EqualInfoRepresentation, window_stream
from tokenizer_lab.equal_info.byte_lm import ByteLM
from tokenizer_lab.equal_info.quantization import quantize
from tokenizer_lab.equal_info.window_code import Tree, build_tree
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
    "bpe-rtl3": SubwordFit(vocab_size=700, digits="rtl3"),
    "superword": SubwordFit(vocab_size=700, superword_transition=500),
    "character": SubwordFit(vocab_size=262, algorithm="character"),
    "unigram-gpt4": SubwordFit(vocab_size=700, algorithm="unigram"),
    "unigram-whitespace": SubwordFit(vocab_size=700, algorithm="unigram", pretokenization="whitespace"),
}
FITS |= {"static-ac": StaticACFit(), "gzip": GzipFit()}
EQUAL_INFO = ["equal-info-16", "equal-info-32"]
REPRESENTATIONS = ["byte", *FITS, *EQUAL_INFO, *FOREIGN_TOKENIZERS]


@functools.cache
def _make(name: str) -> Representation:
    if name == "byte":
        return ByteRepresentation()
    if name == "equal-info-16":
        return EqualInfoRepresentation.of_tree(_tree(16), 16)
    if name == "equal-info-32":
        return EqualInfoRepresentation.of_lm(_make_byte_lm(), 32, 16)
    if name in FITS:
        return FITS[name].fit(DOCUMENTS, corpus_hash="abc")
    return SubwordRepresentation(FOREIGN_TOKENIZERS[name]().to_str().encode())


def _random_params(
    *, layers: int = 1, embed: int = 16, heads: int = 2, kv_heads: int = 1, head_dim: int = 8, mlp: int = 16
) -> dict[str, np.ndarray]:
    """Weights of a decoder, the same in every version of numpy, that make it nearly as sure as a trained one."""
    random = np.random.RandomState(0)

    def normal(*shape: int, inputs: int) -> np.ndarray:
        return random.standard_normal(shape) / np.sqrt(inputs)

    return {
        "embedding": normal(384, embed, inputs=1),
        "unembedding": 3 * normal(384, embed, inputs=embed),
        "final_scale": random.uniform(0.5, 2, embed),
        "attention_scale": random.uniform(0.5, 2, (layers, embed)),
        "mlp_scale": random.uniform(0.5, 2, (layers, embed)),
        "query": normal(layers, embed, heads, head_dim, inputs=embed),
        "key": normal(layers, embed, kv_heads, head_dim, inputs=embed),
        "value": normal(layers, embed, kv_heads, head_dim, inputs=embed),
        "query_scale": random.uniform(0.5, 2, (layers, head_dim)),
        "key_scale": random.uniform(0.5, 2, (layers, head_dim)),
        "out": normal(layers, heads, head_dim, embed, inputs=heads * head_dim),
        "gate": normal(layers, embed, mlp, inputs=embed),
        "up": normal(layers, embed, mlp, inputs=embed),
        "down": normal(layers, mlp, embed, inputs=mlp),
    }


def _make_byte_lm(*, context_bytes: int = 8, **shape: int) -> ByteLM:
    return quantize(_random_params(**shape), rope_theta=10_000.0, context_bytes=context_bytes)


@functools.cache
def _counts() -> np.ndarray:
    """i32[256, 256] shares of the next byte behind each byte, counted in `DOCUMENTS`."""
    text = np.frombuffer(b" ".join(DOCUMENTS), np.uint8)
    count = np.bincount(text[:-1].astype(int) << 8 | text[1:], minlength=1 << 16).reshape(256, 256) + 0.01
    shares = 1 + np.floor(count / count.sum(axis=1, keepdims=True) * (2**16 - 256)).astype(np.int32)
    shares[np.arange(256), shares.argmax(axis=1)] += 2**16 - shares.sum(axis=1, dtype=np.int32)
    return shares


def _count_shares(contexts: np.ndarray) -> np.ndarray:
    last = contexts[:, -1] if contexts.shape[1] else np.full(len(contexts), ord("\n"))
    return _counts()[last]


@functools.cache
def _tree(window_bits: int) -> Tree:
    return build_tree(_count_shares, window_bits)


def _windows_by_hand(shares: Callable, text: bytes, window_bits: int) -> list[tuple[int, int]]:
    """The walk of design.md with Python's own integers: number and length of each window of a text."""
    windows, at = [], 0
    while at < len(text):
        first, points, length = 0, 1 << window_bits, 0
        while at + length < len(text) and points > 1:
            context = np.frombuffer(text[at : at + length], np.uint8)[None]
            children = _divide_by_hand(points, shares(context)[0].tolist(), is_root=length == 0)
            byte = text[at + length]
            if not children[byte]:
                break
            first, points = first + (length > 0) + sum(children[:byte]), children[byte]
            length += 1
        windows.append((first, length))
        at += length
    return windows


def _divide_by_hand(points: int, shares: list[int], is_root: bool) -> list[int]:
    """The points of each next byte: by largest remainder, ties to the lower; at the root one beforehand, else STOP."""
    to_divide = points - 256 if is_root else points - 1
    whole = [to_divide * share // 2**16 for share in shares]
    remainder = [to_divide * share % 2**16 for share in shares]
    for byte in sorted(range(256), key=lambda byte: (-remainder[byte], byte))[: to_divide - sum(whole)]:
        whole[byte] += 1
    return [points + is_root for points in whole]


@pytest.fixture(scope="session")
def random_params() -> Callable[..., dict[str, np.ndarray]]:
    """random_params(layers=..., ...): float weights of a byte decoder."""
    return _random_params


@pytest.fixture(scope="session")
def make_byte_lm() -> Callable[..., ByteLM]:
    """make_byte_lm(context_bytes=..., layers=..., ...): a quantized model with random weights."""
    return _make_byte_lm


@pytest.fixture(scope="session")
def count_shares() -> Callable[[np.ndarray], np.ndarray]:
    """An order-1 model of English: what a window code needs of a language model, without compiling anything."""
    return _count_shares


@pytest.fixture(scope="session")
def make_tree() -> Callable[[int], Tree]:
    """make_tree(window_bits): the window code of `count_shares`."""
    return _tree


@pytest.fixture(scope="session")
def windows_by_hand() -> Callable[[Callable, bytes, int], list[tuple[int, int]]]:
    """windows_by_hand(shares, text, window_bits): (number, length) of each window, slowly."""
    return _windows_by_hand


@pytest.fixture(scope="session")
def divide_by_hand() -> Callable[..., list[int]]:
    """divide_by_hand(points, shares, is_root): how many points each next byte gets, slowly."""
    return _divide_by_hand


def _product_flops(jaxpr: jax.extend.core.Jaxpr) -> collections.Counter[str]:
    flops: collections.Counter[str] = collections.Counter()
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            flops += _product_flops(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            kind = "attention" if batched else "dense"
            flops[kind] += 2 * summed * math.prod(equation.outvars[0].aval.shape)
    return flops


@pytest.fixture(scope="session")
def count_product_flops() -> Callable[..., Mapping[str, int]]:
    """count_product_flops(function, *arguments): FLOPs of the matrix products in its program: "dense" and "attention",
    whose products are one for each head. Loops are counted once."""
    return lambda function, *arguments: _product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.fixture(scope="session", autouse=True)
def few_lanes() -> Iterator[None]:
    """Each number of lanes is compiled anew, and every text has the same windows whatever it is: 1 and 4 are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_stream, "MAX_LANES", 4)
        yield


@pytest.fixture(scope="session")
def documents() -> list[bytes]:
    """English reference text that comes with Python."""
    return DOCUMENTS


@pytest.fixture(scope="session")
def foreign_tokenizers() -> dict[str, Tokenizer]:
    """Tokenizers of other makers, by name."""
    return {name: maker() for name, maker in FOREIGN_TOKENIZERS.items()}


class _Representations(Mapping[str, Representation]):
    """One of each, made when it is first asked for."""

    def __getitem__(self, name: str) -> Representation:
        return _make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(REPRESENTATIONS)

    def __len__(self) -> int:
        return len(REPRESENTATIONS)


@pytest.fixture(scope="session")
def representations() -> Mapping[str, Representation]:
    """One of each representation, by name."""
    return _Representations()


@pytest.fixture(scope="session", params=REPRESENTATIONS)
def representation(request: pytest.FixtureRequest, representations: Mapping[str, Representation]) -> Representation:
    """Each of `representations` in turn."""
    return representations[request.param]
