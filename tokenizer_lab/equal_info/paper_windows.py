"""The published rule of equal-info windows (Lester+ 2024, arXiv 2404.03626), for fidelity to the paper.

Bytes are arithmetic-coded from the window's beginning, with probabilities of 14 bits, exactly (fractions, no rounding).
The code of a prefix is the shortest string of bits whose dyadic interval lies in the prefix's. A window takes as many
bytes as have a code of at most W bits; its number is that code and zeros up to W bits.

- `paper`: the decoder takes the longest prefix whose code, padded, is the window. That loses bytes: where the byte that
  did not fit is another than the one the decoder finds at the zeros' edge, two texts share a window.
- `delay`: a window gives back the bytes that its padded code does not need, to the next one, and the decoder takes the
  shortest prefix. That loses nothing, and windows hold less. The paper names a variant so without saying how it is
  made; this is our reading.
"""

from collections.abc import Generator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tokenizer_lab.equal_info import lockstep
from tokenizer_lab.equal_info.byte_lm import PROBABILITY_BITS, ByteLM

PAPER_BITS = 14


class Interval(NamedTuple):
    """[low, low + width) / 2^bits, of the bytes so far."""

    low: int
    width: int
    bits: int

    def narrowed(self, shares: np.ndarray, byte: int) -> "Interval":
        """The part of it that belongs to a next byte, given i64[256] shares that sum to 2^14."""
        before = int(shares[:byte].sum())
        return Interval(
            (self.low << PAPER_BITS) + self.width * before, self.width * int(shares[byte]), self.bits + PAPER_BITS
        )

    def code(self) -> tuple[int, int]:
        """The shortest bits whose dyadic interval lies inside, as (number, how many)."""
        size = max(0, self.bits - self.width.bit_length())
        while True:
            unit = self.bits - size
            number = -(-self.low >> unit) if unit >= 0 else self.low << -unit
            if unit < 0 or (number + 1) << unit <= self.low + self.width:
                return number, size
            size += 1


class PaperCode:
    """A window code by a published rule; see `tokenizer_lab.equal_info.representation.WindowCode`."""

    def __init__(self, lm: ByteLM, window_bits: int, rule: Literal["paper", "delay"]):
        self.lm, self.window_bits, self.rule = lm, window_bits, rule
        self._root = paper_shares(lm.shares(np.zeros((1, 0), np.uint8))[0])

    def encode(self, texts: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        return self._encode_noting(texts, [])

    def decode(self, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        return self._decode_noting(numbers, [])

    def encoding_depths(self, texts: Sequence[bytes]) -> np.ndarray:
        depths: list[int] = []
        self._encode_noting(texts, depths)
        return np.bincount(depths)

    def _encode_noting(self, texts: Sequence[bytes], depths: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`encode`; adds the depth of every context that the language model is asked about to a list."""
        walks = (lockstep.noting_depths(self._encode(text), depths) for text in texts)
        encoded = [
            (self._to_bytes([number for number, _ in windows]), np.array([length for _, length in windows], np.int64))
            for windows in lockstep.run(self.lm, walks)
        ]
        if self.rule == "delay" and texts:
            decoded, lengths = self._decode_noting(np.concatenate([numbers for numbers, _ in encoded]), depths)
            if decoded != b"".join(texts) or (lengths != np.concatenate([lengths for _, lengths in encoded])).any():
                raise RuntimeError("the windows do not decode to their texts")
        return encoded

    def _decode_noting(self, numbers: np.ndarray, depths: list[int]) -> tuple[bytes, np.ndarray]:
        """`decode`; adds the depth of every context that the language model is asked about to a list."""
        windows = [int.from_bytes(number.tobytes(), "big") for number in numbers]
        texts = lockstep.run(self.lm, (lockstep.noting_depths(self._decode(number), depths) for number in windows))
        return b"".join(texts), np.array([len(text) for text in texts], np.int64)

    def _encode(self, text: bytes) -> lockstep.Walk[list[tuple[int, int]]]:
        """A text -> its windows, (number, bytes in it)."""
        windows, start = [], 0
        while start < len(text):
            numbers = yield from self._fill(memoryview(text)[start:])
            length = numbers.index(numbers[-1]) + 1 if self.rule == "delay" else len(numbers)
            windows.append((numbers[-1], length))
            start += length
        return windows

    def _fill(self, text: memoryview) -> Generator[tuple[int, int], np.ndarray, list[int]]:
        """The padded codes of all prefixes of a text that fit into a window."""
        interval, shares, numbers = Interval(0, 1, 0), self._root, []
        for byte in text:
            interval = interval.narrowed(shares, byte)
            number, size = interval.code()
            if size > self.window_bits:
                break
            numbers.append(number << self.window_bits - size)
            if len(numbers) < len(text):
                shares = paper_shares((yield len(numbers), byte))
        return numbers

    def _decode(self, number: int) -> lockstep.Walk[bytes]:
        """A window's number -> its bytes; none where no prefix has that code."""
        interval, shares, text, found = Interval(0, 1, 0), self._root, b"", b""
        while True:
            byte = _byte_at(interval, shares, number, self.window_bits)
            interval = interval.narrowed(shares, byte)
            code, size = interval.code()
            if size > self.window_bits:
                return found
            text += bytes([byte])
            if code << self.window_bits - size == number:
                found = text
                if self.rule == "delay":
                    return found
            shares = paper_shares((yield len(text), byte))

    def _to_bytes(self, numbers: Sequence[int]) -> np.ndarray:
        size = self.window_bits // 8
        return np.frombuffer(b"".join(number.to_bytes(size, "big") for number in numbers), np.uint8).reshape(-1, size)


def paper_shares(shares: np.ndarray) -> np.ndarray:
    """i32[256] probabilities of 16 bits -> i64[256] of 14 bits, each at least 1, what rounding leaves to the
    likeliest."""
    spread, of = (1 << PAPER_BITS) - 256, (1 << PROBABILITY_BITS) - 256
    shares = 1 + (shares.astype(np.int64) - 1) * spread // of
    shares[shares.argmax()] += (1 << PAPER_BITS) - shares.sum()
    return shares


def _byte_at(interval: Interval, shares: np.ndarray, number: int, window_bits: int) -> int:
    """The byte whose part of the interval holds number / 2^window_bits."""
    bits = interval.bits + PAPER_BITS
    point = number << bits - window_bits if bits >= window_bits else number >> window_bits - bits
    # (point - low) / width is in units of 2^-14; a point between two fractions belongs to the one below it.
    unit = (point - (interval.low << PAPER_BITS)) // interval.width
    return int(np.searchsorted(np.cumsum(shares), unit, side="right"))
