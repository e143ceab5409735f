"""The first moments of the console command `toklab`: until everything is imported, Ctrl-C ends the process at once.

This module imports nothing but the standard library, so that the handler is in place before anything else is loaded: an
interrupt while libraries initialize their native code can crash the interpreter.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_INTERRUPTED = 130


def main() -> None:
    """Runs `toklab` and exits the process with its code."""
    with interruptible_import():
        from train import commands
    sys.exit(commands.run(sys.argv[1:]))


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


def _leave(*_: Any) -> None:
    os.write(2, b"toklab: interrupted before anything was begun\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
