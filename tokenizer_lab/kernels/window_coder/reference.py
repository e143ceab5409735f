"""What a step of the exact window code means, in the jnp that XLA and Mosaic both compile (no sort, no cumsum, no i64).

A window of W bits is a grid of 2**W points, and a node of its tree is a run of them: `low` is the first and `span` the
number of points - 1, so that the root (span = 2**W - 1, which no other node has) fits W bits too. The node's first
point is STOP; the root has none, and gives every byte one point instead. The D points left (D = span; at the root
2**W - 256) are divided among the 256 bytes in proportion to the integer `shares` of the byte LM, by largest remainder
with ties to the lower byte, and lie in the order of the bytes.

Numbers of W bits are K = W / 16 limbs of 16 bits: u32[K, N], lowest limb first. Within a step a number is a list of K
i32[1, N], so that a limb can hold a borrow. With the dividend D, `shares` p and r = D * p mod 2**16, byte b has

    (D * p_b + correction_b) / 2**16 points, where correction_b = 2**16 * (left-over point? + at the root?) - r_b

The division leaves no remainder, so summing over bytes commutes with it: where byte b begins costs two masked sums and
one product of long numbers. Of D, only the lowest limb is needed for the remainders.

Axes: b = 256 bytes, k = limbs, n = streams. Source: design.md, "Equal-info: the exact window code".
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NUM_BYTES = 256
LIMB_BITS = 16  # of the shares as well: shifting by a limb divides by their sum
LIMB_MASK = (1 << LIMB_BITS) - 1
REMAINDER_KEY_BITS = LIMB_BITS + 8


def encode_step(
    shares_bn: jax.Array, span_kn: jax.Array, low_kn: jax.Array, byte_n: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From each stream's node to its child for a byte.

    Args:
      shares_bn: i32[256, N], each >= 1; every column sums to 2**16.
      span_kn: u32[K, N] limbs of the node's number of points - 1.
      low_kn: u32[K, N] limbs of the node's first grid point.
      byte_n: i32[N] in [0, 256).

    Returns:
      fits_n bool[N], False where the byte has no points; the child's span_kn and low_kn, or the node's where not fits.
    """
    fits_1n, span_kn, low_kn = encode_block(shares_bn, span_kn, low_kn, byte_n[None])
    return fits_1n[0] != 0, span_kn, low_kn


