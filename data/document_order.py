"""The order in which documents are read: a seed for each source's shuffle, and which source a row draws from next.

All of it are pure functions of seeds and numbers, so that nothing about the order needs to be saved.
"""

import bisect
import hashlib
import itertools
from collections.abc import Sequence


def draw_source(seed: int, row: int, draw: int, weights: Sequence[float]) -> int:
    """The source that a row's `draw`-th document comes from: a pure function, so that a cursor need not remember it."""
    if len(weights) == 1:
        return 0
    uniform = (draw_hash(seed, row, draw) >> 11) / 2**53  # 53 bits, as 64 would round up to 1
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect_right(cumulative, uniform * cumulative[-1])


def draw_hash(seed: int, row: int, draw: int, *what: str) -> int:
    """64 bits that stand for chance."""
    digest = hashlib.blake2b("/".join(map(str, (seed, row, draw, *what))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def shuffle_seed(seed: int, source_number: int) -> int:
    digest = hashlib.blake2b(f"shuffle/{seed}/{source_number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
