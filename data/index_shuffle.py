"""Grain's permutation of indices (`grain.MapDataset.shuffle`), of many indices in one call.

The permutation is four rounds of the block cipher Simon (https://eprint.iacr.org/2013/404) over the smallest block of
an even number of bits, at least 16, that holds the largest index; what falls outside is encrypted again. Its keys come
from C++'s `std::seed_seq`. Grain makes them anew for every index, which takes 5 microseconds, and milliseconds where
there are a handful of indices, as it then walks through much of 2^16.
"""

import functools

import numpy as np

from tokenizer_lab.compiled import compiled

_MIN_BLOCK_BITS = 16
_ROUNDS = 4
_BITS_32 = 0xFFFFFFFF
_MAX_TABLE = 1 << 12  # of so few items, all of them take no longer than a handful: 2^16 steps


def index_shuffle(indices_n: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where a shuffle of `size` items has its items.

    Args:
      indices_n: i64[n], places in the shuffled order, each below `size`.
      size: of the permutation.
      seed: u32.

    Returns:
      i64[n], which item is there.
    """
    if size <= _MAX_TABLE:
        return _table(size, seed)[indices_n]
    return _encrypted(indices_n, size, seed)


@functools.lru_cache(maxsize=256)
def _table(size: int, seed: int) -> np.ndarray:
    return _encrypted(np.arange(size), size, seed) if size > 1 else np.zeros(1, np.int64)


def _encrypted(indices_n: np.ndarray, size: int, seed: int) -> np.ndarray:
    bits = (size - 2).bit_length()  # ceil(log2(the largest index)), as grain has it
    bits = max(bits + bits % 2, _MIN_BLOCK_BITS)
    return _permuted(indices_n.astype(np.uint64), np.uint64(size), np.uint64(bits // 2), _round_keys(seed))


@functools.lru_cache(maxsize=1024)
def _round_keys(seed: int) -> np.ndarray:
    """u64[4]: `std::seed_seq{seed}.generate` of four words, by the C++ standard ([rand.util.seedseq])."""
    n, words = _ROUNDS, [0x8B8B8B8B] * _ROUNDS
    t = (n - 1) // 2
    p = (n - t) // 2
    q = p + t
    scramble = lambda x: (x ^ x >> 27) & _BITS_32
    at = lambda k: k % n
    for k in range(n):  # max(length of the seeds + 1, n) is n
        mixed = 1664525 * scramble(words[at(k)] ^ words[at(k + p)] ^ words[at(k - 1)]) & _BITS_32
        added = (mixed + (1 if k == 0 else k % n + seed if k == 1 else k % n)) & _BITS_32
        words[at(k + p)] = (words[at(k + p)] + mixed) & _BITS_32
        words[at(k + q)] = (words[at(k + q)] + added) & _BITS_32
        words[at(k)] = added
    for k in range(n, 2 * n):
        mixed = 1566083941 * scramble(words[at(k)] + words[at(k + p)] + words[at(k - 1)] & _BITS_32) & _BITS_32
        taken = (mixed - k % n) & _BITS_32
        words[at(k + p)] ^= mixed
        words[at(k + q)] ^= taken
        words[at(k)] = taken
    return np.array(words, np.uint64)


@compiled
def _permuted(values_n, size, half_bits, keys_r):
    one, two, eight = np.uint64(1), np.uint64(2), np.uint64(8)
    mask = (one << half_bits) - one
    out_n = np.empty(len(values_n), np.int64)
    for n in range(len(values_n)):
        value = values_n[n]
        while True:
            left, right = (value >> half_bits) & mask, value & mask
            for k in range(0, len(keys_r), 2):
                for key in (keys_r[k], keys_r[k + 1]):
                    turned = ((right << eight) | (right >> (half_bits - eight))) & mask
                    turned &= (right << one) | (right >> (half_bits - one))
                    turned ^= (right << two) | (right >> (half_bits - two))
                    left, right = right, (left ^ turned ^ key) & mask
            value = (left << half_bits) | right
            if value < size:
                break
        out_n[n] = np.int64(value)
    return out_n
