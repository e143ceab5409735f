"""Quantizes a trained decoder: its float parameters as the integers of `tokenizer_lab.equal_info.byte_lm`.

The scales follow from the weights; no text is needed to find them.
"""

import math
from collections.abc import Mapping

import numpy as np

from tokenizer_lab.equal_info.byte_lm import START, ByteLM
from tokenizer_lab.equal_info.fixed_point import (
    EXACT,
    GATE_BITS,
    GATE_MAX,
    HIDDEN_MAX,
    NORMED_BITS,
    NORMED_MAX,
    RESIDUAL_BITS,
    ROTATION_BITS,
    SCALE_BITS,
    SILU_BITS,
    UP_MAX,
    VALUE_MAX,
    sqrt_bits,
)
from tokenizer_lab.errors import UserError

_SIGMAS = 8  # outputs further out, in standard deviations for inputs of mean square 1, are cut off


def quantize(params: Mapping[str, np.ndarray], *, rope_theta: float, context_bytes: int) -> ByteLM:
    """The integer model of a trained decoder.

    Args:
      params: float arrays: embedding [V, D], unembedding [V, D], final_scale [D], and for the L layers attention_scale
        and mlp_scale [L, D], query [L, D, H, h], key and value [L, D, K, h], query_scale and key_scale [L, h],
        out [L, H, h, D], gate and up [L, D, F], down [L, F, D]. Of the V rows, the first 257 are bytes and START.
      rope_theta: of the rotary positions.
      context_bytes: the longest context it is to be used with; best the length that it was trained on.

    Raises:
      UserError: a parameter is missing or not finite.
    """
    if missing := [name for name in _PARAMETERS if name not in params]:
        raise UserError(f"the byte language model has no {missing[0]}; train one with --model.qk-norm")
    params = {name: np.asarray(params[name], np.float64) for name in _PARAMETERS}
    for name, array in params.items():
        if not np.isfinite(array).all():
            raise UserError(f"the byte language model is not finite in {name}; train it with a lower learning rate")
    head_dim = params["query"].shape[-1]
    to_attention, to_mlp = params["attention_scale"][:, :, None, None], params["mlp_scale"][:, :, None]
    arrays = {"embedding": np.round(params["embedding"][: START + 1] * 2.0**RESIDUAL_BITS).astype(np.int32)}
    arrays |= _rotations(head_dim, rope_theta, context_bytes) | {"silu": _silu_table()}
    arrays["query_scale"], arrays["key_scale"] = (
        np.round(scale * 2.0**SCALE_BITS).astype(np.int32)
        for scale in (params["query_scale"] * 2 ** sqrt_bits(head_dim) / math.sqrt(head_dim), params["key_scale"])
    )
    for name in ("query", "key"):  # the norm behind them takes any scale, but one for a head
        arrays[name], _ = to_fixed_point(params[name] * to_attention, 1, NORMED_MAX, shared=(1, 3))
    value = params["value"] * to_attention
    arrays["value"], exponent = to_fixed_point(value * 2.0**-NORMED_BITS, 1, NORMED_MAX)
    value_bits = _bits_within(np.sqrt(np.square(value).sum(axis=1)), VALUE_MAX)
    arrays["value_exponent"] = exponent - value_bits
    heads, kv_heads = params["query"].shape[2], value.shape[2]
    out = params["out"] * 2.0 ** -np.repeat(value_bits, heads // kv_heads, axis=1)[..., None]
    arrays["out"], arrays["out_exponent"] = to_fixed_point(out, (1, 2), VALUE_MAX)
    arrays["gate"], arrays["gate_exponent"] = to_fixed_point(params["gate"] * to_mlp * 2.0**-NORMED_BITS, 1, NORMED_MAX)
    up = params["up"] * to_mlp
    arrays["up"], exponent = to_fixed_point(up * 2.0**-NORMED_BITS, 1, NORMED_MAX)
    up_bits = _bits_within(np.sqrt(np.square(up).sum(axis=1)).max(axis=1, keepdims=True), UP_MAX)
    arrays["up_exponent"] = exponent - up_bits
    down = params["down"] * 2.0 ** -(SILU_BITS + up_bits[..., None])
    arrays["down"], arrays["down_exponent"] = to_fixed_point(down, 1, HIDDEN_MAX)
    unembedding = (params["unembedding"][:256] * params["final_scale"]).T
    arrays["unembedding"], arrays["unembedding_exponent"] = to_fixed_point(
        unembedding * 2.0**-NORMED_BITS, 0, NORMED_MAX
    )
    return ByteLM(arrays)


_PARAMETERS = (
    "embedding", "unembedding", "final_scale", "attention_scale", "mlp_scale", "query", "key", "value", "query_scale",
    "key_scale", "out", "gate", "up", "down",
)  # fmt: skip


def to_fixed_point(
    matrix: np.ndarray, inputs: int | tuple[int, ...], input_max: int, shared: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as integers, column by column as fine as exact sums allow.

    Args:
      matrix: float[...].
      inputs: the axes that a product sums over.
      input_max: the largest magnitude of what it is multiplied with.
      shared: axes along which one exponent holds; the inputs' by default.

    Returns:
      i16[...] and the exponents i32[...], `inputs` taken away (with `shared`, those kept as 1):
      matrix = integers * 2^-exponent, and no sum over `inputs` reaches 2^24.
    """
    axes = shared or (inputs if isinstance(inputs, tuple) else (inputs,))
    length = np.abs(matrix).sum(axis=inputs, keepdims=True).max(axis=axes, keepdims=True)
    room = (EXACT - 1) / input_max - 0.5 * math.prod(np.array(matrix.shape)[np.atleast_1d(inputs)])
    largest = np.abs(matrix).max(axis=axes, keepdims=True)
    exponent = np.floor(np.log2(np.minimum(room / np.maximum(length, 1e-30), 32767 / np.maximum(largest, 1e-30))))
    exponent = np.minimum(exponent, 30)  # an empty column may have any
    integers = np.round(matrix * 2.0**exponent)
    assert room > 0 and (np.abs(integers).sum(axis=inputs) * input_max).max() < EXACT
    return integers.astype(np.int16), (exponent if shared else exponent.squeeze(inputs)).astype(np.int32)


def _bits_within(deviation: np.ndarray, largest: int) -> np.ndarray:
    """Fractional bits with which `_SIGMAS` standard deviations stay below `largest`."""
    return np.floor(np.log2(largest / (_SIGMAS * np.maximum(deviation, 1e-6)))).astype(np.int32)


def _rotations(head_dim: int, theta: float, length: int) -> dict[str, np.ndarray]:
    half = head_dim // 2
    angle_sk = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    one = 2.0**ROTATION_BITS
    return {name: np.round(one * f(angle_sk)).astype(np.int32) for name, f in (("cos", np.cos), ("sin", np.sin))}


def _silu_table() -> np.ndarray:
    gate = np.arange(-GATE_MAX, GATE_MAX) / 2**GATE_BITS
    return np.round(2.0**SILU_BITS * gate / (1 + np.exp(-gate))).astype(np.int32)
