"""Work on many items in the actors of a Ray cluster."""

import collections
import contextlib
import functools
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data.local_engine import Item, Result, listed
from tokenizer_lab.errors import UserError

_OBJECT_STORE_BYTES = 512 << 20  # of a cluster of our own; what is more goes to disk
RESULTS_AHEAD = 4  # of an item that is not yet the next to come out: then its worker waits
ITEMS_AHEAD = 2  # per worker, begun or done, that are not yet the next to come out
_MAX_RESTARTS = 3  # of a worker that died, and of the item it was at


class RayEngine:
    """Does the work in actors on the Ray cluster that this process is connected to.

    An actor gets an item when it is idle. It may be ahead of the order by a few items, and of each by a few results:
    that bounds memory whatever the cluster's size.
    """

    def stream(
        self,
        function: Callable[[Item], Iterable[Result]],
        items: Sequence[Item],
        devices: Mapping[str, float] | None = None,
    ) -> Generator[Result]:
        import ray

        actors = self._start_actors(function, len(items), devices or {"CPU": 1})
        # An actor has a call under way or is idle; its first call is to start, which waits for its devices.
        busy = {actor.start.remote(): actor for actor in actors}
        idle: collections.deque[Any] = collections.deque()
        to_do = collections.deque(items)
        in_order: collections.deque[Any] = collections.deque()
        try:
            while to_do or in_order:
                while to_do and idle and len(in_order) < ITEMS_AHEAD * len(actors):
                    actor = idle.popleft()
                    run = actor.run.options(_generator_backpressure_num_objects=RESULTS_AHEAD)
                    in_order.append(run.remote(to_do.popleft()))
                    busy[in_order[-1].completed()] = actor
                head = list(in_order)[:1]
                happened: Any  # a reference, or a generator of them
                [[happened], _] = ray.wait([*head, *busy], num_returns=1, fetch_local=False)
                if happened in busy:
                    idle.append(busy.pop(happened))
                    continue
                try:
                    yield ray.get(next(happened))
                except StopIteration:
                    in_order.popleft()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise UserError(
                f"Ray could not go on: {_reason(error)}; every machine needs enough memory and this version of"
                " tokenizer-lab; mend that and start again"
            ) from error
        finally:
            for call in busy:
                ray.cancel(call)  # which nobody waits for; else Ray tries it again, and says so
            for actor in actors:
                ray.kill(actor)

    def _start_actors(self, function: Callable[..., Any], num_items: int, devices: Mapping[str, float]) -> list[Any]:
        import ray

        there = ray.cluster_resources()
        num_actors = min(num_items, *(int(there.get(name, 0) // count) for name, count in devices.items()))
        if num_items and not num_actors:
            raise UserError(
                f"the Ray cluster has no {listed(devices)} for a worker; it has {listed(there) or 'nothing'}"
            )
        options: dict[str, Any] = {"num_cpus": devices.get("CPU", 0), "num_gpus": devices.get("GPU", 0)}
        options["resources"] = {name: count for name, count in devices.items() if name not in ("CPU", "GPU")}
        worker = ray.remote(max_restarts=_MAX_RESTARTS, max_task_retries=_MAX_RESTARTS, **options)(_Worker)
        return [worker.remote(function, os.getcwd()) for _ in range(num_actors)]


class _Worker:
    """An actor: a copy of the function, with all that it keeps between items."""

    def __init__(self, function: Callable[[Any], Iterable[Any]], folder: str):
        self._function, self._folder = function, folder

    def start(self) -> None:
        pass

    def run(self, item: Any) -> Iterator[Any]:
        try:
            os.chdir(self._folder)  # so that paths mean and errors say the same as without Ray
        except OSError as error:
            raise UserError(
                f"a worker of the Ray cluster cannot enter {self._folder}: {error.strerror}; start where all its"
                " machines have the same folders"
            ) from error
        yield from self._function(item)


@contextlib.contextmanager
def open_ray(address: str | None) -> Iterator[RayEngine]:
    """A connection to the Ray cluster at an address; without one, to a cluster on this machine's loopback that ends
    with it.

    Raises:
      UserError: Ray is not installed, or does not start, or nothing answers at the address.
    """
    if address and "://" in address:
        raise UserError(
            f"{address} is an address for Ray Client, which cannot do this; run the command on a machine of the"
            " cluster, with HOST:PORT"
        )
    before = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment(RAY_USAGE_STATS_ENABLED="0", RAY_IGNORE_UNHANDLED_ERRORS="1"))
        if not address:
            # Ray's own way to stay on the loopback; and the token that it asks for by default, which it would keep in
            # the home folder.
            stack.enter_context(_environment(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_TOKEN=_token()))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="toklab-ray-", ignore_cleanup_errors=True))
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--engine ray needs Ray, which is not installed: pip install 'tokenizer-lab[ray]'"
            ) from error
        stack.callback(ray.shutdown)
        try:
            if address:
                ray.init(address, **quiet)
            else:
                ray.init(
                    "local",
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **quiet,
                )
        except Exception as error:  # RuntimeError, ConnectionError, OSError, ValueError, RayError and more
            where = f"join the Ray cluster at {address}" if address else "start a Ray cluster on this machine"
            raise UserError(f"cannot {where}: {_reason(error)}; mend that, or use --engine local") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts a handler of its own in the place of ours
        yield RayEngine()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Ray's environment variables, for the time inside; also those that Ray sets itself."""
    before = _ray_variables()
    os.environ.update(values)
    try:
        yield
    finally:
        for name in _ray_variables():
            del os.environ[name]
        os.environ.update(before)


def _ray_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


@functools.cache
def _token() -> str:
    """One a process: Ray reads it once."""
    return secrets.token_hex(32)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
