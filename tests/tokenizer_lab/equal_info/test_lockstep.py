"""Walks along a language model in lockstep see what each would see alone."""

import numpy as np
import pytest

from tokenizer_lab.equal_info import lockstep


def walk(lm, text: bytes, ask_at_start: bool):
    """Goes along a text, windows of it beginning anew every 7 bytes; the depths at which it was told something else."""
    wrong = []
    for start in range(0, len(text), 7):
        window = text[start : start + 7] * 3  # longer than a context of 16
        for depth in range(0 if ask_at_start else 1, len(window)):
            shares = yield depth, window[depth - 1] if depth else 0
            alone = lm.shares(np.frombuffer(window[:depth], np.uint8)[None])[0]
            if not np.array_equal(shares, alone):
                wrong.append((start, depth))
    return wrong


@pytest.mark.parametrize("ask_at_start", [False, True])
def test_walks_are_told_what_they_would_be_told_alone(monkeypatch, make_byte_lm, ask_at_start):
    lm = make_byte_lm(context_bytes=16)
    monkeypatch.setattr(lockstep, "NUM_LANES", 4)
    texts = [b"walk", b"", b"along a text", b"x", b"in lanes", b"of which there are few"]
    assert lockstep.run(lm, (walk(lm, text, ask_at_start) for text in texts)) == [[]] * len(texts)


def test_results_are_in_the_order_of_the_walks(monkeypatch, make_byte_lm):
    monkeypatch.setattr(lockstep, "NUM_LANES", 2)

    def length(text):
        for depth in range(1, len(text)):
            yield depth, text[depth - 1]
        return len(text)

    texts = [b"abcdefgh", b"", b"abc", b"a", b"abcdef"]
    assert lockstep.run(make_byte_lm(), map(length, texts)) == [8, 0, 3, 1, 6]


def test_what_is_given_to_the_device_is_not_written_to_again(monkeypatch, make_byte_lm):
    """JAX may read a NumPy argument after the call has returned: a later write would be a race."""
    given, step = [], lockstep._step

    def remembering_step(weights, ids_n, position_n, cache):
        given.extend((array, array.copy()) for array in (ids_n, position_n))
        return step(weights, ids_n, position_n, cache)

    monkeypatch.setattr(lockstep, "_step", remembering_step)
    lm = make_byte_lm()
    assert lockstep.run(lm, [walk(lm, b"some text", ask_at_start=False)]) == [[]]
    assert given and all(np.array_equal(array, copy) for array, copy in given)
