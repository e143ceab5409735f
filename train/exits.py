"""How `toklab` ends: its exit codes, and what Ctrl-C and SIGTERM do until a command takes them over.

0 done, 1 a bug, 2 the person can mend it (one line on stderr), 75 stopped by a signal after what was trained was saved,
76 another host was lost or something took longer than its deadline, 130 interrupted. After 75 and 76 the same command
goes on.

This module imports nothing but the standard library: it is loaded before anything that takes time.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

EXIT_BUG, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_HUNG, EXIT_INTERRUPTED = 1, 2, 75, 76, 130


@contextlib.contextmanager
def interruptible_import() -> Iterator[None]:
    """Imports inside are ended by Ctrl-C cleanly: nothing has been begun yet, so that the process just goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def stop_signals_to(handler: Callable[..., None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM call `handler` instead of what they called before."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def stop(*_: Any) -> None:
    """What SIGTERM does while there is nothing to save."""
    os.write(2, b"toklab: stopped by a signal; what was committed before is whole, the same command starts again\n")
    os._exit(EXIT_STOPPED)


def _leave(*_: Any) -> None:
    os.write(2, b"toklab: interrupted before anything was begun\n")
    os._exit(EXIT_INTERRUPTED)
