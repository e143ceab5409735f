"""Compiles one training step for a TPU that is not there, and prints what came out as JSON.

    python tests/train/tpu_compile.py '{"topology": "v5e:4x4", "mesh": {"tensor": 4}}'

It is a script of its own because libtpu reads its environment when it is loaded, and because a kernel that the TPU
compiler cannot take may abort the process.
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

import collections
import math
import re
import time
import warnings

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from data.rows import CausalRow
from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from train.objectives import Objective
from train.optimizer import Budget, OptimizerConfig, make_meter
from train.recipe import from_json
from train.sharding import MeshConfig, batch_sharding, check_batch, cursor_sharding, make_mesh
from train.step import build_program, make_train_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send", "recv")


def compile_train_step(
    topology: str,
    *,
    num_slices: int = 1,
    mesh: dict | None = None,
    model: dict | None = None,
    objective: dict | None = None,
    optimizer: dict | None = None,
    vocab_size: int = 257,
    batch_rows: int = 32,
    sequence_length: int = 1024,
    num_microbatches: int = 1,
    kernels: str = "auto",
    optimization_level: str = "O0",
) -> dict:
    """Compiles the step of a recipe with these options for the TPUs of a topology such as "v5e:4x4".

    At the level "O0" it takes seconds and tells whether the step compiles; how much memory it takes shows at "UNKNOWN",
    the compiler's default.
    """
    jax.config.update("jax_optimization_level", optimization_level)
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu", **slices).devices
    mesh = make_mesh(MeshConfig(**(mesh or {})), devices)
    check_batch(mesh, batch_rows, sequence_length, num_microbatches)
    model = from_json(DecoderConfig | EncoderConfig, {"num_layers": 2} | (model or {}))
    objective, optimizer = from_json(Objective, objective or {}), OptimizerConfig(**(optimizer or {}))
    program = build_program(
        lambda rngs: objective.build(model, vocab_size, rngs), optimizer, mesh, batch_rows=batch_rows, num_sources=1
    )
    step = make_train_step(
        program, objective, optimizer, mesh, meter=make_meter(Budget(steps=100), 1.0), num_microbatches=num_microbatches,
        kernels=kernels,
    )
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), program.shapes, program.shardings
    )
    started = time.perf_counter()
    # The mesh is set because kernels ask it which chip they are compiled for.
    with warnings.catch_warnings(record=True) as caught, jax.set_mesh(mesh):
        warnings.simplefilter("always")
        batch = abstract_batch(mesh, batch_rows, sequence_length, for_encoder=objective.layout is not CausalRow)
        compiled = step.lower(state, batch).compile()
    memory, hlo = compiled.memory_analysis(), compiled.as_text()
    return {
        "mesh": dict(mesh.shape),
        "slices_of_replicas": [
            sorted({getattr(device, "slice_index", 0) for device in replica.flat}) for replica in mesh.devices
        ],
        "compile_seconds": round(time.perf_counter() - started, 1),
        "state_bytes_per_device": sum(
            math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)
        ),
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "loss_kernels": sorted(set(re.findall(r"linear_cross_entropy_(forward|backward_by_x|backward_by_table)", hlo))),
        "splash_kernels": sorted(set(re.findall(r"splash_mha_(fwd|dq|dkv)", hlo))),
        "tpu_custom_calls": hlo.count('custom_call_target="tpu_custom_call"'),
        "collectives": dict(collections.Counter(re.findall(rf"\s({'|'.join(COLLECTIVES)})(?:-start)?\(", hlo))),
        "warnings": [str(warning.message) for warning in caught],
    }


def abstract_batch(
    mesh: jax.sharding.Mesh, batch_rows: int, sequence_length: int, *, for_encoder: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of a batch of `data/rows.py` or `data/encoder_rows.py` with one source."""
    seeds = jax.ShapeDtypeStruct((batch_rows,), jnp.uint32, sharding=batch_sharding(mesh, 1))
    positions = jax.ShapeDtypeStruct((batch_rows, sequence_length), jnp.int32, sharding=batch_sharding(mesh, 2))
    return {
        **{name: positions for name in ("ids", "types" if for_encoder else "targets", "segment_ids", "positions")},
        **({"row_seeds": seeds} if for_encoder else {}),
        "num_bytes": jax.ShapeDtypeStruct((batch_rows,), jnp.int32, sharding=batch_sharding(mesh, 1)),
        "cursors": jax.ShapeDtypeStruct((batch_rows, 2), jnp.int32, sharding=cursor_sharding(mesh)),
    }


if __name__ == "__main__":
    print(json.dumps(compile_train_step(**json.loads(sys.argv[1]))))
