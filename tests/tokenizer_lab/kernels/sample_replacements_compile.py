"""Compiles the generator head's loss and gradient for a TPU that is not there, and prints what came out as JSON.

    python tests/tokenizer_lab/kernels/sample_replacements_compile.py v5e:2x2 v5p:2x2x1 [--implementation auto]

All shapes for the first topology, those of the most positions for the others. `--implementation reference` shows what
plain XLA needs. It is a script of its own because libtpu reads its environment when it is loaded, and because a kernel
that the TPU compiler cannot take may abort the process.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.sample_replacements import PRODUCTION_SHAPES, api, sample_replacements
from tokenizer_lab.kernels.table_softmax import pallas_tpu
from train.plan.tpu_stand_in import topology_devices  # before JAX

VMEM_LIMIT_BYTES = pallas_tpu.VMEM_LIMIT_BYTES
WIDEST = 512, 1024, 4096  # what the budget has to hold


def compile_step(device, num_positions: int, num_rows: int, width: int, implementation: str) -> dict:
    """What a device makes of the samples and the gradient of the loss, bfloat16 multiplied, at a production shape."""
    mesh = Mesh(np.array([device]), ("positions",))

    def abstract(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def loss(x_nd, table_vd, bias_v, labels_n, seeds_n2):
        nats_n, logz_n, sample_n = sample_replacements(
            x_nd, table_vd, labels_n, seeds_n2, bias_v, vocab_size=num_rows - 70, implementation=implementation
        )
        return jnp.sum(nats_n) + 1e-4 * jnp.sum(logz_n**2), sample_n

    arguments = (
        abstract(jnp.bfloat16, num_positions, width),
        abstract(jnp.bfloat16, num_rows, width),
        abstract(jnp.float32, num_rows),
        abstract(jnp.int32, num_positions),
        abstract(jnp.uint32, num_positions, 2),
    )
    # With the budget as its limit, the compiler refuses a kernel that takes more.
    pallas_tpu.VMEM_LIMIT_BYTES = VMEM_LIMIT_BYTES
    blocks = pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, 2)
    pallas_tpu.VMEM_LIMIT_BYTES = pallas_tpu.vmem_bytes(blocks, width, 2)
    begin = time.process_time()
    with jax.set_mesh(mesh):  # kernels ask it which chip they are compiled for
        compiled = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True)).lower(*arguments).compile()
    return {
        "shape": [num_positions, num_rows, width],
        "tpu_custom_calls": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_cpu_seconds": round(time.process_time() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topologies", nargs="+")
    parser.add_argument("--implementation", default="auto")
    arguments = parser.parse_args()
    programs = {}
    shapes = *PRODUCTION_SHAPES, WIDEST
    for topology in arguments.topologies:
        device = topology_devices(topology)[0]
        programs[topology] = [compile_step(device, *shape, arguments.implementation) for shape in shapes]
        # Fewer positions are the same kernels, run less often: the first topology says that they compile.
        shapes = [shape for shape in PRODUCTION_SHAPES if shape[0] == max(PRODUCTION_SHAPES)[0]]
    print(json.dumps(programs))


if __name__ == "__main__":
    main()
