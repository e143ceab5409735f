"""Lanes are fed from a queue: each text's windows are its own, and what is held does not depend on the longest text."""

import tracemalloc

import numpy as np
from hypothesis import example, given, settings, strategies as st

from tokenizer_lab.equal_info.lane_queue import END_OF_TEXT, IDLE, LaneQueue

LIMBS = 2


class Coder:
    """Lanes that end a window at each byte below 64, behind it, and before one above 191, if it has bytes; a window's
    number is the sum of its bytes."""

    def __init__(self, num_lanes):
        self.sum, self.length = np.zeros(num_lanes, np.int64), np.zeros(num_lanes, np.int64)

    def __call__(self, bytes_tn):
        shape = len(bytes_tn), 2, bytes_tn.shape[1]
        ended, numbers = np.zeros(shape, bool), np.zeros((shape[0], 2, LIMBS, shape[2]), np.uint16)
        for step, byte_n in enumerate(bytes_tn):
            is_byte = (byte_n >= 0) & (byte_n < END_OF_TEXT)
            before = (self.length > 0) & ((is_byte & (byte_n > 191)) | (byte_n == END_OF_TEXT))
            self._end(before, ended[step, 0], numbers[step, 0])
            self.sum += np.where(is_byte, byte_n, 0)
            self.length += is_byte
            self._end(is_byte & (byte_n < 64), ended[step, 1], numbers[step, 1])
        return ended, numbers

    def _end(self, which, ended_n, numbers_kn):
        ended_n[:] = which
        numbers_kn[:] = np.stack([self.sum & 0xFFFF, self.sum >> 16])
        self.sum[which] = self.length[which] = 0


def encode(texts, num_lanes, num_steps):
    queue, coder = LaneQueue(texts, num_lanes), Coder(num_lanes)
    while (bytes_tn := queue.next_steps(num_steps)) is not None:
        assert bytes_tn.shape == (num_steps, num_lanes) and bytes_tn.min() >= IDLE
        queue.take(*coder(bytes_tn))
    return queue.windows()


def windows_of(text):
    """What `Coder` says of a text that is alone."""
    found, start = [], 0
    for place, byte in enumerate(text):
        if byte > 191 and place > start:
            found.append(text[start:place])
            start = place
        if byte < 64:
            found.append(text[start : place + 1])
            start = place + 1
    return [*found, text[start:]] if start < len(text) else found


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=12), st.sampled_from([1, 2, 4]), st.integers(1, 9))
@example([b""], 4, 1)
@example([b"a" * 8, b"", b"b" * 7], 1, 8)
def test_each_text_has_its_windows_whatever_the_lanes_and_steps(texts, num_lanes, num_steps):
    for text, (numbers, lengths) in zip(texts, encode(texts, num_lanes, num_steps), strict=True):
        windows = windows_of(text)
        assert lengths.dtype == np.int64 and lengths.tolist() == [len(window) for window in windows]
        assert numbers.shape == (len(windows), 2 * LIMBS)
        assert [int.from_bytes(number.tobytes(), "big") for number in numbers] == [sum(window) for window in windows]


def test_memory_does_not_grow_with_the_longest_text():
    """One of 60 kB among 63 of a few bytes: as an array of all lanes and steps it would take 15 MB."""
    texts = [b"aaaaaaa\0"] * 63 + [b"aaaaaaa\0" * 7500]
    queue = LaneQueue(texts, 64)
    tracemalloc.start()
    while (bytes_tn := queue.next_steps(256)) is not None:
        ended_ten = np.stack([np.zeros_like(bytes_tn, bool), bytes_tn == 0], axis=1)
        queue.take(ended_ten, np.zeros((256, 2, LIMBS, 64), np.uint16))
    encoded = queue.windows()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert encoded[-1][1].tolist() == [8] * 7500
    result_bytes = sum(numbers.nbytes + lengths.nbytes for numbers, lengths in encoded)
    assert peak_bytes < 3 * result_bytes + (1 << 20), peak_bytes
