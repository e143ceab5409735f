"""Compiles a recipe's training step for TPUs that are not there, and says what came out as JSON.

    python -m train.tpu_compile < request.json

It is a process of its own because libtpu reads its environment when it is loaded, and because the compiler may abort the process.
The request has the fields of `compile_for_tpu`; the answer is its result, or {"refused": why} for a person's mistake.
"""

import json
import os
import sys

# What libtpu needs to know to stand in for a TPU host.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

from typing import Any

import jax
from jax.experimental import topologies

from tokenizer_lab.errors import UserError
from train.compiled_step import compile_step
from train.recipe import Recipe, from_json


def compile_for_tpu(recipe: dict, vocab_size: int, topology: str, num_slices: int = 1, hlo_file: str | None = None) -> dict[str, Any]:
    """`compile_step` of a recipe (`to_json`) for slices of a topology such as "v5e:4x4".

    With JAX_OPTIMIZATION_LEVEL=O0 in the environment it takes seconds and tells whether the step compiles; how much memory it takes, and what
    it computes and moves, shows without.
    """
    return compile_step(from_json(Recipe, recipe), vocab_size, topology_devices(topology, num_slices), hlo_file)


def topology_devices(topology: str, num_slices: int) -> list[jax.Device]:
    """The chips of a topology that need not exist. Raises UserError where libtpu knows none of the name."""
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu", **slices).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(f"libtpu has no topology {topology}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    try:
        result = compile_for_tpu(**json.load(sys.stdin))
    except UserError as error:
        result = {"refused": str(error)}
    print(json.dumps(result))
