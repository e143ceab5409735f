"""A deadline for every part of a run: a process that hangs ends itself, so that whoever started it can start it
again."""

import dataclasses
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from tokenizer_lab.errors import Range, check_numbers
from train.exits import EXIT_HUNG

_TICK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds after which a run that does not come forward ends itself; see "Many hosts" in docs/pods.md."""

    start_seconds: float = 900.0
    """From the first moment until the step is compiled: finding the other hosts, opening the data, restoring a
    checkpoint."""
    compile_seconds: float = 1800.0
    """Compiling the step."""
    step_seconds: float = 600.0
    """One step with its data."""
    evaluation_seconds: float = 3600.0
    """One evaluation while training."""
    save_seconds: float = 1800.0
    """Handing a checkpoint over to be written, the one before included; at the end of a run, writing all of it."""
    heartbeat_seconds: int = 100
    """A host that the others have not heard of for so long is lost."""

    def __post_init__(self) -> None:
        at_least_1 = Range(least=1, most=2**31 - 1)
        check_numbers(self, "deadlines.", **{field.name: at_least_1 for field in dataclasses.fields(self)})


class Watchdog:
    """A thread that ends the process when the part of the run that it is in takes too long, whatever the main thread is
    waiting for.

    `watchdog("step")` enters a part, whose time begins then. Only time in which this process ran is counted: neither a
    clock that is set, nor a machine that slept, nor a process that was stopped for a while has hung.
    """

    def __init__(self, deadlines: Deadlines, end: Callable[[int], Any] = os._exit):
        self._deadlines, self._end, self._closed = dataclasses.asdict(deadlines), end, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self("start")

    def __call__(self, part: str) -> None:
        self._part = _Part(part, self._deadlines[f"{part}_seconds"])

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._closed.wait(_TICK_SECONDS):
            part, now = self._part, time.monotonic()
            part.seconds += min(now - before, 2 * _TICK_SECONDS)
            before = now
            if part.seconds > part.allowed_seconds:
                os.write(
                    2,
                    f"toklab: {part.name} has taken longer than {part.allowed_seconds:g} s"
                    f" (--deadlines.{part.name}-seconds), and the process ends for that; the same command goes on from"
                    " the newest checkpoint. What every thread was doing:\n".encode(),
                )
                faulthandler.dump_traceback(2)
                self._end(EXIT_HUNG)
                return


@dataclasses.dataclass
class _Part:
    name: str
    allowed_seconds: float
    seconds: float = 0.0  # only the watchdog's thread adds to them
