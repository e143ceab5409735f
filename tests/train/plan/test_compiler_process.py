"""A TPU compiler that is missing or dies."""

import importlib.util

import pytest

from tokenizer_lab.errors import UserError
from train.plan import compiler_process
from train.plan.plan import make_plan
from train.plan.pod import Pod
from train.plan.representations import ASSUMED


def test_without_libtpu_the_extra_is_named(monkeypatch, small):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tokenizer-lab\[tpu\]'"):
        make_plan(small, Pod("v5e:2x2"), ASSUMED["byte"])


@pytest.mark.parametrize(
    "program, told",
    [
        (
            "import os, sys; print('F0000 layout.h:341 Check failed: rank', file=sys.stderr); os.abort()",
            "was ended by SIGABRT on tiny for v5e:2x2: F0000 layout.h:341",
        ),
        (
            "raise NotImplementedError('Unimplemented primitive')",
            "failed on tiny for v5e:2x2: NotImplementedError: Unimplemented primitive",
        ),
    ],
)
def test_a_compiler_that_dies_is_one_line(monkeypatch, small, program, told):
    run = compiler_process.subprocess.run
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(
        compiler_process.subprocess, "run", lambda command, **keywords: run([command[0], "-c", program], **keywords)
    )
    with pytest.raises(UserError) as error:
        make_plan(small, Pod("v5e:2x2"), ASSUMED["byte"])
    assert told in str(error.value) and "\n" not in str(error.value)
