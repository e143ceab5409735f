"""Work on many items in several processes of this machine.

They are spawned, as a process that runs JAX has threads and cannot be forked. A worker has at most one item and a few
of its results under way, so that memory stays bounded, and is ahead of the order by a few items. One that dies is
replaced, and its item is done again: results that came out already are left out, as they would be the same.
"""

import collections
import contextlib
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from multiprocessing.context import SpawnProcess
from typing import Any

from data.local_engine import Item, LocalEngine, Result, listed
from tokenizer_lab.errors import UserError

RESULTS_AHEAD = 16  # of an item that is not yet the next to come out: then its worker waits
ITEMS_AHEAD = 4  # per worker, begun or done, that are not yet the next to come out
_MAX_RESTARTS = 3  # of the worker of an item
_SPAWN = multiprocessing.get_context("spawn")


class ProcessEngine:
    """Does the work in processes; that of a single item, or of a single process, here."""

    def __init__(self, num_workers: int):
        self._num_workers = num_workers

    def stream(
        self,
        function: Callable[[Item], Iterable[Result]],
        items: Sequence[Item],
        devices: Mapping[str, float] | None = None,
    ) -> Generator[Result]:
        if devices:
            raise UserError(
                f"processes share the devices of this machine; {listed(devices)} for each needs --engine ray"
            )
        if min(self._num_workers, len(items)) < 2:
            yield from LocalEngine().stream(function, items)
            return
        pool = _Pool(function, min(self._num_workers, len(items)))
        try:
            yield from pool.stream(items)
        finally:
            pool.close()


class _Work:
    """An item and its results that wait to come out."""

    def __init__(self, item: Any):
        self.item = item
        self.results: collections.deque[Any] = collections.deque()
        self.num_received = self.num_restarts = 0
        self.is_done = False
        self.error: Exception | None = None


class _Worker:
    """A process, and the work it is at."""

    def __init__(self, function: Callable[[Any], Iterable[Any]]):
        self.connection, there = _SPAWN.Pipe()
        self.process: SpawnProcess = _SPAWN.Process(target=_work, args=(there, function, os.getcwd()), daemon=True)
        self.process.start()
        there.close()
        self.work: _Work | None = None
        self.num_to_skip = 0  # results that the worker that died before it has sent

    def begin(self, work: _Work) -> None:
        self.work, self.num_to_skip = work, work.num_received
        self.connection.send(work.item)

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


class _Pool:
    def __init__(self, function: Callable[[Any], Iterable[Any]], num_workers: int):
        self._function = function
        self._workers = [_Worker(function) for _ in range(num_workers)]

    def close(self) -> None:
        for worker in self._workers:
            worker.end()

    def stream(self, items: Sequence[Any]) -> Generator[Any]:
        in_order: collections.deque[_Work] = collections.deque()
        to_do = iter(items)
        num_left = len(items)
        while num_left or in_order:
            for worker in self._workers:
                if num_left and worker.work is None and len(in_order) < ITEMS_AHEAD * len(self._workers):
                    in_order.append(_Work(next(to_do)))
                    num_left -= 1
                    self._begin(worker, in_order[-1])
            head = in_order[0]
            while head.results:
                yield head.results.popleft()
            if head.is_done:
                in_order.popleft()
                if head.error is not None:
                    raise head.error
            else:
                self._receive(head)

    def _begin(self, worker: _Worker, work: _Work) -> None:
        try:
            worker.begin(work)
        except OSError:  # it has died; its end is seen when something is received
            worker.work = work

    def _receive(self, head: _Work) -> None:
        """Waits until a worker that may go on says something, or is dead."""
        heard = [
            worker
            for worker in self._workers
            if worker.work and (worker.work is head or len(worker.work.results) < RESULTS_AHEAD)
        ]
        ready = multiprocessing.connection.wait([worker.connection for worker in heard])
        for worker in heard:
            if worker.work and worker.connection in ready:
                try:
                    self._take(worker, worker.work, *worker.connection.recv())
                except (EOFError, OSError):
                    self._replace(worker, worker.work)

    def _take(self, worker: _Worker, work: _Work, kind: str, value: Any) -> None:
        if kind == "done":
            work.is_done, work.error, worker.work = True, value, None
        elif worker.num_to_skip:
            worker.num_to_skip -= 1
        else:
            work.results.append(value)
            work.num_received += 1

    def _replace(self, worker: _Worker, work: _Work) -> None:
        """Another process does what a dead one was at. Raises UserError where that has died too often."""
        worker.end()
        work.num_restarts += 1
        if work.num_restarts > _MAX_RESTARTS:
            raise UserError(
                f"a worker died {work.num_restarts} times at the same work ({_code_of(worker.process)}); is there"
                " enough memory for so many --workers? What is done is kept: start again with fewer"
            )
        fresh = _Worker(self._function)
        self._workers[self._workers.index(worker)] = fresh
        self._begin(fresh, work)


def _code_of(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _work(connection: Any, function: Callable[[Any], Iterable[Any]], folder: str) -> None:
    """What a process does: an item after the other, until nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    os.chdir(folder)
    with contextlib.suppress(EOFError, OSError):
        while True:
            for said in _results(function, connection.recv()):
                connection.send(said)


def _results(function: Callable[[Any], Iterable[Any]], item: Any) -> Generator[tuple[str, Any]]:
    """Yields ("result", ...) again and again, and last ("done", the error or None)."""
    results = iter(function(item))
    while True:
        try:
            result = next(results)
        except StopIteration:
            break
        except UserError as error:
            yield "done", error
            return
        except Exception:  # a fault of ours, whose traceback would not come along
            yield "done", RuntimeError(f"in a worker:\n{traceback.format_exc()}")
            return
        yield "result", result
    yield "done", None
