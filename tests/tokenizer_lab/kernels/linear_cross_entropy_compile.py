"""Compiles the loss and its gradient for TPUs that are not there, and prints what came out as JSON.

    python tests/tokenizer_lab/kernels/linear_cross_entropy_compile.py v5e:2x2 v6e:2x2 [--shapes 8192x65536x768]
    [--dtype bfloat16]
        [--mesh fsdp=2,tensor=2] [--implementation auto]

A shape is positions of a device x rows of the table x width; by default they are production's. `--implementation
reference` shows what plain XLA needs. It is a script of its own because libtpu reads its environment when it is loaded,
and because a kernel that the TPU compiler cannot take may abort the process.
"""

import argparse
import json
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.linear_cross_entropy import PRODUCTION_SHAPES, Layout, api, linear_cross_entropy
from tokenizer_lab.kernels.table_softmax import pallas_tpu
from train.plan.tpu_stand_in import topology_devices  # before JAX

VMEM_LIMIT_BYTES = pallas_tpu.VMEM_LIMIT_BYTES


def compile_loss(
    devices, shape: tuple[int, int, int], dtype: str, mesh_shape: dict[str, int], implementation: str
) -> dict:
    """What devices make of loss and gradients, at a shape of each of them."""
    num_positions, num_rows, width = shape
    num_devices = math.prod(mesh_shape.values())
    mesh = Mesh(
        np.array(devices[:num_devices]).reshape(*mesh_shape.values()),
        tuple(mesh_shape),
        axis_types=(AxisType.Auto,) * len(mesh_shape),
    )
    rows, vocab = mesh_shape.get("fsdp", 1), "tensor" if "tensor" in mesh_shape else None
    num_rows *= mesh_shape.get("tensor", 1)
    positions = PartitionSpec("fsdp" if "fsdp" in mesh_shape else None, None)
    layout = Layout(mesh, positions, vocab)

    def abstract(dtype, spec, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def loss(x_btd, table_vd, bias_v, labels_bt):
        nats_bt, logz_bt = linear_cross_entropy(
            x_btd,
            table_vd,
            labels_bt,
            bias_v,
            vocab_size=max(1, num_rows - 70),
            layout=layout,
            implementation=implementation,
        )
        return jnp.sum(nats_bt) + 1e-4 * jnp.sum(logz_bt**2)

    arguments = (
        abstract(dtype, PartitionSpec(*positions, None), rows, num_positions, width),
        abstract(dtype, PartitionSpec(vocab, None), num_rows, width),
        abstract(jnp.float32, PartitionSpec(vocab), num_rows),
        abstract(jnp.int32, positions, rows, num_positions),
    )
    # With the budget as its limit, the compiler refuses a kernel that takes more.
    pallas_tpu.VMEM_LIMIT_BYTES = VMEM_LIMIT_BYTES
    if blocks := pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, jnp.dtype(dtype).itemsize):
        pallas_tpu.VMEM_LIMIT_BYTES = pallas_tpu.vmem_bytes(blocks, width, jnp.dtype(dtype).itemsize)
    started = time.process_time()
    with jax.set_mesh(mesh):  # kernels ask it which chip they are compiled for
        shardings = tuple(argument.sharding for argument in arguments[:3])
        compiled = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=shardings).lower(*arguments).compile()
    hlo = compiled.as_text()
    return {
        "shape": list(shape),
        "blocks": blocks,
        "kernels": sorted(set(re.findall(r"linear_cross_entropy_(forward|backward_by_x|backward_by_table)", hlo))),
        "tpu_custom_calls": hlo.count('custom_call_target="tpu_custom_call"'),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "flops": compiled.cost_analysis()["flops"],
        "compile_cpu_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("topologies", nargs="+")
    parser.add_argument("--shapes", nargs="+", default=["x".join(map(str, shape)) for shape in PRODUCTION_SHAPES])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--mesh", default="fsdp=1")
    parser.add_argument("--implementation", default="auto")
    arguments = parser.parse_args()
    mesh_shape = {axis: int(size) for axis, size in (part.split("=") for part in arguments.mesh.split(","))}
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes]
    programs = {}
    for topology in arguments.topologies:
        devices = topology_devices(topology)
        programs[topology] = [
            compile_loss(devices, shape, arguments.dtype, mesh_shape, arguments.implementation) for shape in shapes
        ]
    print(json.dumps(programs))


if __name__ == "__main__":
    main()
