"""Compiles the steps of the window coder for a TPU that is not there, and prints what came out as JSON.

    python tests/tokenizer_lab/kernels/window_coder_compile.py v5e:2x2 v5p:2x2x1

It is a script of its own because libtpu reads its environment when it is loaded, and because a kernel that the TPU
compiler cannot take may abort the process.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.window_coder import PRODUCTION_SHAPES, decode_step, encode_step, pallas_tpu
from train.plan.tpu_stand_in import topology_devices  # before JAX


def compile_steps(topology: str) -> list[dict]:
    """What one device of a topology such as "v5e:2x2" makes of each production shape, as the platform chooses."""
    devices = topology_devices(topology)
    mesh = Mesh(np.array(devices[:1]), ("streams",))

    def abstract(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    results = []
    for window_bits, num_streams in PRODUCTION_SHAPES:
        # With the budget as its limit, the compiler refuses a kernel that takes more.
        pallas_tpu.VMEM_LIMIT_BYTES = pallas_tpu.vmem_bytes(window_bits // 16, num_streams)
        shares, byte = abstract(jnp.int32, 256, num_streams), abstract(jnp.int32, num_streams)
        number = abstract(jnp.uint32, window_bits // 16, num_streams)
        for step, operand in ((encode_step, byte), (decode_step, number)):
            with jax.set_mesh(mesh):  # kernels ask it which chip they are compiled for
                compiled = step.lower(shares, number, number, operand).compile()
            results.append(
                {
                    "step": step.__name__,
                    "window_bits": window_bits,
                    "num_streams": num_streams,
                    "tpu_custom_calls": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
                    "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
                }
            )
    return results


if __name__ == "__main__":
    print(json.dumps({topology: compile_steps(topology) for topology in sys.argv[1:]}))
