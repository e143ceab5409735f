"""The exact window code with the language model in the loop, for windows too wide for a table (32, 64, 128 bits).

Texts go through lanes, one after the other (`lane_queue.py`), and all lanes walk the tree together, a byte at a time:
the coder's step (`kernels/window_coder`), then one step of the byte language model with a cache of its own for each
lane. A window's end only sets its lane back to the root: what the cache holds beyond a lane's position is never looked
at. The top of the tree, the root's 256 children, is a table. Decoding walks the same way, a window a lane, and needs no
order between windows.

All of it is integer arithmetic, so a text has the same windows whatever the lanes, and on every machine.

Legend: N lanes, T bytes a lane, K = W / 16 limbs of 16 bits, the lowest first.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tokenizer_lab.equal_info import byte_lm
from tokenizer_lab.equal_info.byte_lm import START, ByteLM, LayerCache, positions_by_depth
from tokenizer_lab.equal_info.lane_queue import END_OF_TEXT, IDLE, LaneQueue, Windows
from tokenizer_lab.kernels.window_coder import decode_step, encode_step

WINDOW_BITS = (16, 32, 64, 128)  # 16 is for tests, against the table
MAX_LANES = 256
_STEPS_OF_ENCODE, _STEPS_OF_DECODE = 128, 8  # compiled together
_WINDOWS_OF_DECODE = 1 << 16  # at a time


class Lanes(NamedTuple):
    """Where each lane is in the tree.

    Attributes:
      depth: i32[N], bytes since the window began.
      span, low: u32[K, N], the node's number of points - 1, and its first point.
      shares: i32[N, 256], the next byte's probabilities.
      cache: the language model's.
    """

    depth: jax.Array
    span: jax.Array
    low: jax.Array
    shares: jax.Array
    cache: list[LayerCache]


class Root(NamedTuple):
    """The top of the tree: shares i32[256], and its children's span and low, u32[K, 256]."""

    shares: jax.Array
    child_span: jax.Array
    child_low: jax.Array


