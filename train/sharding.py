"""Where every tensor lives: the mesh, and one table from logical axes to mesh axes.

Mesh axes: `replica` (between slices, over DCN), `fsdp` (parameters and batch rows), `tensor` (heads, mlp, vocab),
`sequence` (positions of a sequence).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from models.axes import Kernels, Placement
from tokenizer_lab.errors import Range, UserError, check_numbers

MESH_AXES = ("replica", "fsdp", "tensor", "sequence")

# Parameters, gradients and optimizer state.
PARAMETER_AXES = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "table": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
}
# Batches and activations.
ACTIVATION_AXES = {
    "batch": ("replica", "fsdp"),
    "sequence": "sequence",
    "embed": None,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis has; their product is the number of devices. One of them may be -1: all that are
    left."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        check_numbers(self, "mesh.", **dict.fromkeys(MESH_AXES, Range(least=-1, most=2**31 - 1)))
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh {dict(zip(MESH_AXES, sizes))}: every axis is at least 1, and at most one of them is -1 (all that"
                " are left)"
            )


def mesh_sizes(config: MeshConfig, num_devices: int, num_slices: int) -> dict[str, int]:
    """The size of each mesh axis over so many devices in TPU slices. Raises UserError where the sizes do not fit
    them."""
    sizes = list(dataclasses.astuple(config))
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % fixed == 0:
        sizes[sizes.index(-1)] = num_devices // fixed
    if math.prod(sizes) != num_devices:
        named = ", ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes))
        raise UserError(
            f"a mesh of {named} does not cover {num_devices} devices; make the sizes multiply to {num_devices}, e.g."
            f" --mesh.replica {num_slices} --mesh.fsdp -1 --mesh.tensor 1 --mesh.sequence 1"
        )
    if sizes[0] % num_slices:
        raise UserError(
            f"the devices are {num_slices} TPU slices, which only the replica axis may span, and mesh.replica is"
            f" {sizes[0]}; make it a multiple of {num_slices}"
        )
    return dict(zip(MESH_AXES, sizes))


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The named mesh over `devices` (all by default), `replica` between TPU slices. Raises UserError where the sizes do
    not fit them."""
    devices = jax.devices() if devices is None else list(devices)
    num_slices = _num_slices(devices)
    sizes = list(mesh_sizes(config, len(devices), num_slices).values())
    if num_slices > 1:
        within, between = [sizes[0] // num_slices, *sizes[1:]], [num_slices, 1, 1, 1]
        grid = mesh_utils.create_hybrid_device_mesh(within, between, devices=devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def dividing_mesh(shapes: Any, axes: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (all by default) that every parameter can be split over, whatever its width: over `fsdp` as
    far as they divide, and whole copies for the rest.

    `shapes` and `axes` are those of `parameter_shardings`.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp = math.gcd(len(devices) // _num_slices(devices), largest_split(shapes, axes, "fsdp"))
    return make_mesh(MeshConfig(replica=-1, fsdp=fsdp), devices)


def largest_split(shapes: Any, axes: Any, mesh_axis: str) -> int:
    """Into how many parts a mesh axis can split every parameter that it splits at all, at most: what divides this can
    too. 0 where it splits none.

    `shapes` and `axes` are those of `parameter_shardings`.
    """
    leaves = jax.tree.leaves(shapes, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    names_of = jax.tree.leaves(axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return math.gcd(
        *(
            size
            for leaf, names in zip(leaves, names_of, strict=True)
            for size, name in zip(leaf.shape, names)
            if PARAMETER_AXES[name] == mesh_axis
        )
    )


def _num_slices(devices: Sequence[jax.Device]) -> int:
    """How many TPU slices devices are of."""
    return len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1


def placement(mesh: Mesh, kernels: Kernels = "auto") -> Placement:
    """What `models.axes.use_placement` takes; `kernels` as in a recipe."""
    return Placement(mesh, ACTIVATION_AXES, kernels)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a mesh splits the rows of a batch."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def divisible_rows(mesh: Mesh, num_rows: int) -> int:
    """The next number of rows that a mesh splits evenly."""
    return -(-num_rows // row_shards(mesh)) * row_shards(mesh)


def check_batch(
    mesh: Mesh | AbstractMesh, batch_rows: int, sequence_length: int, num_microbatches: int = 1, section: str = "data"
) -> None:
    """Raises UserError where a global batch, whose rows a recipe's section gives, cannot be split over the mesh."""
    shards = row_shards(mesh)
    needed = shards * num_microbatches
    if batch_rows % needed:
        nearest = max(1, round(batch_rows / needed)) * needed
        split = (
            f"{num_microbatches} microbatches over {shards} devices" if num_microbatches > 1 else f"{shards} devices"
        )
        raise UserError(
            f"a batch of {batch_rows} rows cannot be split into {split} (replica x fsdp); use a multiple of {needed},"
            f" e.g. --{section}.batch-rows {nearest}"
        )
    if sequence_length % mesh.shape["sequence"]:
        raise UserError(
            f"a sequence length of {sequence_length} cannot be split over a sequence axis of {mesh.shape['sequence']};"
            " use a multiple of it for --data.sequence-length"
        )


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Of a batch array whose first axis is rows and whose second, if there are two, is positions."""
    axes = (ACTIVATION_AXES["batch"], ACTIVATION_AXES["sequence"])
    return NamedSharding(mesh, PartitionSpec(*axes[:ndim]))


def cursor_sharding(mesh: Mesh) -> NamedSharding:
    """Of the row streams' cursors i32[B, S + 3]: with the rows they belong to."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATION_AXES["batch"], None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh, shapes: Any, axes: Any) -> Any:
    """A NamedSharding for every parameter.

    Args:
      mesh: the mesh.
      shapes: nested dict of arrays or shapes.
      axes: nested dict of the same structure with tuples of logical axes (`models.axes.parameter_axes`).

    Raises:
      UserError: an axis does not split over its mesh axis.
    """

    def sharding(path, leaf, names):
        spec = [PARAMETER_AXES[name] for name in names]
        for name, mesh_axis, size in zip(names, spec, leaf.shape):
            if mesh_axis and size % mesh.shape[mesh_axis]:
                where = ".".join(str(key.key) for key in path)
                other, fits = "replica" if mesh_axis == "fsdp" else "fsdp", math.gcd(size, mesh.shape[mesh_axis])
                raise UserError(
                    f"axis {name!r} of {where} has size {size}, which a {mesh_axis} axis of {mesh.shape[mesh_axis]}"
                    f" does not divide; use --mesh.{mesh_axis} {fits} --mesh.{other} -1, or a multiple of"
                    f" {mesh.shape[mesh_axis]} for the size"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, shapes, axes, is_leaf=lambda leaf: hasattr(leaf, "shape"))


def local_rows(mesh: Mesh, batch_rows: int) -> list[int]:
    """The rows of the global batch that this process's devices hold, ascending."""
    indices = NamedSharding(mesh, PartitionSpec(ACTIVATION_AXES["batch"])).addressable_devices_indices_map(
        (batch_rows,)
    )
    return sorted({row for index in indices.values() if index for row in range(*index[0].indices(batch_rows))})


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from a batch of which every process has all rows; each takes those of its devices."""

    def put(value: np.ndarray) -> jax.Array:
        rows = local_rows(mesh, len(value))
        return put_rows(value[rows], rows, len(value), batch_sharding(mesh, value.ndim))

    return {name: put(value) for name, value in batch.items()}


def put_rows(value: np.ndarray, rows: Sequence[int], batch_rows: int, sharding: NamedSharding) -> jax.Array:
    """The global array [batch_rows, ...] of which this process has `rows` (ascending) in `value`."""
    where = {row: number for number, row in enumerate(rows)}

    def shard(index):
        own = [where[row] for row in range(*index[0].indices(batch_rows))]
        return value[own][(slice(None), *index[1:])]

    return jax.make_array_from_callback((batch_rows, *value.shape[1:]), sharding, shard)
