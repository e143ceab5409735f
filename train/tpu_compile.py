"""Compiles a recipe's training step for TPUs that are not there, and says what came out as JSON.

    python -m train.tpu_compile < request.json

It is a process of its own because libtpu reads its environment when it is loaded, and because the compiler may abort the process.
The request has the fields of `compile_train_step`; the answer is its result, or {"refused": why} for a person's mistake.
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

import math
import pathlib
import re
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from data.rows import CausalRow
from tokenizer_lab.errors import UserError
from train.hlo import summarize
from train.optimizer import make_meter
from train.recipe import Recipe, from_json
from train.setup import lay_out, model_flops_per_token
from train.sharding import batch_sharding, check_batch, cursor_sharding, make_mesh
from train.step import make_train_step

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def compile_train_step(
    recipe: dict, vocab_size: int, topology: str, num_slices: int = 1, optimization_level: str = "UNKNOWN", hlo_file: str | None = None,
) -> dict[str, Any]:
    """Compiles the step of a recipe (`to_json`) for the TPUs of a topology such as "v5e:4x4".

    At the level "O0" it takes seconds and tells whether the step compiles; how much memory it takes, and what it computes and
    moves, shows at "UNKNOWN", the compiler's default. The program's text is written to `hlo_file`.

    Raises:
      UserError: the topology, mesh, batch or model do not go together.
    """
    jax.config.update("jax_optimization_level", optimization_level)
    recipe = from_json(Recipe, recipe)
    mesh = make_mesh(recipe.mesh, topology_devices(topology, num_slices))
    check_batch(mesh, recipe.data.batch_rows, recipe.data.sequence_length, recipe.data.num_microbatches)
    program = lay_out(recipe, vocab_size, mesh)
    flops_per_step = model_flops_per_token(recipe, vocab_size)["total"] * recipe.data.batch_rows * recipe.data.sequence_length
    step = make_train_step(program, recipe.objective, recipe.optimizer, mesh, meter=make_meter(recipe.budget, flops_per_step),
                           num_microbatches=recipe.data.num_microbatches)
    state = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), program.shapes, program.shardings)
    batch = abstract_batch(mesh, recipe)
    slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    answer = {
        "mesh": dict(mesh.shape),
        "slices_of_replicas": [sorted(set(replica)) for replica in np.reshape(slices, (mesh.shape["replica"], -1)).tolist()],
        "bytes": {"parameters": bytes_per_device(state.params), "optimizer": bytes_per_device(state.opt_state),
                  "state": bytes_per_device(state), "batch": bytes_per_device(batch)},
    }
    started = time.perf_counter()
    # The mesh is set because kernels ask it which chip they are compiled for.
    with warnings.catch_warnings(record=True) as caught, jax.set_mesh(mesh):
        warnings.simplefilter("always")
        try:
            compiled = step.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if (needed := out_of_memory(str(error))) is None:
                raise
            return answer | {"out_of_memory": needed, "compile_seconds": time.perf_counter() - started, "warnings": messages(caught)}
    seconds, memory, hlo = time.perf_counter() - started, compiled.memory_analysis(), compiled.as_text()
    if hlo_file:
        pathlib.Path(hlo_file).write_text(hlo)
    return answer | {
        "compile_seconds": seconds,
        "warnings": messages(caught),
        "memory": {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp", "generated_code")},
        "program": summarize(hlo, slices, recipe.model.causal),
    }


def topology_devices(topology: str, num_slices: int) -> list[jax.Device]:
    """The chips of a topology that need not exist. Raises UserError where libtpu knows none of the name."""
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu", **slices).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise UserError(f"libtpu has no topology {topology}: {str(error).splitlines()[0]}") from error


def abstract_batch(mesh: jax.sharding.Mesh, recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the batches that a recipe's rows make (`data/rows.py`, `data/encoder_rows.py`)."""
    rows, length, num_sources = recipe.data.batch_rows, recipe.data.sequence_length, len(recipe.data.corpora)
    for_encoder = recipe.layout is not CausalRow
    seeds = jax.ShapeDtypeStruct((rows,), jnp.uint32, sharding=batch_sharding(mesh, 1))
    positions = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=batch_sharding(mesh, 2))
    return {
        **{name: positions for name in ("ids", "types" if for_encoder else "targets", "segment_ids", "positions")},
        **({"row_seeds": seeds} if for_encoder else {}),
        "num_bytes": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=batch_sharding(mesh, 1)),
        "cursors": jax.ShapeDtypeStruct((rows, num_sources + 1), jnp.int32, sharding=cursor_sharding(mesh)),
    }


def bytes_per_device(tree: Any) -> int:
    """Of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def out_of_memory(message: str) -> dict[str, Any] | None:
    """Bytes {"needed", "available"} of the compiler's complaint that a program does not fit the HBM; None for another complaint.

    Sometimes it counts only temporaries: `needed` is then without the arguments.
    """
    size = r"(\d+(?:\.\d+)?)([KMGTP]?)"
    found = re.search(rf"\({size}\) exceeds available HBM \({size}\)", message) or re.search(rf"Used {size} of {size} hbm", message)
    if not found:
        return None
    needed, available = (round(float(number) * _SIZES[unit]) for number, unit in (found.groups()[:2], found.groups()[2:]))
    return {"needed": needed, "available": available, "temporaries_only": "HLO temporaries" in message}


def messages(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught]


if __name__ == "__main__":
    try:
        result = compile_train_step(**json.load(sys.stdin))
    except UserError as error:
        result = {"refused": str(error)}
    print(json.dumps(result))
