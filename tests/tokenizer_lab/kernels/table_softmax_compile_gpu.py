"""Compiles a vocabulary head and its gradient for H100s that are not there, and prints what came out as JSON. Needs
JAX's CUDA plugin:

    pip install --no-deps jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION
    python tests/tokenizer_lab/kernels/table_softmax_compile_gpu.py linear_cross_entropy --shapes 8192x65536x768
        [--dtype bfloat16] [--mesh fsdp=2,tensor=2] [--implementations pallas_gpu chunked reference]

A shape is positions of a device x rows of the table x width. It is a script of its own because JAX asks for platforms
when it is imported. `h100.pbtxt` is what the compiler knows of the chip.
"""

import argparse
import json
import math
import os
import pathlib
import re
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.linear_cross_entropy import Layout, linear_cross_entropy
from tokenizer_lab.kernels.sample_replacements import sample_replacements

KERNEL = re.compile(
    r'custom_call_target="(?:__gpu\$xla\.gpu\.triton|triton_kernel_call_ffi)".*?op_name="[^"]*?/(\w+)/pallas_call"'
)


def h100_mesh(mesh_shape: dict[str, int]) -> Mesh:
    """GPUs of one machine."""
    num_devices = math.prod(mesh_shape.values())
    description = pathlib.Path(__file__).with_name("h100.pbtxt").read_text()
    topology = topologies.get_topology_desc(
        topology_name="h100", platform="cuda", target_config=description, topology=f"1x1x{num_devices}"
    )  # slices x hosts x GPUs
    return Mesh(
        np.array(topology.devices).reshape(*mesh_shape.values()),
        tuple(mesh_shape),
        axis_types=(AxisType.Auto,) * len(mesh_shape),
    )


def cross_entropy(mesh: Mesh, num_rows: int, implementation: str):
    """A loss, and how its arguments lie on the mesh."""
    positions = PartitionSpec("fsdp" if "fsdp" in mesh.shape else None, None)
    vocab = "tensor" if "tensor" in mesh.shape else None

    def loss(x_btd, table_vd, bias_v, labels_bt):
        nats_bt, logz_bt = linear_cross_entropy(
            x_btd,
            table_vd,
            labels_bt,
            bias_v,
            vocab_size=max(1, num_rows - 70),
            layout=Layout(mesh, positions, vocab),
            implementation=implementation,
        )
        return jnp.sum(nats_bt) + 1e-4 * jnp.sum(logz_bt**2), ()

    return loss, (PartitionSpec(*positions, None), PartitionSpec(vocab, None), PartitionSpec(vocab), positions)


def replacements(mesh: Mesh, num_rows: int, implementation: str):
    """Likewise; every device has all of the table."""
    split, whole = PartitionSpec(tuple(mesh.shape)), PartitionSpec()
    specs = split, whole, whole, split, split

    def head(x_nd, table_vd, bias_v, labels_n, seeds_n2):
        return sample_replacements(
            x_nd, table_vd, labels_n, seeds_n2, bias_v, vocab_size=max(1, num_rows - 70), implementation=implementation
        )

    def loss(*arguments):
        nats_n, logz_n, sample_n = jax.shard_map(head, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(
            *arguments
        )
        return jnp.sum(nats_n) + 1e-4 * jnp.sum(logz_n**2), sample_n

    return loss, specs


def compile_loss(operation: str, mesh: Mesh, shape: tuple[int, int, int], dtype: str, implementation: str) -> dict:
    """What GPUs make of a loss and its gradients, at a shape of each of them."""
    num_positions, num_rows, width = shape
    if operation == "linear_cross_entropy":
        num_batch_rows, num_rows = mesh.shape.get("fsdp", 1), num_rows * mesh.shape.get("tensor", 1)
        loss, specs = cross_entropy(mesh, num_rows, implementation)
        labels = (num_batch_rows, num_positions)
    else:
        loss, specs = replacements(mesh, num_rows, implementation)
        labels = (mesh.size * num_positions,)
    types = [
        ((*labels, width), dtype),
        ((num_rows, width), dtype),
        ((num_rows,), jnp.float32),
        (labels, jnp.int32),
        ((*labels, 2), jnp.uint32),
    ]
    arguments = [jax.ShapeDtypeStruct(*type_, sharding=NamedSharding(mesh, spec)) for type_, spec in zip(types, specs)]
    started = time.process_time()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True)).lower(*arguments).compile()
    return {
        "implementation": implementation,
        "shape": list(shape),
        "kernels": sorted(KERNEL.findall(compiled.as_text())),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_cpu_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operation", choices=["linear_cross_entropy", "sample_replacements"])
    parser.add_argument("--shapes", nargs="+", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--mesh", default="fsdp=1")
    parser.add_argument("--implementations", nargs="+", default=["pallas_gpu"])
    arguments = parser.parse_args()
    mesh = h100_mesh({axis: int(size) for axis, size in (part.split("=") for part in arguments.mesh.split(","))})
    print(
        json.dumps(
            [
                compile_loss(
                    arguments.operation, mesh, tuple(map(int, shape.split("x"))), arguments.dtype, implementation
                )
                for shape in arguments.shapes
                for implementation in arguments.implementations
            ]
        )
    )


if __name__ == "__main__":
    main()
