"""The TPU compiler, called in a process of its own: it may die without an exception."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

from tokenizer_lab.errors import UserError
from train.plan.pod import Pod
from train.recipe import Recipe, to_json


def compile_ahead(recipe: Recipe, vocab_size: int, pod: Pod, hlo_file: str | None = None) -> dict[str, Any]:
    """The answer of `train.plan.tpu_compile.compile_for_tpu`, from a process of its own. Raises UserError."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, which compiles for TPUs, is not installed; pip install 'tokenizer-lab[tpu]' (needs no TPU)"
        )
    request = {
        "recipe": to_json(recipe),
        "vocab_size": vocab_size,
        "topology": pod.topology,
        "num_slices": pod.num_slices,
        "hlo_file": hlo_file,
    }
    root = str(pathlib.Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "train.plan.tpu_compile"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
    )
    if done.returncode:
        raise UserError(cause_of_death(done.returncode, done.stderr, f"{recipe.name} for {pod}"))
    answer = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def cause_of_death(returncode: int, stderr: str, what: str) -> str:
    """One line on why the compiler's process gave no answer."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} |F0000", line)]
    told = (fatal or lines or ["it said nothing"])[-1][:300]
    died = f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else "failed"
    return (
        f"the TPU compiler {died} on {what}: {told}; try another mesh, sequence length or --model.remat, or another"
        " version of libtpu"
    )
