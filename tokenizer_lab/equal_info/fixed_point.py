"""The byte language model's integers: their fractional bits and largest magnitudes, and exact arithmetic with them.

A matrix product is done in float32 on integers so small that every partial sum is below 2^24, up to where float32 holds
every integer.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

EXACT = 1 << 24  # every integer below this is a float32
# Fractional bits and largest magnitudes of the integers between the matrix products.
RESIDUAL_BITS = 14
NORMED_BITS, NORMED_MAX = 7, 1023
HEAD_BITS, SCALE_BITS, ROTATION_BITS = 6, 8, 10
VALUE_MAX, UP_MAX, HIDDEN_MAX = 511, 2047, 255
ATTENTION_BITS = 15
GATE_BITS, GATE_MAX, SILU_BITS = 8, 4096, 10
LOGIT_BITS = 8


def product(equation: str, integers: jax.Array, matrix: jax.Array) -> jax.Array:
    """The exact product of integers, in i32."""
    out = jnp.einsum(equation, integers.astype(jnp.float32), matrix, precision=jax.lax.Precision.HIGHEST)
    return out.astype(jnp.int32)


def shift(x: jax.Array, bits: jax.Array | int) -> jax.Array:
    """x / 2^bits, rounded half up; `bits` may be negative."""
    down = jnp.maximum(bits, 0)
    return ((x << jnp.maximum(-bits, 0)) + ((1 << down) >> 1)) >> down


def cut(x: jax.Array, largest: int) -> jax.Array:
    return jnp.clip(x, -largest, largest)


def bit_length(x: jax.Array) -> jax.Array:
    return 32 - jax.lax.clz(x)


def rms_norm(x: jax.Array) -> jax.Array:
    """x over the root of its mean square, along the last axis: `NORMED_BITS` fractional bits, of any i32 scale."""
    size = x.shape[-1]
    bits = (30 - math.ceil(math.log2(size))) // 2  # so that the sum of squares fits
    x = shift(x, bit_length(jnp.abs(x).max(axis=-1, keepdims=True)) - bits)
    square_sum = jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1)
    even = 2 * ((bit_length(square_sum) - 11) // 2)
    mantissa = jnp.where(even >= 0, square_sum >> jnp.maximum(even, 0), square_sum << jnp.maximum(-even, 0))
    table, table_bits = _inverse_roots(size, 30 - bits)
    return cut(shift(x * jnp.asarray(table)[mantissa - 1024], table_bits + even // 2), NORMED_MAX)


@functools.cache
def _inverse_roots(size: int, max_bits: int) -> tuple[np.ndarray, int]:
    """sqrt(size / m) * 2^(NORMED_BITS + bits) for m from 2^10 to 2^12 - 1, each below 2^max_bits; and bits."""
    bits = max_bits - NORMED_BITS - math.ceil(math.log2(size) / 2) + 5 - 1
    roots = [math.isqrt((size << 2 * (NORMED_BITS + bits)) // m) for m in range(1 << 10, 1 << 12)]
    assert bits > 5 and max(roots) < 1 << max_bits
    return np.array(roots, np.int32), bits


def head_max(head_dim: int) -> int:
    """The largest magnitude in queries and keys with which their scores are exact."""
    return math.isqrt((EXACT - 1) // head_dim)


def sqrt_bits(head_dim: int) -> int:
    """The power of two, at least sqrt(head_dim), by which scores are divided; queries carry the rest."""
    return math.ceil(math.log2(head_dim) / 2)
