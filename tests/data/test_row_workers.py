"""Threads and processes that fill rows ahead: the same batches, and an end where one of them has none."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest

from data.rows import RowStreams, Source
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError

TEXTS = [b"document %d, " % number * (number % 7) for number in range(50)]


def open_rows(texts=TEXTS, noted=None, **options) -> RowStreams:
    note = lambda *note: None if noted is None else noted.append(note)
    return RowStreams(
        [Source(texts)], ByteRepresentation(), batch_rows=5, sequence_length=64, seed=3, note_hash=note, **options
    )


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_a_process_fills_the_same_rows_until_it_is_killed():
    noted, expected_notes = [], []
    straight = list(itertools.islice(open_rows(noted=expected_notes), 60))
    batches = iter(open_rows(noted=noted, num_processes=1))
    assert_same(list(itertools.islice(batches, 40)), straight[:40])
    np.testing.assert_array_equal(batches.get_state()["cursors"], straight[39]["cursors"])
    assert noted and noted == expected_notes[: len(noted)], "told when its batch is handed out, as without processes"
    [worker] = batches.workers
    os.kill(worker._process.pid, signal.SIGKILL)
    left = []
    with pytest.raises(UserError, match="was killed by SIGKILL.*nothing is lost.*--data.num-processes"):
        for batch in batches:
            left.append(batch)
            assert len(left) < 20
    assert_same(left, straight[40 : 40 + len(left)])
    np.testing.assert_array_equal(batches.get_state()["cursors"], straight[39 + len(left)]["cursors"])
    batches.close()
    batches.close()
    assert not os.path.exists(f"/dev/shm/{worker._memory.name}")


@pytest.mark.slow
def test_processes_go_on_from_any_state_and_tell_what_they_find():
    straight = list(itertools.islice(open_rows(), 12))
    batches = iter(open_rows(num_processes=2))
    assert_same(list(itertools.islice(batches, 8)), straight[:8])
    batches.set_state({"cursors": straight[2]["cursors"]})
    assert_same(list(itertools.islice(batches, 9)), straight[3:])
    process = batches.workers[0]._process
    del batches
    assert not process.is_alive()
    damaged = iter(open_rows(Damaged(TEXTS), num_processes=2))
    with pytest.raises(UserError, match="document 7 is damaged"):
        for _ in range(100):
            next(damaged)
    damaged.close()


class Damaged(list):
    def __getitem__(self, index):
        if index == 7:
            raise UserError("document 7 is damaged")
        return super().__getitem__(index)


def test_a_damaged_document_stops_rows_where_they_come_to_it_however_far_ahead_others_are():
    def batches_before_the_error(**options) -> list:
        found, rows = [], iter(open_rows(Damaged(TEXTS), **options))
        with pytest.raises(UserError, match="document 7 is damaged"):
            for batch in rows:
                found.append(batch)
        with pytest.raises(UserError, match="document 7 is damaged"):
            next(rows)  # and nothing is passed over by asking again
        rows.close()
        return found

    straight = batches_before_the_error()
    good = list(itertools.islice(open_rows(), len(straight) + 1))
    assert straight
    assert_same(straight, good[:-1])
    order = open_rows().setting.orders[0]
    row = next(slot for slot in range(1000) if order.documents(np.array([slot]))[0] == 7) % 5
    assert good[-1]["cursors"][row, 0] > good[-2]["cursors"][row, 0], "the batch that would have it"
    assert_same(batches_before_the_error(num_workers=2), straight)


def test_one_worker_is_the_caller_and_several_are_threads_that_end():
    before = set(threading.enumerate())
    alone = iter(open_rows())
    next(alone)
    assert set(threading.enumerate()) == before
    several = iter(open_rows(num_workers=3))
    next(several)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    several.close()
    deadline = time.monotonic() + 60
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in threads)
