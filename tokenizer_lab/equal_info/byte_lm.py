"""A byte language model in integers only, so that its probabilities are the same on every machine.

An artifact whose ids depend on a language model must give the same ids at encode and at decode, at any batch size, with
any number of threads, compiled or not, on a CPU, a GPU or a TPU. Floating point promises none of that: a sum comes out
differently in another order. Here nothing is left for the hardware to round:

- Weights and activations are integers, with scales that are powers of two. Rescaling is a shift.
- A matrix product is done in float32, the matrix units' own type, on integers so small that every partial sum is below
  2^24, up to where float32 holds every integer. `quantization.to_fixed_point` sees to that from the weights alone,
  whatever the activations are.
- Square roots, exponentials and rotations are tables of integers.

What is quantized (`quantization.py`) is the decoder of `models/decoder.py`, with QK-norm, over bytes and an
end-of-document id. What it loses against the float model is in docs/equal_info.md.

Legend: N rows, T positions, S cached positions, D embed, H heads, K key/value heads, h head dimension, F mlp, L layers.
"""

import functools
import math
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from tokenizer_lab.equal_info.fixed_point import (
    ATTENTION_BITS,
    EXACT,
    GATE_BITS,
    GATE_MAX,
    HEAD_BITS,
    HIDDEN_MAX,
    LOGIT_BITS,
    NORMED_BITS,
    NORMED_MAX,
    RESIDUAL_BITS,
    ROTATION_BITS,
    SCALE_BITS,
    UP_MAX,
    VALUE_MAX,
    bit_length,
    cut,
    head_max,
    product,
    rms_norm,
    shift,
    sqrt_bits,
)
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import npy_array, npy_bytes

PROBABILITY_BITS = 16
START = 256  # the id that a context begins with: the end-of-document id of the byte representation
MAX_CONTEXT_BYTES = 1 << 12

# The exponentials e^-x as integers: x has this many fractional bits, and is at most 16.
_SCORE_STEP_BITS = 6
_SCORE_EXP = np.round(4095 * np.exp(-np.arange(16 << _SCORE_STEP_BITS) / (1 << _SCORE_STEP_BITS))).astype(np.int32)
_LOGIT_EXP = np.round(32767 * np.exp(-np.arange(16 << LOGIT_BITS) / (1 << LOGIT_BITS))).astype(np.int32)
MATRICES = ("query", "key", "value", "out", "gate", "up", "down", "unembedding")

LayerCache = tuple[jax.Array, jax.Array]  # keys and values: integers in f32[N, K, S, h], as they are multiplied


