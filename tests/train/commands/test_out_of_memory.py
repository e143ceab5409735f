import errno
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.commands import command_line
from train.commands.out_of_memory import REMEDIES


def host_array():
    np.empty(1 << 62, np.uint8)


def device_array():
    jax.block_until_ready(jax.jit(lambda x: jnp.broadcast_to(x, (1 << 24, 1 << 24)) * 2)(jnp.ones(1)))


def file_mapping():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def native_code():
    raise RuntimeError("std::bad_alloc")


def wrapped():
    try:
        host_array()
    except MemoryError as error:
        raise RuntimeError("a step failed") from error


@pytest.mark.parametrize("allocate", [host_array, device_array, file_mapping, native_code, wrapped])
def test_running_out_of_memory_is_one_line_with_what_would_make_it_fit(allocate, monkeypatch, capsys):
    for name, remedy in REMEDIES.items():
        module = importlib.import_module(f"train.commands.{name}")
        monkeypatch.setattr(module, "run", lambda arguments: allocate())
        assert command_line.run([name]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("toklab: out of memory (") and line.endswith(f"; {remedy}")


def test_every_command_has_a_remedy_and_other_errors_stay_bugs(monkeypatch, capsys):
    assert REMEDIES.keys() == command_line.COMMANDS.keys()
    module = importlib.import_module("train.commands.report")

    def run(arguments):
        raise RuntimeError("a bug; RESOURCE_EXHAUSTED is a word in it")

    monkeypatch.setattr(module, "run", run)
    assert command_line.run(["report"]) == 1 and "Traceback" in capsys.readouterr().err
