"""How fast text becomes windows of equal information, each figure beside what it is to be compared with.

    python benchmarks/equal_info.py [--text FILE] [--artifact FOLDER...] [--repeats 5] [--json-file FILE]

1. The table of 16-bit windows against a BPE of 32k ids of Hugging Face `tokenizers`: encoding and decoding, one thread.
2. The language model in the loop, for 32-bit windows: all documents as one batch against one document after the other,
   the language model run over the whole window for every byte. XLA uses all cores in both.
3. The coder's step alone, as XLA compiles it for this machine.

Two sides take turns, so that what else runs on the machine slows both; ratios are taken turn by turn. Each figure is
min / median / max over the turns, after one that does not count.

Without a file, the text is the standard library's source. The BPE is trained on three quarters of the documents and the
others are encoded. Without an artifact, the windows are those of an order-2 model of the same three quarters, and the
language model in the loop is one of random weights.
"""

import os

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import tyro
from rich.console import Console
from rich.table import Table

from tokenizer_lab import UserError
from tokenizer_lab.equal_info.byte_lm import ByteLM
from tokenizer_lab.equal_info.quantization import quantize
from tokenizer_lab.equal_info.window_code import Matcher, Tree, build_tree
from tokenizer_lab.equal_info.window_stream import MAX_LANES, WindowStream
from tokenizer_lab.kernels import window_coder
from train.commands.cli import leave_out_absent_tpus

TABLE_BITS, STREAM_BITS = 16, 32
BPE_VOCAB_SIZE = 32_768
DEFAULT_TEXT_BYTES = 8_000_000
DOCUMENT_BYTES = 4096
STREAM_DOCUMENT_BYTES = 127  # and an end: the 128 steps that are compiled together
NAIVE_DOCUMENTS = 2
CODER_STEPS = 8

Figures = dict[str, list[float]]  # name -> [min, median, max]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures equal-information windows."""

    text: pathlib.Path | None = None
    """UTF-8 text; at least some megabytes for a BPE of 32k ids."""
    artifact: tuple[pathlib.Path, ...] = ()
    """equal_info artifacts: one with a table of windows is used in part 1, one with a language model in part 2."""
    repeats: int = 5
    """Timed turns."""
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    try:
        parts = measure(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    for title, figures in parts.items():
        _print(title, figures)
    print(json.dumps(parts))
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(parts, indent=2) + "\n")


def measure(options: Benchmark) -> dict[str, Figures]:
    documents = _documents(_standard_library() if options.text is None else options.text.read_bytes())
    held_out = documents[::4]
    train = [document for number, document in enumerate(documents) if number % 4]
    tree, lm = _from_artifacts(options.artifact)
    tree = tree or build_tree(order_2_shares(train), TABLE_BITS)
    return {
        f"table of {tree.window_bits}-bit windows, 1 thread": measure_table(tree, train, held_out, options.repeats),
        f"language model in the loop, {STREAM_BITS}-bit windows": measure_stream(
            lm or random_lm(), held_out, options.repeats
        ),
        f"step of the coder, {jax.default_backend()}": measure_coder(options.repeats),
    }


# ---- Texts and models ----------------------------------------------------------------------------


def _standard_library() -> bytes:
    files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("[a-z]*/*.py"))
    own = (file for file in files if "packages" not in file.parent.name and "test" not in file.parent.name)
    return b"\n".join(file.read_bytes() for file in own)[:DEFAULT_TEXT_BYTES]


def _documents(text: bytes) -> list[bytes]:
    """Pieces of valid UTF-8: a BPE knows no other."""
    if len(text) < 4 * DOCUMENT_BYTES:
        raise UserError(f"the text has {len(text)} bytes; choose one of some megabytes")
    pieces = (text[start : start + DOCUMENT_BYTES] for start in range(0, len(text), DOCUMENT_BYTES))
    return [piece.decode(errors="ignore").encode() for piece in pieces]


def _from_artifacts(folders: Sequence[pathlib.Path]) -> tuple[Tree | None, ByteLM | None]:
    tree = lm = None
    for folder in folders:
        files = {file.name: file.read_bytes() for file in folder.glob("*.npy")}
        if "depths.npy" in files:
            tree = Tree(*(np.load(folder / name) for name in ("depths.npy", "last_bytes.npy")))
        else:
            lm = ByteLM.from_files(files)
    return tree, lm


