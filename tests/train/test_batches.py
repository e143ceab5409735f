"""Batches are read ahead by threads, which end with whoever reads them."""

import threading
import types

import jax.numpy as jnp
import pytest

from data.rows import cursor_width
from train.batches import open_batches
from train.hosts.memory import MemoryGrowth
from train.setup import set_up


def test_threads_that_read_ahead_end_whatever_is_raised_and_whoever_still_holds_the_batches(make_recipe):
    setup, before = set_up(make_recipe()), set(threading.enumerate())
    at_the_beginning = types.SimpleNamespace(cursors=jnp.zeros((8, cursor_width(1)), jnp.int32))
    with pytest.raises(KeyboardInterrupt), open_batches(setup, at_the_beginning, lambda *_: None) as next_batch:
        next_batch()
        assert len(set(threading.enumerate()) - before) >= 2, "one prefetches, others encode"
        raise KeyboardInterrupt
    assert set(threading.enumerate()) <= before and next_batch


def test_a_watch_of_the_memory_has_ended_when_it_is_told_to():
    memory, before = MemoryGrowth(), set(threading.enumerate())
    memory.watch_until(lambda: False)
    assert len(set(threading.enumerate()) - before) == 1
    memory.end()
    assert set(threading.enumerate()) <= before
