"""A recipe's training step, compiled without any of its data or weights, and what the compiler says of it."""

import math
import pathlib
import re
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.optimizer import make_meter
from train.plan.hlo_cost import summarize
from train.recipe import Recipe
from train.setup import abstract_batch, lay_out, model_flops_per_token
from train.sharding import check_batch, make_mesh
from train.step import TrainState, make_train_step

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def compile_step(
    recipe: Recipe, vocab_size: int, devices: Sequence[jax.Device], hlo_file: str | None = None
) -> dict[str, Any]:
    """Compiles the step of a recipe over a representation of so many ids for devices, which need not exist. Nothing is
    allocated.

    Returns:
      mesh and slices_of_replicas; bytes: of the state and a batch on a device, by shapes and shardings;
      compile_seconds; warnings; and
      memory: the compiler's bytes on a device, and program: of `train.plan.hlo_cost.summarize`. Where the program needs
      more memory than a device has, out_of_memory (of `out_of_memory`) in place of these two. The peak is the most that
      is alive at a time, arguments included; temp also has what XLA wastes by packing temporaries
      (docs/performance.md).

    Raises:
      UserError: mesh, batch, model and devices do not go together.
    """
    mesh = make_mesh(recipe.mesh, devices)
    check_batch(mesh, recipe.data.batch_rows, recipe.data.sequence_length, recipe.data.num_microbatches)
    step, state, batch = abstract_step(recipe, vocab_size, mesh)
    slices = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    answer: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "slices_of_replicas": [
            sorted(set(replica)) for replica in np.reshape(slices, (mesh.shape["replica"], -1)).tolist()
        ],
        "bytes": {
            "parameters": bytes_per_device(state.params),
            "optimizer": bytes_per_device(state.opt_state),
            "state": bytes_per_device(state),
            "batch": bytes_per_device(batch),
        },
    }
    started, complaint = time.perf_counter(), None
    # The mesh is set because kernels ask it which chip they are compiled for.
    with warnings.catch_warnings(record=True) as caught, jax.set_mesh(mesh):
        warnings.simplefilter("always")
        try:
            compiled = step.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if (complaint := out_of_memory(str(error))) is None:
                raise
    answer |= {
        "compile_seconds": time.perf_counter() - started,
        "warnings": [str(warning.message) for warning in caught],
    }
    if complaint:
        return answer | {"out_of_memory": complaint}
    memory, hlo = memory_of(compiled), compiled.as_text()
    if hlo_file:
        pathlib.Path(hlo_file).write_text(hlo)
    return answer | {"memory": memory, "program": summarize(hlo, slices, recipe.model.causal)}


def abstract_step(recipe: Recipe, vocab_size: int, mesh: Mesh) -> tuple[Any, TrainState, dict[str, Any]]:
    """The jitted step of a recipe, and shapes and shardings of the state and the batch that it takes."""
    program = lay_out(recipe, vocab_size, mesh)
    flops_per_step = (
        model_flops_per_token(recipe, vocab_size)["total"] * recipe.data.batch_rows * recipe.data.sequence_length
    )
    step = make_train_step(
        program,
        recipe.objective,
        recipe.optimizer,
        mesh,
        meter=make_meter(recipe.budget, flops_per_step),
        num_microbatches=recipe.data.num_microbatches,
        kernels=recipe.kernels,
    )
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), program.shapes, program.shardings
    )
    return step, state, abstract_batch(recipe, mesh)


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
    """What the compiler says of a program's bytes on a device."""
    memory = compiled.memory_analysis()
    assert memory is not None, "the compiler says nothing of memory"
    kinds = ("argument", "output", "alias", "temp", "generated_code")
    return {kind: getattr(memory, f"{kind}_size_in_bytes") for kind in kinds} | {"peak": memory.peak_memory_in_bytes}


def bytes_per_device(tree: Any) -> int:
    """Of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def out_of_memory(message: str) -> dict[str, Any] | None:
    """Bytes {"needed", "available"} of the compiler's complaint that a program does not fit the HBM; None for another
    complaint.

    Sometimes it counts only temporaries: `needed` is then without the arguments.
    """
    size = r"(\d+(?:\.\d+)?)([KMGTP]?)"
    found = re.search(rf"\({size}\) exceeds available HBM \({size}\)", message) or re.search(
        rf"Used {size} of {size} hbm", message
    )
    if not found:
        return None
    needed, available = (
        round(float(number) * _SIZES[unit]) for number, unit in (found.groups()[:2], found.groups()[2:])
    )
    return {"needed": needed, "available": available, "temporaries_only": "HLO temporaries" in message}
