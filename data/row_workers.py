"""Who fills rows: this thread when it is asked, a thread ahead of it, or a process ahead of it.

Threads add up as far as what they do holds no interpreter lock: reading ArrayRecord and Python's own part of a document
do. Processes add up whatever they do; each takes the time of a start of Python and the memory of the libraries.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import multiprocessing.shared_memory
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from data.row_setting import Batch, RowSetting
from tokenizer_lab.errors import UserError

_MAX_BATCHES_AHEAD = 8  # so that none need wait for another that reads
_MAX_AHEAD_BYTES = 64 << 20  # of those batches


class Worker(Protocol):
    """Fills some rows of one batch after the other."""

    def __init__(self, setting: RowSetting): ...

    def begin(self, out: Batch) -> Callable[[], Any]:
        """Has the rows' next sequences written into `out`, and returns what waits until they are."""

    def move_to(self, setting: RowSetting) -> None:
        """Goes on from other cursors of its rows with what is begun next."""

    def close(self) -> None:
        """Ends it."""


class CallersWorker:
    """Fills rows when it is waited for."""

    def __init__(self, setting: RowSetting):
        self.move_to(setting)

    def move_to(self, setting: RowSetting) -> None:
        self.rows = setting.layout(setting)

    def begin(self, out: Batch) -> Callable[[], Any]:
        return functools.partial(self.rows.fill, out)

    def close(self) -> None: ...


class ThreadWorker(CallersWorker):
    """Fills rows in a thread of its own, in the order in which they are begun."""

    def __init__(self, setting: RowSetting):
        super().__init__(setting)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rows")

    def begin(self, out: Batch) -> Callable[[], Any]:
        return self._thread.submit(self.rows.fill, out).result

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class ProcessWorker:
    """Fills rows in a process of its own, as many batches ahead as there are places in memory that both see."""

    def __init__(self, setting: RowSetting):
        self._process: multiprocessing.process.BaseProcess | None = None
        num_bytes = 4 * setting.num_words * batches_ahead(setting)
        self._memory = multiprocessing.shared_memory.SharedMemory(create=True, size=num_bytes)
        self._places = _places(setting, self._memory)
        self.move_to(setting)

    def move_to(self, setting: RowSetting) -> None:
        self._end()
        self._note_hash, self._number = setting.note_hash, 0
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of this process hold
        self._connection, of_process = context.Pipe()
        arguments = of_process, self._memory.name, dataclasses.replace(setting, note_hash=_no_note)
        process = context.Process(target=_fill_ahead, args=arguments, daemon=True)
        process.start()
        of_process.close()
        self._process = process

    def begin(self, out: Batch) -> Callable[[], Any]:
        return functools.partial(self._take, out)

    def _take(self, out: Batch) -> None:
        assert self._process is not None
        multiprocessing.connection.wait([self._connection, self._process.sentinel])
        try:
            notes, error = self._connection.recv()
        except (EOFError, OSError):  # it may have sent something and died then
            raise _died(self._process) from None
        if error:
            raise error
        for name, array in self._places[self._number % len(self._places)].items():
            out[name][:] = array
        self._number += 1
        for note in notes:
            self._note_hash(*note)
        try:
            self._connection.send(None)  # the place is free again
        except OSError:
            pass  # it has died, which is told when there is nothing more of it

    def _end(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None

    def close(self) -> None:
        self._end()
        self._places = []  # which hold the memory
        self._memory.close()
        self._memory.unlink()


def batches_ahead(setting: RowSetting) -> int:
    """How many batches are made ahead."""
    return max(2, min(_MAX_BATCHES_AHEAD, _MAX_AHEAD_BYTES // (4 * setting.num_words)))


def _died(process: multiprocessing.process.BaseProcess) -> UserError:
    process.join()
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return UserError(
        f"a process that fills rows {how}, which is mostly for want of memory (SIGBUS: in /dev/shm); nothing is lost,"
        " the same command goes on from the last checkpoint; give it more memory, or fewer --data.num-processes"
    )


def _no_note(row: int, num_documents: int, digest: bytes) -> None: ...


def _places(setting: RowSetting, memory: multiprocessing.shared_memory.SharedMemory) -> list[Batch]:
    """The arrays of some batches, in memory that several processes see."""
    words = np.ndarray((batches_ahead(setting), setting.num_words), np.int32, memory.buf)
    return [setting.as_batch(of_batch) for of_batch in words]


def _fill_ahead(connection: Connection, memory_name: str, setting: RowSetting) -> None:
    """What the process does, until the other end of the connection is gone."""
    for to_stop in (signal.SIGINT, signal.SIGTERM):  # which are for the process that started this one
        signal.signal(to_stop, signal.SIG_IGN)
    notes: list[tuple[int, int, bytes]] = []
    memory = multiprocessing.shared_memory.SharedMemory(memory_name)
    places = _places(setting, memory)
    rows = setting.layout(dataclasses.replace(setting, note_hash=lambda *note: notes.append(note)))
    try:
        for number in itertools.count():
            if number >= len(places):
                connection.recv()
            try:
                rows.fill(places[number % len(places)])
            except Exception as error:
                if not isinstance(error, UserError):
                    error.add_note(traceback.format_exc())  # which is not sent with it
                connection.send(([], error))
                return
            connection.send((notes, None))
            notes.clear()
    except (EOFError, OSError):
        os._exit(0)
