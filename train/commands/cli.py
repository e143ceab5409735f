"""The first moments of the console command `toklab`: until everything is imported, a signal ends the process at once.

This module imports nothing but the standard library, so that the handler is in place before anything else is loaded: an
interrupt while libraries initialize their native code can crash the interpreter.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import io
import os
import pathlib
import signal
import sys
from typing import NoReturn

from train.exits import interruptible_import, stop

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_ACCELERATOR_VENDORS = {"0x1ae0": "Google", "0x10de": "NVIDIA", "0x1002": "AMD"}  # PCI ids


def main() -> None:
    """Runs `toklab` and exits the process with its code."""
    signal.signal(signal.SIGTERM, stop)  # training takes it over once there is something to save
    leave_out_absent_tpus()
    if sys.argv[1:2] in (["train"], ["finetune"]) and not accelerator_vendors():
        keep_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a name that is no UTF-8 comes out as it went in
    with interruptible_import():
        from train.commands import command_line
    leave(command_line.run(sys.argv[1:]))


def leave(code: int) -> NoReturn:
    """Ends the process as Python does, but for taking the interpreter apart: a library's native thread that asks for it
    meanwhile would abort the process, after all is done and in one run of many."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, or there is none
            stream.flush()
    os._exit(code)


def leave_out_absent_tpus() -> None:
    """Where libtpu is installed and there is no TPU, it would fill the terminal with what it did not find."""
    if importlib.util.find_spec("libtpu") and not accelerator_vendors() and "JAX_PLATFORMS" not in os.environ:
        os.environ["JAX_PLATFORMS"] = "cpu"  # of processes that this one starts, too
        if jax := sys.modules.get("jax"):
            jax.config.update("jax_platforms", "cpu")


def keep_memory() -> None:
    """Has glibc keep what is freed; to be called before there are threads.

    XLA's CPU runtime allocates a step's temporaries anew each step. Blocks of that size glibc gives back to the system
    at once, which then zeroes them page by page the next time: a fifth of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(option, value)


def accelerator_vendors(devices: pathlib.Path = pathlib.Path("/sys/bus/pci/devices")) -> set[str]:
    """Who made the devices of this machine, of those who make accelerators."""
    found = {vendor.read_text().strip() for vendor in devices.glob("*/vendor")}
    return {name for vendor, name in _ACCELERATOR_VENDORS.items() if vendor in found}


if __name__ == "__main__":
    main()