def decode_step(
    shares_bn: jax.Array, span_kn: jax.Array, low_kn: jax.Array, point_kn: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From each stream's node to the child that holds a grid point.

    Args:
      shares_bn, span_kn, low_kn: as for `encode_step`.
      point_kn: u32[K, N] limbs of a grid point in [low, low + span].

    Returns:
      byte_n i32[N], -1 where the point is the node's STOP; the child's span_kn and low_kn, or the node's at STOP.
    """
    byte_1n, span_kn, low_kn = decode_block(shares_bn, span_kn, low_kn, point_kn)
    return byte_1n[0], span_kn, low_kn


def encode_block(shares_bn, span_kn, low_kn, byte_1n):
    """`encode_step` with byte and fits i32[1, N]: the two-dimensional 32-bit arrays that a TPU kernel takes."""
    node = _divide(shares_bn, _limbs(span_kn))
    begin, (span, below_zero_1n) = _begin(node, byte_1n), _span(node, byte_1n)
    low, _ = _carry(_add(_limbs(low_kn), begin))
    fits_1n = below_zero_1n == 0
    return fits_1n.astype(jnp.int32), jnp.where(fits_1n, _join(span), span_kn), jnp.where(fits_1n, _join(low), low_kn)


def decode_block(shares_bn, span_kn, low_kn, point_kn):
    """`decode_step` with byte i32[1, N]."""
    node = _divide(shares_bn, _limbs(span_kn))
    offset, _ = _carry(_subtract(_limbs(point_kn), _limbs(low_kn)))

    def begins_behind_point(byte_1n):
        _, borrow_1n = _carry(_subtract(offset, _begin(node, byte_1n)))
        return borrow_1n < 0

    def refine(i, byte_1n):
        candidate_1n = byte_1n + (NUM_BYTES // 2 >> i)
        return jnp.where(begins_behind_point(candidate_1n), byte_1n, candidate_1n)

    # The last byte that begins at or before the point: bytes without points begin where the next one does.
    byte_1n = jax.lax.fori_loop(0, 8, refine, jnp.zeros((1, shares_bn.shape[1]), jnp.int32))
    stops_1n = begins_behind_point(byte_1n)  # even byte 0 does
    span, _ = _span(node, byte_1n)
    low, _ = _carry(_add(_limbs(low_kn), _begin(node, byte_1n)))
    return (
        jnp.where(stops_1n, -1, byte_1n),
        jnp.where(stops_1n, span_kn, _join(span)),
        jnp.where(stops_1n, low_kn, _join(low)),
    )


class _Node(NamedTuple):
    """How a node's points are divided."""

    dividend: list[jax.Array]  # D as K limbs
    shares_bn: jax.Array
    correction_bn: jax.Array  # i32[256, N], as in the module's docstring
    num_stops_1n: jax.Array  # i32[1, N], 0 at the root and 1 elsewhere


def _divide(shares_bn: jax.Array, span: list[jax.Array]) -> _Node:
    is_root_1n = (sum(span[1:], start=span[0]) == LIMB_MASK * len(span)).astype(jnp.int32)
    dividend = [span[0] - (NUM_BYTES - 1) * is_root_1n, *span[1:]]
    # The product wraps beyond 32 bits; the lowest 16 are right all the same.
    remainder_bn = dividend[0] * shares_bn & LIMB_MASK
    points_more_bn = _largest_remainders(remainder_bn) + is_root_1n
    return _Node(dividend, shares_bn, (points_more_bn << LIMB_BITS) - remainder_bn, 1 - is_root_1n)


def _largest_remainders(remainder_bn: jax.Array) -> jax.Array:
    """1 for the bytes that get one of the points that rounding down left over, 0 for the others: i32[256, N].

    Keys are unique, the larger remainder first and then the lower byte. With L points left over (fewer than 256), the
    (L + 1)-th largest key is the greatest number that more than L keys reach, which is found bit by bit.
    """
    key_bn = (remainder_bn << 8) + (NUM_BYTES - 1 - _iota(remainder_bn))
    left_over_1n = _sum(remainder_bn) >> LIMB_BITS

    def refine(i, threshold_1n):
        candidate_1n = threshold_1n + (1 << REMAINDER_KEY_BITS - 1 >> i)
        num_reach_1n = _sum((key_bn >= candidate_1n).astype(jnp.int32))
        return jnp.where(num_reach_1n > left_over_1n, candidate_1n, threshold_1n)

    threshold_1n = jax.lax.fori_loop(0, REMAINDER_KEY_BITS, refine, jnp.zeros_like(left_over_1n))
    return (key_bn > threshold_1n).astype(jnp.int32)


def _begin(node: _Node, byte_1n: jax.Array) -> list[jax.Array]:
    """The first point of a byte, counted from the node's first: K limbs."""
    is_before_bn = _iota(node.shares_bn) < byte_1n
    points, _ = _carry(_points(node, is_before_bn, extra_1n=node.num_stops_1n))
    return points[1:]


def _span(node: _Node, byte_1n: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """The number of points of a byte - 1, K limbs, and what they borrow: -1 where the byte has no points."""
    is_byte_bn = _iota(node.shares_bn) == byte_1n
    points, borrow_1n = _carry(_points(node, is_byte_bn, extra_1n=-1))
    return points[1:], borrow_1n


def _points(node: _Node, mask_bn: jax.Array, extra_1n: jax.Array | int) -> list[jax.Array]:
    """2**16 times the points of the bytes in `mask_bn` and `extra_1n` more: K + 1 limbs before carrying."""
    lowest, *others = _multiply(node.dividend, _sum(jnp.where(mask_bn, node.shares_bn, 0)))
    correction_1n = _sum(jnp.where(mask_bn, node.correction_bn, 0))  # |correction| < 2**26
    return [lowest + correction_1n + (extra_1n << LIMB_BITS), *others]


def _multiply(number: list[jax.Array], factor_1n: jax.Array) -> list[jax.Array]:
    """K limbs times i32[1, N] in [0, 2**16]: K + 1 limbs."""
    factor_1n, carry_1n, product = factor_1n.astype(jnp.uint32), jnp.uint32(0), []
    for limb_1n in number:
        total_1n = limb_1n.astype(jnp.uint32) * factor_1n + carry_1n  # at most (2**16 - 1) * 2**16 + 2**16 - 1 < 2**32
        product.append((total_1n & LIMB_MASK).astype(jnp.int32))
        carry_1n = total_1n >> LIMB_BITS
    return [*product, carry_1n.astype(jnp.int32)]


def _carry(number: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """Brings limbs of any sign into [0, 2**16), and says what the last one carries: negative if the number is."""
    limbs: list[jax.Array] = []
    carry_1n: Any = 0  # then i32[1, N]
    for limb_1n in number:
        total_1n = limb_1n + carry_1n
        limbs.append(total_1n & LIMB_MASK)
        carry_1n = total_1n >> LIMB_BITS  # i32: rounds down, a borrow is -1
    return limbs, carry_1n


def _add(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _subtract(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _limbs(number_kn: jax.Array) -> list[jax.Array]:
    return [number_kn[k : k + 1].astype(jnp.int32) for k in range(number_kn.shape[0])]


def _join(limbs: list[jax.Array]) -> jax.Array:
    return jnp.concatenate(limbs, axis=0).astype(jnp.uint32)


def _sum(x_bn: jax.Array) -> jax.Array:
    return jnp.sum(x_bn, axis=0, keepdims=True, dtype=jnp.int32)


def _iota(like_bn: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.int32, like_bn.shape, 0)