class WindowStream:
    """Encodes and decodes windows of one width with one language model."""

    def __init__(self, lm: ByteLM, window_bits: int):
        assert window_bits in WINDOW_BITS, window_bits
        self.lm, self.window_bits, self._num_limbs = lm, window_bits, window_bits // 16

    @functools.cached_property
    def _root(self) -> Root:
        shares = jnp.asarray(self.lm.shares(np.zeros((1, 0), np.uint8))[0])
        span, low = _root_node(self._num_limbs, 256)
        _, span, low = encode_step(jnp.broadcast_to(shares[:, None], (256, 256)), span, low, jnp.arange(256))
        return Root(shares, span, low)

    def _at_root(self, num_lanes: int) -> Lanes:
        start, zero = jnp.full(num_lanes, START), jnp.zeros(num_lanes, jnp.int32)
        shares, cache = _lm_step(self.lm.weights, start, zero, self.lm.empty_cache(num_lanes))
        return Lanes(zero, *_root_node(self._num_limbs, num_lanes), shares, cache)

    def encode(self, texts: Sequence[bytes]) -> list[Windows]:
        """Texts -> for each, its windows' numbers u8[n, W / 8] (big-endian) and lengths i64[n] in bytes."""
        if not texts:
            return []
        queue = LaneQueue(texts, num_lanes := _num_lanes(len(texts)))
        state = self._at_root(num_lanes)
        while (bytes_tn := queue.next_steps(_STEPS_OF_ENCODE)) is not None:
            state, output = _encode(self.lm.weights, self._root, state, bytes_tn)
            queue.take(*map(np.asarray, output))
        encoded = queue.windows()
        self._check(texts, encoded)
        return encoded

    def encoding_depths(self, texts: Sequence[bytes]) -> np.ndarray:
        """A step behind each byte of a window, and another where it is decoded to see that it comes back."""
        depths = positions_by_depth(np.concatenate([lengths for _, lengths in self.encode(texts)]))
        depths[0] = 0  # the top of the tree is a table
        return 2 * depths

    def _check(self, texts: Sequence[bytes], encoded: Sequence[Windows]) -> None:
        """Decodes what was encoded: a text that does not come back would be lost for good."""
        numbers, lengths, text = (
            np.concatenate([numbers for numbers, _ in encoded]),
            np.concatenate([lengths for _, lengths in encoded]),
            b"".join(texts),
        )
        at, is_same = 0, True
        for first, (decoded, decoded_lengths) in self._decoded_parts(numbers):
            is_same &= decoded == text[at : at + len(decoded)]
            is_same &= np.array_equal(decoded_lengths, lengths[first : first + len(decoded_lengths)])
            at += len(decoded)
        if not is_same or at != len(text):  # not an assert, which `python -O` leaves out
            raise AssertionError("the windows do not decode to their texts")

    def decode(self, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Windows' numbers u8[n, W / 8], any -> the bytes of all, and how many each has, i64[n]."""
        parts = [part for _, part in self._decoded_parts(numbers)]
        return b"".join(text for text, _ in parts), np.concatenate([np.zeros(0, int), *(each for _, each in parts)])

    def _decoded_parts(self, numbers: np.ndarray) -> Iterator[tuple[int, tuple[bytes, np.ndarray]]]:
        """Yields (first window, what `decode` says) for stretches of windows, as decoding takes 40 bytes a byte."""
        numbers = np.ascontiguousarray(numbers).reshape(len(numbers), self.window_bits // 8)
        for first in range(0, len(numbers), _WINDOWS_OF_DECODE):
            yield first, self._decode(numbers[first : first + _WINDOWS_OF_DECODE])

    def _decode(self, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        points = numbers.view(">u2")[:, ::-1].T.astype(np.uint32)
        num_lanes = _num_lanes(len(numbers))
        window = np.full(num_lanes, -1)  # of each lane
        next_window, state, found = 0, self._at_root(num_lanes), []
        while next_window < len(numbers) or (window >= 0).any():
            fresh = window < 0
            window[fresh] = np.arange(next_window, next_window + fresh.sum())
            next_window = min(next_window + int(fresh.sum()), len(numbers))
            window[window >= len(numbers)] = -1
            state, bytes_tn, ended_n = _decode(
                self.lm.weights, self._root, state, fresh, points[:, np.maximum(window, 0)]
            )
            bytes_tn = np.where(window >= 0, bytes_tn, IDLE)
            step, lane = np.nonzero(bytes_tn >= 0)
            found.append((window[lane], bytes_tn[step, lane]))
            window[np.asarray(ended_n)] = -1
        owner, byte = (np.concatenate(parts) for parts in zip((np.zeros(0, int),) * 2, *found, strict=True))
        order = np.argsort(owner, kind="stable")
        return byte[order].astype(np.uint8).tobytes(), np.bincount(owner, minlength=len(numbers))

    def node(self, text: bytes) -> tuple[int, int]:
        """The first number and the count of numbers of windows that begin with a text within one window."""
        lanes = self._at_root(1)
        for byte in text:
            lanes, (ended, numbers) = _encode(self.lm.weights, self._root, lanes, np.array([[byte]], np.int32))
        if ended[0, 1, 0]:  # at a leaf, and back at the root
            return _number(numbers[0, 1]), 1
        return _number(lanes.low), _number(lanes.span) + 1


def _number(limbs_k1: jax.Array) -> int:
    return sum(int(limb) << 16 * place for place, limb in enumerate(limbs_k1[:, 0]))


def _num_lanes(wanted: int) -> int:
    """A power of four up to `MAX_LANES`: each number of lanes is compiled anew."""
    return next(lanes for lanes in (1, 4, 16, 64, MAX_LANES) if lanes >= min(wanted, MAX_LANES))


def _root_node(num_limbs: int, num_lanes: int) -> tuple[jax.Array, jax.Array]:
    shape = (num_limbs, num_lanes)
    return jnp.full(shape, (1 << 16) - 1, jnp.uint32), jnp.zeros(shape, jnp.uint32)


# ---- On the device -------------------------------------------------------------------------------

_lm_step = jax.jit(byte_lm.step, donate_argnums=3)


@functools.partial(jax.jit, donate_argnums=2)
def _encode(weights: Any, root: Root, lanes: Lanes, bytes_tn: jax.Array) -> tuple[Lanes, tuple[jax.Array, jax.Array]]:
    """Lanes that have taken T more bytes, and which windows ended, bool[T, 2, N] and u16[T, 2, K, N]."""
    return jax.lax.scan(functools.partial(_encode_byte, weights, root), lanes, bytes_tn)


def _encode_byte(
    weights: Any, root: Root, lanes: Lanes, byte_n: jax.Array
) -> tuple[Lanes, tuple[jax.Array, jax.Array]]:
    """One byte a lane. A window may end before it, where it does not fit, and another behind it, at a leaf."""
    is_byte, at_end = (byte_n >= 0) & (byte_n < END_OF_TEXT), byte_n == END_OF_TEXT
    index_n = jnp.clip(byte_n, 0, 255)
    fits, span, low = encode_step(lanes.shares.T, lanes.span, lanes.low, index_n)
    ends_before = jnp.where(is_byte, ~fits, at_end & (lanes.depth > 0))
    before = lanes.low
    span, low = jnp.where(fits, span, root.child_span[:, index_n]), jnp.where(fits, low, root.child_low[:, index_n])
    ends_behind = is_byte & (span == 0).all(axis=0)
    depth = jnp.where(is_byte & ~ends_behind, jnp.where(fits, lanes.depth + 1, 1), 0)
    shares, cache = _follow(weights, depth, index_n, lanes.cache)
    root_span, root_low = _root_node(*span.shape)
    inside = depth > 0
    walked = Lanes(depth, jnp.where(inside, span, root_span), jnp.where(inside, low, root_low), shares, cache)
    numbers = jnp.stack([before, low]).astype(jnp.uint16)
    return walked, (jnp.stack([ends_before, ends_behind]), numbers)


def _follow(
    weights: Any, depth_n: jax.Array, byte_n: jax.Array, cache: list[LayerCache]
) -> tuple[jax.Array, list[LayerCache]]:
    """The language model behind `byte_n`, the last byte of a node of `depth_n`; it starts anew with every context."""
    position_n = depth_n % weights["cos"].shape[0]
    return byte_lm.step(weights, jnp.where(position_n == 0, START, byte_n), position_n, cache)


@functools.partial(jax.jit, donate_argnums=2)
def _decode(
    weights: Any, root: Root, lanes: Lanes, fresh_n: jax.Array, point_kn: jax.Array
) -> tuple[Lanes, jax.Array, jax.Array]:
    """Lanes that have gone some bytes on towards their points, the bytes i32[T, N] or -1, and which have ended bool[N].

    Lanes in `fresh_n` begin at the root.
    """
    root_span, root_low = _root_node(*lanes.span.shape)
    lanes = Lanes(
        jnp.where(fresh_n, 0, lanes.depth),
        jnp.where(fresh_n, root_span, lanes.span),
        jnp.where(fresh_n, root_low, lanes.low),
        jnp.where(fresh_n[:, None], root.shares, lanes.shares),
        lanes.cache,
    )

    def decode_byte(carry, _):
        lanes, ended = carry
        byte_n, span, low = decode_step(lanes.shares.T, lanes.span, lanes.low, point_kn)
        byte_n = jnp.where(ended, IDLE, byte_n)
        moved = byte_n >= 0
        depth = jnp.where(moved, lanes.depth + 1, lanes.depth)
        shares, cache = _follow(weights, depth, jnp.maximum(byte_n, 0), lanes.cache)
        ended |= ~moved | (span == 0).all(axis=0)
        span, low = jnp.where(moved, span, lanes.span), jnp.where(moved, low, lanes.low)
        return (Lanes(depth, span, low, shares, cache), ended), byte_n

    (lanes, ended_n), bytes_tn = jax.lax.scan(decode_byte, (lanes, fresh_n & False), length=_STEPS_OF_DECODE)
    return lanes, bytes_tn, ended_n
