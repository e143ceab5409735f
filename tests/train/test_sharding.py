"""Mesh sizes, what fits a mesh and what is said where it does not, and where rows go."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax.sharding import PartitionSpec

from models.axes import parameter_axes
from models.decoder import Decoder, DecoderConfig
from tokenizer_lab.errors import UserError
from train.sharding import (
    MESH_AXES,
    MeshConfig,
    batch_sharding,
    check_batch,
    cursor_sharding,
    local_rows,
    make_mesh,
    parameter_shardings,
    put_rows,
)

# Meshes.


@pytest.mark.parametrize(
    "sizes, expected",
    [
        ({}, (1, 8, 1, 1)),
        (dict(fsdp=8), (1, 8, 1, 1)),
        (dict(tensor=2), (1, 4, 2, 1)),
        (dict(replica=-1, fsdp=2), (4, 2, 1, 1)),
        (dict(fsdp=1, sequence=-1), (1, 1, 1, 8)),
        (dict(replica=2, fsdp=-1, tensor=2, sequence=2), (2, 1, 2, 2)),
        (dict(replica=2, fsdp=2, tensor=2, sequence=1), (2, 2, 2, 1)),
    ],
    ids=str,
)
def test_the_axis_of_minus_one_takes_what_is_left(sizes, expected):
    mesh = make_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == MESH_AXES
    assert tuple(mesh.shape.values()) == expected
    assert sorted(device.id for device in mesh.devices.flat) == [device.id for device in jax.devices()]


@pytest.mark.parametrize(
    "sizes, words",
    [
        (
            dict(fsdp=3),
            "replica 1, fsdp 3, tensor 1, sequence 1 does not cover 8 devices; make the sizes multiply to 8",
        ),
        (dict(fsdp=16), "fsdp 16, .* does not cover 8 devices"),
        (dict(tensor=3), "fsdp -1, tensor 3, .* does not cover 8 devices"),
        (dict(tensor=16), "does not cover 8 devices"),
    ],
    ids=str,
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=0), dict(fsdp=-1, tensor=-1), dict(replica=-1, fsdp=-1, sequence=-1)], ids=str
)
def test_sizes_that_say_nothing_are_refused(sizes):
    with pytest.raises(UserError, match="every axis is at least 1, and at most one of them is -1") as error:
        MeshConfig(**sizes)
    assert all(f"'{axis}': {size}" in str(error.value) for axis, size in sizes.items())


def test_only_the_replica_axis_may_span_tpu_slices():
    devices = [types.SimpleNamespace(platform="tpu", slice_index=number // 4) for number in range(8)]
    with pytest.raises(UserError, match="2 TPU slices, .* mesh.replica is 1; make it a multiple of 2"):
        make_mesh(MeshConfig(), devices)


# What fits a mesh.


def test_batches_that_fit():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, sequence=2))
    check_batch(mesh, 4, 2)
    check_batch(mesh, 24, 10, num_microbatches=3)


@pytest.mark.parametrize(
    "batch_rows, num_microbatches, words",
    [
        (6, 1, r"a batch of 6 rows cannot be split into 4 devices \(replica x fsdp\); use .* --data.batch-rows 8$"),
        (30, 1, "30 rows .* multiple of 4, e.g. --data.batch-rows (28|32)$"),
        (1, 1, "e.g. --data.batch-rows 4$"),
        (8, 3, r"a batch of 8 rows cannot be split into 3 microbatches over 4 devices .*; use a multiple of 12"),
        (40, 3, "multiple of 12, e.g. --data.batch-rows 36$"),
    ],
)
def test_rows_that_do_not_split_are_refused_with_the_nearest_that_do(batch_rows, num_microbatches, words):
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    with pytest.raises(UserError, match=words):
        check_batch(mesh, batch_rows, 16, num_microbatches)


def test_a_length_that_does_not_split_is_refused():
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=4))
    with pytest.raises(
        UserError, match="a sequence length of 18 cannot be split over a sequence axis of 4; use a multiple of it"
    ):
        check_batch(mesh, 8, 18)


def decoder_parameters(vocab_size: int = 100, **options):
    config = DecoderConfig(
        **{"num_layers": 2, "embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 24} | options
    )
    state = nnx.state(nnx.eval_shape(lambda: Decoder(config, vocab_size, rngs=nnx.Rngs(0))), nnx.Param)
    return nnx.to_pure_dict(state), parameter_axes(state)


def test_every_matrix_is_split_over_fsdp_and_tensor():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    shapes, axes = decoder_parameters()
    shardings = parameter_shardings(mesh, shapes, axes)
    assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    assert shardings["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["blocks"]["attention"]["query"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert shardings["blocks"]["attention"]["out"].spec == PartitionSpec(None, "tensor", None, "fsdp")
    assert shardings["blocks"]["mlp"]["down"].spec == PartitionSpec(None, "tensor", "fsdp")
    for shape, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings)):
        matrix = shape.shape[0] > 16 or len(shape.shape) > 2
        assert np.prod(sharding.shard_shape(shape.shape)) * (4 if matrix else 1) == np.prod(shape.shape)


@pytest.mark.parametrize(
    "options, sizes, words",
    [
        (
            dict(embed_dim=18),
            dict(fsdp=4, tensor=2),
            "axis 'embed' of .* has size 18, which a fsdp axis of 4 does not divide; use --mesh.fsdp 2 --mesh.rep",
        ),
        (
            dict(),
            dict(fsdp=2, tensor=4),
            "axis 'kv_heads' of blocks.attention.key has size 2, which a tensor axis of 4 does not divide",
        ),
        (dict(num_heads=6), dict(fsdp=2, tensor=4), "axis 'kv_heads' of blocks.attention.key has size 2"),
        (
            dict(mlp_dim=25),
            dict(fsdp=4, tensor=2),
            "axis 'mlp' of blocks.mlp.(down|gate) has size 25, which a tensor axis of 2",
        ),
    ],
    ids=str,
)
def test_parameters_that_do_not_split_are_refused_by_name(options, sizes, words):
    with pytest.raises(UserError, match=words):
        parameter_shardings(make_mesh(MeshConfig(**sizes)), *decoder_parameters(**options))


# Rows.

MESH_SIZES = [(1, 8, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 1, 8), (8, 1, 1, 1)]


@pytest.mark.parametrize("sizes", MESH_SIZES, ids=str)
def test_one_process_holds_all_rows(sizes):
    mesh = make_mesh(MeshConfig(**dict(zip(MESH_AXES, sizes))))
    assert local_rows(mesh, 16) == list(range(16))


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(MESH_SIZES), st.integers(1, 3), st.integers(1, 2), st.sampled_from(["rows", "positions", "cursors"])
)
def test_put_rows_puts_every_value_where_it_belongs(sizes, rows_per_shard, positions_per_shard, what):
    mesh = make_mesh(MeshConfig(**dict(zip(MESH_AXES, sizes))))
    batch_rows, length = rows_per_shard * sizes[0] * sizes[1], positions_per_shard * sizes[3]
    shape = {"rows": (batch_rows,), "positions": (batch_rows, length), "cursors": (batch_rows, 3)}[what]
    sharding = cursor_sharding(mesh) if what == "cursors" else batch_sharding(mesh, len(shape))
    value = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    array = put_rows(value, local_rows(mesh, batch_rows), batch_rows, sharding)
    assert array.sharding == sharding and array.dtype == jnp.int32
    np.testing.assert_array_equal(array, value)
    for shard in array.addressable_shards:
        assert shard.data.shape[0] == rows_per_shard
        np.testing.assert_array_equal(shard.data, value[shard.index])
