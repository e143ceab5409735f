"""The first moments of the console command `toklab`: until everything is imported, a signal ends the process at once.

This module imports nothing but the standard library, so that the handler is in place before anything else is loaded: an
interrupt while libraries initialize their native code can crash the interpreter.
"""

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

EXIT_BUG, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_HUNG, EXIT_INTERRUPTED = 1, 2, 75, 76, 130
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_ACCELERATOR_VENDORS = {"0x1ae0": "Google", "0x10de": "NVIDIA", "0x1002": "AMD"}  # PCI ids


def main() -> None:
    """Runs `toklab` and exits the process with its code."""
    signal.signal(signal.SIGTERM, _stop)  # training takes it over once there is something to save
    leave_out_absent_tpus()
    if sys.argv[1:2] in (["train"], ["finetune"]) and not accelerator_vendors():
        keep_memory()
    with interruptible_import():
        from train import commands
    sys.exit(commands.run(sys.argv[1:]))


def leave_out_absent_tpus() -> None:
    """Where libtpu is installed and there is no TPU, it would fill the terminal with what it did not find."""
    if importlib.util.find_spec("libtpu") and not accelerator_vendors():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def keep_memory() -> None:
    """Has glibc keep what is freed; to be called before there are threads.

    XLA's CPU runtime allocates a step's temporaries anew each step. Blocks of that size glibc gives back to the system at once, which
    then zeroes them page by page the next time: a fifth of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)) if mallopt else ():
        mallopt(option, value)


def accelerator_vendors(devices: pathlib.Path = pathlib.Path("/sys/bus/pci/devices")) -> set[str]:
    """Who made the devices of this machine, of those who make accelerators."""
    found = {vendor.read_text().strip() for vendor in devices.glob("*/vendor")}
    return {name for vendor, name in _ACCELERATOR_VENDORS.items() if vendor in found}


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


def _leave(*_: Any) -> None:
    os.write(2, b"toklab: interrupted before anything was begun\n")
    os._exit(EXIT_INTERRUPTED)


def _stop(*_: Any) -> None:
    os.write(2, b"toklab: stopped by a signal; what was committed before is whole, the same command starts again\n")
    os._exit(EXIT_STOPPED)


if __name__ == "__main__":
    main()
