"""Compiles a recipe's training step for TPUs that are not there, and says what came out as JSON.

    python -m train.plan.tpu_compile < request.json

It is a process of its own because libtpu reads its environment when it is loaded, and because the compiler may abort
the process. The request has the fields of `compile_for_tpu`; the answer is its result, or {"refused": why} for a
person's mistake.
"""

import json
import sys
from typing import Any

from tokenizer_lab.errors import UserError
from train.plan.compiled_step import compile_step
from train.plan.tpu_stand_in import topology_devices  # before JAX
from train.recipe import Recipe, from_json


def compile_for_tpu(
    recipe: dict[str, Any], vocab_size: int, topology: str, num_slices: int = 1, hlo_file: str | None = None
) -> dict[str, Any]:
    """`compile_step` of a recipe (`to_json`) for slices of a topology such as "v5e:4x4".

    With JAX_OPTIMIZATION_LEVEL=O0 in the environment it takes seconds and tells whether the step compiles; how much
    memory it takes, and what it computes and moves, shows without.
    """
    return compile_step(from_json(Recipe, recipe), vocab_size, topology_devices(topology, num_slices), hlo_file)


if __name__ == "__main__":
    try:
        result = compile_for_tpu(**json.load(sys.stdin))
    except UserError as error:
        result = {"refused": str(error)}
    print(json.dumps(result))