class ByteLM:
    """The quantized model."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """`arrays`: what `quantize` made, perhaps by way of a file. Raises UserError if they are something else."""
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        _check(self.arrays)

    @property
    def context_bytes(self) -> int:
        """A context is its start and at most this many bytes less one; behind that the model starts anew."""
        return self.arrays["cos"].shape[0]

    def limited(self, context_bytes: int) -> "ByteLM":
        """The model for contexts of at most this many bytes: a shorter cache."""
        return ByteLM(self.arrays | {name: self.arrays[name][:context_bytes] for name in ("cos", "sin")})

    def flops(self, depths: np.ndarray, num_predictions: int | None = None) -> float:
        """Of forward passes: products with matrices, and of attention with the positions that are seen.

        Args:
          depths: i[D], how many positions there are behind so many bytes of a text: 0, 1, ..., D - 1. Behind each
            `context_bytes` the model starts anew.
          num_predictions: next bytes that are predicted; by default one at each position.
        """
        layers, _, heads, head_dim = self.arrays["query"].shape
        num_positions, num_seen = int(depths.sum()), int(depths @ (np.arange(len(depths)) % self.context_bytes + 1))
        of_layers = 2.0 * sum(self.arrays[name].size for name in MATRICES if name != "unembedding")
        of_prediction = 2.0 * self.arrays["unembedding"].size
        predicted = num_positions if num_predictions is None else num_predictions
        return num_positions * of_layers + predicted * of_prediction + num_seen * 4.0 * layers * heads * head_dim

    @functools.cached_property
    def weights(self) -> dict[str, jax.Array]:
        """`arrays` on the device, the matrices in the float32 that they are multiplied in."""
        return {
            name: jnp.asarray(array, jnp.float32 if name in MATRICES else jnp.int32)
            for name, array in self.arrays.items()
        }

    def shares(self, contexts: np.ndarray) -> np.ndarray:
        """The next byte's integer probabilities behind whole contexts of one length.

        Args:
          contexts: u8[N, n], the bytes since the window began.

        Returns:
          i32[N, 256], each at least 1; a row sums to 2^16.
        """
        length = contexts.shape[1] % self.context_bytes
        ids_nt = np.zeros((_padded(len(contexts), 4), min(self.context_bytes, _padded(length + 1, 1))), np.int32)
        ids_nt[:, 0] = START
        ids_nt[: len(contexts), 1 : length + 1] = contexts[:, contexts.shape[1] - length :]
        return np.asarray(_shares_at(self.weights, ids_nt, length))[: len(contexts)]

    def shares_along(self, texts: np.ndarray) -> np.ndarray:
        """The probability, of 2^16, of every byte of some texts that begin a context: u8[N, n] -> i32[N, n]."""
        rows, length = texts.shape
        context = min(self.context_bytes, _padded(length, 1))
        ids_nt = np.zeros((_padded(rows, 2), context * -(-length // context)), np.int32)
        ids_nt[:rows, 1:length] = texts[:, :-1]
        ids_nt[:, ::context] = START
        shares = _all_shares(self.weights, ids_nt.reshape(-1, context))
        shares = np.asarray(shares).reshape(*ids_nt.shape, 256)[:rows, :length]
        return np.take_along_axis(shares, texts[:, :, None].astype(np.int32), axis=2)[:, :, 0]

    def shares_behind_each(self, text: np.ndarray) -> np.ndarray:
        """The next byte's probabilities before each byte of a text and at its end: u8[n] -> i32[n + 1, 256]."""
        context = self.context_bytes
        ids_nt = np.zeros((_padded(-(-(len(text) + 1) // context), 2), context), np.int32)
        ids_nt.reshape(-1)[1 : len(text) + 1] = text
        ids_nt[:, 0] = START
        return np.asarray(_all_shares(self.weights, ids_nt)).reshape(-1, 256)[: len(text) + 1]

    def empty_cache(self, rows: int) -> list[LayerCache]:
        """Room for `rows` contexts."""
        layers, _, kv_heads, head_dim = self.arrays["key"].shape
        shape = (rows, kv_heads, self.context_bytes, head_dim)
        return [(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)) for _ in range(layers)]

    def to_files(self) -> dict[str, bytes]:
        """Artifact file name -> content."""
        return {f"lm_{name}.npy": npy_bytes(array) for name, array in self.arrays.items()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        """The inverse of `to_files`; other files are not looked at. Raises UserError."""
        names = {name: name.removeprefix("lm_").removesuffix(".npy") for name in files if name.startswith("lm_")}
        return cls({array_name: npy_array(files[name], name) for name, array_name in names.items()})


def positions_by_depth(lengths: npt.ArrayLike) -> np.ndarray:
    """i[N] bytes of some contexts -> i64[D], how many of them have a position behind 0, 1, ..., D - 1 bytes: each has
    its start, and one behind each byte."""
    return np.cumsum(np.bincount(lengths)[::-1])[::-1]


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless the arrays fit together and every product with them is exact."""
    layers, d, heads, h = _shape(arrays, "query", 4)
    kv_heads, f, length = _shape(arrays, "key", 4)[2], _shape(arrays, "gate", 3)[2], _shape(arrays, "cos", 2)[0]
    shapes = {
        "embedding": (START + 1, d), "query": (layers, d, heads, h), "key": (layers, d, kv_heads, h),
        "value": (layers, d, kv_heads, h), "value_exponent": (layers, kv_heads, h), "query_scale": (layers, h),
        "key_scale": (layers, h), "out": (layers, heads, h, d), "out_exponent": (layers, d), "gate": (layers, d, f),
        "gate_exponent": (layers, f), "up": (layers, d, f), "up_exponent": (layers, f), "down": (layers, f, d),
        "down_exponent": (layers, d), "unembedding": (d, 256), "unembedding_exponent": (256,), "cos": (length, h // 2),
        "sin": (length, h // 2), "silu": (2 * GATE_MAX,),
    }  # fmt: skip
    found = {name: array.shape for name, array in arrays.items()}
    integers = all(array.dtype == (np.int16 if name in MATRICES else np.int32) for name, array in arrays.items())
    if found != shapes or not integers or heads % kv_heads or not 1 <= length <= MAX_CONTEXT_BYTES:
        raise UserError("the arrays of the byte language model do not fit together; fit the representation again")
    sums = [np.abs(arrays[name].astype(np.int64)).sum(axis) * largest for name, axis, largest in (
        ("query", 1, NORMED_MAX), ("key", 1, NORMED_MAX), ("value", 1, NORMED_MAX), ("out", (1, 2), VALUE_MAX),
        ("gate", 1, NORMED_MAX), ("up", 1, NORMED_MAX), ("down", 1, HIDDEN_MAX), ("unembedding", 0, NORMED_MAX),
    )]  # fmt: skip
    if any(total.max() >= EXACT for total in sums):
        raise UserError("the matrices of the byte language model are too large for exact sums; fit it again")


def _shape(arrays: Mapping[str, np.ndarray], name: str, num_axes: int) -> tuple[int, ...]:
    if name not in arrays or arrays[name].ndim != num_axes:
        raise UserError(f"the byte language model has no {name} of {num_axes} axes; fit the representation again")
    return arrays[name].shape


# ---- Running it ----------------------------------------------------------------------------------


def _padded(size: int, bits: int) -> int:
    """The next power of 2^bits: every size is compiled anew, which takes as long as some thousands of positions."""
    return 1 << bits * math.ceil(math.log2(size) / bits)


@jax.jit
def _shares_at(weights: dict[str, jax.Array], ids_nt: jax.Array, position: jax.Array) -> jax.Array:
    hidden_ntd, _ = _run(weights, ids_nt, None, None)
    return _next_shares(weights, hidden_ntd[:, position])


def all_shares(weights: dict[str, jax.Array], ids_nt: jax.Array) -> jax.Array:
    """i32[N, T] contexts that begin with START -> i32[N, T, 256], the next byte's probabilities behind each
    position."""
    return _next_shares(weights, _run(weights, ids_nt, None, None)[0])


_all_shares = jax.jit(all_shares)


def step(
    weights: dict[str, jax.Array], ids_n: jax.Array, position_n: jax.Array, cache: list[LayerCache]
) -> tuple[jax.Array, list[LayerCache]]:
    """One more byte for every row.

    Args:
      weights: `ByteLM.weights`.
      ids_n: i32[N], START where a context begins.
      position_n: i32[N], each row's own position in its context; START is at 0.
      cache: of the positions before it; what it holds from there on is not looked at.

    Returns:
      i32[N, 256], the next byte's probabilities, as from `ByteLM.shares`; and the cache with this position in it.
    """
    hidden_ntd, cache = _run(weights, ids_n[:, None], position_n, cache)
    return _next_shares(weights, hidden_ntd[:, 0]), cache


def _run(weights, ids_nt, position_n, cache):
    """The residual stream behind the last layer, i32[N, T, D]; T is 1 with a cache."""
    x_ntd = weights["embedding"][ids_nt]
    positions_nt = jnp.arange(ids_nt.shape[1])[None] if cache is None else position_n[:, None]
    new_cache = []
    for number in range(weights["query"].shape[0]):
        layer = {name: array[number] for name, array in weights.items() if name not in _WHOLE_MODEL}
        x_ntd, layer_cache = _attend(layer, weights, x_ntd, positions_nt, cache and cache[number])
        x_ntd = _gated_mlp(layer, weights["silu"], x_ntd)
        new_cache.append(layer_cache)
    return x_ntd, new_cache


_WHOLE_MODEL = ("embedding", "unembedding", "unembedding_exponent", "cos", "sin", "silu")


def _attend(layer, weights, x_ntd, positions_nt, cache):
    normed_ntd = rms_norm(x_ntd)
    q_nthk = _normed_heads(normed_ntd, layer["query"], layer["query_scale"])
    k_ntgk = _normed_heads(normed_ntd, layer["key"], layer["key_scale"])
    q_nthk, k_ntgk = (_rotate(y, weights["cos"], weights["sin"], positions_nt) for y in (q_nthk, k_ntgk))
    v_ntgk = product("ntd,dgk->ntgk", normed_ntd, layer["value"])
    v_ntgk = cut(shift(v_ntgk, layer["value_exponent"]), VALUE_MAX)
    k_ngsk, v_ngsk = (y.astype(jnp.float32).swapaxes(1, 2) for y in (k_ntgk, v_ntgk))
    if cache is not None:
        row_n1, head_1g = jnp.arange(len(x_ntd))[:, None], jnp.arange(k_ngsk.shape[1])
        k_ngsk, v_ngsk = cache = tuple(
            old.at[row_n1, head_1g, positions_nt].set(new[:, :, 0])
            for old, new in zip(cache, (k_ngsk, v_ngsk), strict=True)
        )
    weight_nghts = _attention_weights(q_nthk, k_ngsk, positions_nt)
    out = product("nghts,ngsk->ntghk", weight_nghts, v_ngsk)
    out = shift(out, ATTENTION_BITS).reshape(q_nthk.shape)
    added = product("nthk,hkd->ntd", out, layer["out"])
    return x_ntd + shift(added, layer["out_exponent"] - RESIDUAL_BITS), cache


def _normed_heads(normed_ntd, matrix_dhk, scale_k):
    heads = rms_norm(product("ntd,dhk->nthk", normed_ntd, matrix_dhk))
    return shift(heads * scale_k, NORMED_BITS + SCALE_BITS - HEAD_BITS)


def _rotate(heads_nthk, cos_sk, sin_sk, positions_nt):
    """Rotary positions; see `models.rotary.rotary_embedding`."""
    cos, sin = cos_sk[positions_nt][:, :, None], sin_sk[positions_nt][:, :, None]
    largest = head_max(heads_nthk.shape[-1])
    first, second = jnp.split(cut(heads_nthk, largest), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return cut(shift(rotated, ROTATION_BITS), largest)


def _attention_weights(q_nthk, k_ngsk, positions_nt):
    """f32[N, K, H / K, T, S] integers; over S they sum to at most 2^15."""
    n, t, heads, head_dim = q_nthk.shape
    groups = k_ngsk.shape[1]
    q = q_nthk.reshape(n, t, groups, heads // groups, head_dim)
    score = product("ntghk,ngsk->nghts", q, k_ngsk)
    visible_nts = jnp.arange(k_ngsk.shape[2]) <= positions_nt[:, :, None]
    score = jnp.where(visible_nts[:, None, None], score, -(1 << 26))
    below_best = score.max(axis=-1, keepdims=True) - score
    # Queries carry what is left of 1 / sqrt(h) beside a power of two; see `_query_scale`.
    step = below_best >> (2 * HEAD_BITS + sqrt_bits(head_dim) - _SCORE_STEP_BITS)
    weight = jnp.where(step < len(_SCORE_EXP), jnp.asarray(_SCORE_EXP)[jnp.minimum(step, len(_SCORE_EXP) - 1)], 0)
    return ((weight << ATTENTION_BITS) // weight.sum(axis=-1, keepdims=True)).astype(jnp.float32)


def _gated_mlp(layer, silu, x_ntd):
    normed_ntd = rms_norm(x_ntd)
    gate_ntf = shift(product("ntd,df->ntf", normed_ntd, layer["gate"]), layer["gate_exponent"] - GATE_BITS)
    gate_ntf = silu[jnp.clip(gate_ntf, -GATE_MAX, GATE_MAX - 1) + GATE_MAX]
    up_ntf = cut(shift(product("ntd,df->ntf", normed_ntd, layer["up"]), layer["up_exponent"]), UP_MAX)
    hidden_ntf = gate_ntf * up_ntf
    spare_nt1 = jnp.maximum(bit_length(jnp.abs(hidden_ntf).max(axis=-1, keepdims=True)) - 8, 0)
    hidden_ntf = cut(shift(hidden_ntf, spare_nt1), HIDDEN_MAX)
    added = product("ntf,fd->ntd", hidden_ntf, layer["down"])
    return x_ntd + shift(added, layer["down_exponent"] - RESIDUAL_BITS - spare_nt1)


def _next_shares(weights, x):
    """i32[..., D] residual stream -> i32[..., 256] probabilities."""
    logits = product("...d,dv->...v", rms_norm(x), weights["unembedding"])
    logits = shift(logits, weights["unembedding_exponent"] - LOGIT_BITS)
    below_best = logits.max(axis=-1, keepdims=True) - logits
    likelihood = jnp.asarray(_LOGIT_EXP)[jnp.minimum(below_best, len(_LOGIT_EXP) - 1)]
    spread = (1 << PROBABILITY_BITS) - 256
    shares = 1 + likelihood * spread // likelihood.sum(axis=-1, keepdims=True)
    left_over = (1 << PROBABILITY_BITS) - shares.sum(axis=-1, keepdims=True)
    return shares + jnp.where(jnp.arange(256) == jnp.argmax(logits, axis=-1, keepdims=True), left_over, 0)