def order_2_shares(documents: list[bytes]) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities from how often a byte follows two others, mixed with those behind one, behind none, and 1 / 256."""
    text = np.frombuffer(b"".join(documents), np.uint8).astype(np.int64)
    pairs, triples = text[:-1] << 8 | text[1:], text[:-2] << 16 | text[1:-1] << 8 | text[2:]
    counts = [np.bincount(text, minlength=256)[None], np.bincount(pairs, minlength=1 << 16).reshape(-1, 256)]
    counts.append(np.bincount(triples, minlength=1 << 24).reshape(-1, 256))

    def shares(contexts: np.ndarray) -> np.ndarray:
        probability_nb, key_n = np.full((len(contexts), 256), 1 / 256), np.zeros(len(contexts), np.int64)
        for order in range(min(contexts.shape[1], 2) + 1):
            if order:
                key_n += contexts[:, -order].astype(np.int64) << 8 * (order - 1)
            counts_nb = counts[order][key_n]
            probability_nb = (counts_nb + 4 * probability_nb) / (counts_nb.sum(axis=1, keepdims=True) + 4)
        shares_nb = 1 + (probability_nb * ((1 << 16) - 256)).astype(np.int32)
        shares_nb[np.arange(len(contexts)), shares_nb.argmax(axis=1)] += (1 << 16) - shares_nb.sum(axis=1)
        return shares_nb

    return shares


def random_lm() -> ByteLM:
    """A language model of the demo's size. It knows nothing, so its windows are half as long as a trained one's: a step
    is as fast, but running over a whole window for every byte looks cheaper than it is.
    """
    layers, embed, heads, head_dim, mlp = 4, 128, 2, 64, 384
    rng = np.random.default_rng(0)

    def normal(*shape: int, inputs: int) -> np.ndarray:
        return rng.normal(size=shape) / inputs**0.5

    params = {name: np.ones((layers, embed)) for name in ("attention_scale", "mlp_scale")}
    params |= {name: np.ones((layers, head_dim)) for name in ("query_scale", "key_scale")}
    params |= {name: normal(layers, embed, heads, head_dim, inputs=embed) for name in ("query", "key", "value")}
    params |= {name: normal(layers, embed, mlp, inputs=embed) for name in ("gate", "up")}
    params |= {
        "embedding": normal(257, embed, inputs=embed),
        "unembedding": normal(257, embed, inputs=embed),
        "final_scale": np.full(embed, 0.25),
        "out": normal(layers, heads, head_dim, embed, inputs=heads * head_dim),
        "down": normal(layers, mlp, embed, inputs=mlp),
    }
    return quantize(params, rope_theta=10_000.0, context_bytes=64)


def train_bpe(documents: list[bytes]) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=BPE_VOCAB_SIZE, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(map(bytes.decode, documents), trainer)
    return bpe


# ---- What is measured ----------------------------------------------------------------------------


def measure_table(tree: Tree, train: list[bytes], documents: list[bytes], repeats: int) -> Figures:
    matcher, bpe = Matcher(tree), train_bpe(train)
    texts, num_bytes = list(map(bytes.decode, documents)), sum(map(len, documents))
    windows = list(map(matcher.encode, documents))
    ids = [encoding.ids for encoding in bpe.encode_batch_fast(texts)]
    assert [matcher.decode(numbers)[0] for numbers in windows] == documents
    assert bpe.decode_batch(ids) == texts
    encode = _in_turns(
        lambda: list(map(matcher.encode, documents)), lambda: bpe.encode_batch_fast(texts), num_bytes / 1e6, repeats
    )
    decode = _in_turns(
        lambda: list(map(matcher.decode, windows)), lambda: bpe.decode_batch(ids), num_bytes / 1e6, repeats
    )
    return {
        "bytes a window": [num_bytes / sum(map(len, windows))],
        f"bytes an id of the BPE of {bpe.get_vocab_size():,}": [num_bytes / sum(map(len, ids))],
        **_side_by_side("encode", "BPE", "MB/s", encode),
        **_side_by_side("decode", "BPE", "MB/s", decode),
    }


def measure_stream(lm: ByteLM, documents: list[bytes], repeats: int) -> Figures:
    stream = WindowStream(lm, STREAM_BITS)
    texts = [document[:STREAM_DOCUMENT_BYTES] for document in (documents * MAX_LANES)[:MAX_LANES]]
    lengths = [lengths.tolist() for _, lengths in stream.encode(texts)]
    sample = texts[:NAIVE_DOCUMENTS]
    assert encode_naively(lm, sample) == lengths[:NAIVE_DOCUMENTS]
    num_bytes, sample_bytes = sum(map(len, texts)), sum(map(len, sample))
    turns = _in_turns(
        lambda: stream.encode(texts), lambda: encode_naively(lm, sample), num_bytes / 1e3, repeats, sample_bytes / 1e3
    )
    return {
        "bytes a window": [num_bytes / sum(map(len, lengths))],
        **_side_by_side(f"encode {len(texts)} documents, and decode to check", "one by one", "kB/s", turns),
    }


def encode_naively(lm: ByteLM, texts: list[bytes]) -> list[list[int]]:
    """The bytes of each window of each text."""
    return [_naive_window_lengths(lm, text) for text in texts]


def _naive_window_lengths(lm: ByteLM, text: bytes) -> list[int]:
    root = np.full((STREAM_BITS // 16, 1), (1 << 16) - 1, np.uint32), np.zeros((STREAM_BITS // 16, 1), np.uint32)
    (span, low), lengths, start, at = root, [], 0, 0
    while at < len(text):
        shares = lm.shares(np.frombuffer(text[start:at], np.uint8)[None])
        byte = np.array([text[at]], np.int32)
        fits, span, low = window_coder.encode_step(shares.T, span, low, byte)
        at += int(fits[0])
        if not fits[0] or at == len(text) or not np.any(span):
            lengths.append(at - start)
            start, (span, low) = at, root
    return lengths


def measure_coder(repeats: int) -> Figures:
    figures = {}
    for window_bits, num_streams in window_coder.PRODUCTION_SHAPES:
        rng = np.random.default_rng(0)
        shares_bn = np.full((256, num_streams), 256, np.int32)
        span_kn, low_kn, number_kn = rng.integers(0, 1 << 16, (3, window_bits // 16, num_streams)).astype(np.uint32)
        low_kn[:], span_kn[-1] = 0, (1 << 16) - 1  # so that any byte fits and any point is in the node
        number_kn[-1] >>= 1
        name = f"{window_bits} bits, {num_streams} streams:"
        byte_n = number_kn[0].astype(np.int32) & 255
        encode = functools.partial(_encode_steps, shares_bn, span_kn, low_kn, byte_n)
        decode = functools.partial(_decode_steps, shares_bn, span_kn, low_kn, number_kn)
        turns = _in_turns(encode, decode, num_streams * CODER_STEPS / 1e6, repeats)
        figures |= {f"{name} encode, MB/s": _spread(turns[0]), f"{name} decode, MB/s": _spread(turns[1])}
    return figures


@jax.jit
def _encode_steps(shares_bn, span_kn, low_kn, byte_n):
    def body(_, byte_n):  # the next byte depends on the step before, or XLA would do it once
        fits_n, _, low = window_coder.encode_step(shares_bn, span_kn, low_kn, byte_n, implementation="reference")
        return jnp.where(fits_n, low[0].astype(jnp.int32) & 255, 0)

    return jax.lax.fori_loop(0, CODER_STEPS, body, byte_n)


@jax.jit
def _decode_steps(shares_bn, span_kn, low_kn, point_kn):
    def body(_, point_kn):
        byte_n, _, _ = window_coder.decode_step(shares_bn, span_kn, low_kn, point_kn, implementation="reference")
        return point_kn ^ byte_n.astype(jnp.uint32) & 255

    return jax.lax.fori_loop(0, CODER_STEPS, body, point_kn)


# ---- Measuring -----------------------------------------------------------------------------------


def _in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    amount: float,
    repeats: int,
    their_amount: float | None = None,
) -> tuple[list[float], list[float]]:
    """Speeds of two things, turn by turn, in the unit of `amount` a second; the other's amount may be smaller."""
    speeds = [], []
    for turn in range(repeats + 1):
        for side, work, done in zip(speeds, (ours, theirs), (amount, their_amount or amount), strict=True):
            start_seconds = time.perf_counter()
            jax.block_until_ready(work())
            if turn:
                side.append(done / (time.perf_counter() - start_seconds))
    return speeds


def _side_by_side(what: str, other: str, unit: str, turns: tuple[list[float], list[float]]) -> Figures:
    return {
        f"{what}, {unit}": _spread(turns[0]),
        f"{what}, {other}, {unit}": _spread(turns[1]),
        f"{what}, times {other}": _spread([a / b for a, b in zip(*turns, strict=True)]),
    }


def _spread(values: list[float]) -> list[float]:
    return [min(values), statistics.median(values), max(values)]


def _print(title: str, figures: Figures) -> None:
    table = Table("figure", "min / median / max", title=title, title_justify="left")
    for name, values in figures.items():
        table.add_row(name, " / ".join(f"{value:.3g}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    leave_out_absent_tpus()
    main()
