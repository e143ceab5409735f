"""Many walks along a byte language model at once: each is a generator that asks for the next byte's probabilities.

A walk says what it has read and gets probabilities back, as if it were alone; the language model sees all walks as one
batch. For codes that need Python between two bytes; `window_stream.py` has no Python there and is faster.
"""

from collections.abc import Generator, Iterable
from typing import TypeVar

import jax
import numpy as np

from tokenizer_lab.equal_info import byte_lm
from tokenizer_lab.equal_info.byte_lm import START, ByteLM

NUM_LANES = 64

Result = TypeVar("Result")
Walk = Generator[tuple[int, int], np.ndarray, Result]
"""Yields (depth, last byte) of a context of `depth` bytes, the last of which is new, or which is empty; is sent the
next byte's probabilities, i32[256] summing to 2^16; returns what it is for."""

_step = jax.jit(byte_lm.step, donate_argnums=3)


def noting_depths(walk: Walk[Result], depths: list[int]) -> Walk[Result]:
    """The same walk; adds the depth of every context that it asks about to a list."""
    try:
        question = next(walk)
        while True:
            depths.append(question[0])
            question = walk.send((yield question))
    except StopIteration as end:
        return end.value


def run(lm: ByteLM, walks: Iterable[Walk[Result]]) -> list[Result]:
    """The results of all walks, in their order."""
    waiting = enumerate(walks)
    results: dict[int, Result] = {}
    lanes: list[tuple[int, Walk[Result]] | None] = [None] * NUM_LANES
    depth_n, byte_n = np.zeros(NUM_LANES, np.int32), np.zeros(NUM_LANES, np.int32)
    # The start of a context is in the cache from here on: a walk need not ask about the empty context.
    # Its arguments are arrays of its own, as JAX may still read a NumPy array when the call has returned.
    start_n = np.full(NUM_LANES, START, np.int32)
    shares_nb, cache = _step(lm.weights, start_n, np.zeros_like(start_n), lm.empty_cache(NUM_LANES))

    def advance(lane: int) -> None:
        """Sends a lane's walk its probabilities; where there is none, or it ends, the next one begins."""
        while here := lanes[lane] or next(waiting, None):
            is_new, lanes[lane] = not lanes[lane], here
            number, walk = here
            try:
                depth_n[lane], byte_n[lane] = next(walk) if is_new else walk.send(shares_nb[lane])
                return
            except StopIteration as end:
                results[number], lanes[lane] = end.value, None

    while True:
        for lane in range(NUM_LANES):
            advance(lane)
        if not any(lanes):
            return [results[number] for number in range(len(results))]
        position_n = depth_n % lm.context_bytes
        shares, cache = _step(lm.weights, np.where(position_n == 0, START, byte_n), position_n, cache)
        shares_nb = np.asarray(shares)
