"""The training step on TPUs, as far as it can be known without one: it compiles, and the attention kernel is right.

Compiling is libtpu's own, ahead of time, for the chips that a case names (see train/plan/tpu_compile.py); nothing runs.
"""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import _splash_attend, attend
from models.axes import Placement, use_placement
from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from train.objectives import Objective
from train.optimizer import Budget, OptimizerConfig
from train.plan.compiler_process import compile_ahead
from train.plan.pod import Pod
from train.recipe import DataConfig, Recipe, from_json
from train.sharding import ACTIVATION_AXES, MESH_AXES, MeshConfig, make_mesh, placement

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'tokenizer-lab[tpu]'",
)


def compile_train_step(
    topology: str,
    num_slices: int = 1,
    mesh: dict | None = None,
    model: dict | None = None,
    objective: dict | None = None,
    optimizer: dict | None = None,
    vocab_size: int = 257,
    batch_rows: int = 32,
    sequence_length: int = 1024,
    num_microbatches: int = 1,
    optimization_level: str = "O0",
    kernels: str = "auto",
) -> dict:
    """What `train.plan.compiled_step.compile_step` says of a recipe with these options."""
    recipe = Recipe(
        name="compiled",
        representation="none",
        budget=Budget(steps=100),
        mesh=MeshConfig(**(mesh or {})),
        data=DataConfig(
            corpora=("none",), batch_rows=batch_rows, sequence_length=sequence_length, num_microbatches=num_microbatches
        ),
        model=from_json(DecoderConfig | EncoderConfig, {"num_layers": 2} | (model or {})),
        objective=from_json(Objective, objective or {}),
        optimizer=OptimizerConfig(**(optimizer or {})),
        kernels=kernels,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_OPTIMIZATION_LEVEL", optimization_level)
        return compile_ahead(recipe, vocab_size, Pod(topology, num_slices))


ELECTRA_SMALL = dict(
    model=dict(kind="encoder", form="bert", embed_dim=256, table_dim=128, mlp_dim=1024),
    objective=dict(kind="replaced"), vocab_size=30_522,
    batch_rows=64, sequence_length=128,
)  # fmt: skip


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("mesh, num_microbatches", [(dict(replica=2), 2), (dict(), 1)])
def test_the_step_of_a_pair_compiles_for_a_tpu_with_its_kernels(mesh, num_microbatches):
    """Generator and discriminator attend by the splash kernel, samples and loss are drawn by theirs, under
    `shard_map`."""
    result = compile_train_step(topology="v5e:2x2", mesh=mesh, num_microbatches=num_microbatches, **ELECTRA_SMALL)
    assert result["program"]["splash_kernels"] == ["dkv", "dq", "fwd"] and not result["warnings"]
    assert (
        result["program"]["tpu_custom_calls"] >= 3 * 2 + 3 and not result["program"]["uncounted_kernels"]
    )  # attention of two models, and the head's


@needs_libtpu
@pytest.mark.parametrize(
    "options, expected_collectives",
    [
        (
            dict(
                topology="v6e:2x2",
                num_slices=2,
                mesh=dict(replica=2, tensor=2, sequence=2),
                num_microbatches=2,
                model=dict(num_heads=4, num_kv_heads=4, head_dim=64),
            ),
            {"all-gather", "all-reduce"},
        ),
        pytest.param(
            dict(topology="v5e:4x4", mesh=dict(tensor=4), model=dict(num_heads=8, num_kv_heads=4, head_dim=64)),
            {"all-gather", "all-reduce"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(
                topology="v5p:2x2x4",
                mesh=dict(tensor=2),
                model=dict(num_heads=4, num_kv_heads=2, head_dim=128),
                optimizer=dict(kind="muon"),
            ),
            {"all-gather", "all-reduce"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["two-v6e-slices", "v5e-tensor", "v5p-muon"],
)
def test_the_step_compiles_for_a_tpu_with_its_kernels(options, expected_collectives):
    result = compile_train_step(**options)
    program, memory, state_bytes = result["program"], result["memory"], result["bytes"]["state"]
    assert program["splash_kernels"] == ["dkv", "dq", "fwd"]
    assert program["head_kernels"] == [
        f"linear_cross_entropy_{name}" for name in ("backward_by_table", "backward_by_x", "forward")
    ]
    assert program["tpu_custom_calls"] >= 6 and not program["uncounted_kernels"]
    assert result["warnings"] == []
    assert expected_collectives <= {one["kind"] for one in program["collectives"]}
    assert {one["network"] for one in program["collectives"]} == (
        {"ici", "dcn"} if "num_slices" in options else {"ici"}
    )
    # The state is split over the devices (up to what tiles pad) and donated.
    assert state_bytes <= memory["argument"] < 1.5 * state_bytes + 2**20
    assert memory["alias"] >= state_bytes
    assert result["slices_of_replicas"] == [[number] for number in range(options.get("num_slices", 1))]


@needs_libtpu
@pytest.mark.slow
def test_without_kernels_the_step_compiles_without_them():
    result = compile_train_step(topology="v5e:2x2", kernels="reference")
    assert result["program"]["tpu_custom_calls"] == 0 and not result["warnings"]


@needs_libtpu
@pytest.mark.slow
def test_the_kernels_part_of_a_steps_memory_is_a_twentieth_of_plain_xlas(tmp_path):
    """As the benchmark measures it, with 65,536 ids, 8,192 positions a chip and width 1,024, whose columns need no
    padding on four chips: a hundredth, of the compiler's temporaries and of what is alive at the peak. At width 768 the
    first is a twelfth, by gaps of packing (docs/performance.md).
    """
    root, figures = pathlib.Path(__file__).parents[3], tmp_path / "figures.json"
    subprocess.run(
        [sys.executable, root / "benchmarks/loss_memory.py", "--step", "--width", "1024", "--json-file", figures],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    rows = {row["loss"]: row for row in json.loads(figures.read_text())}
    for part in ("step, the loss's part", "alive, the loss's part"):
        assert rows["ours, plain"][part] > 4 * 8192 * 65536 / 2
        assert 20 * rows["ours, kernel"][part] <= rows["ours, plain"][part]


@needs_libtpu
@pytest.mark.slow
def test_a_billion_parameters_fit_a_v5e_pod():
    """1.4e9 parameters and 1,048,576 tokens a step on 256 chips of 16 GB; the bounds are the measured sizes + 10 %."""
    result = compile_train_step(
        topology="v5e:16x16",
        mesh=dict(tensor=4),
        vocab_size=32768,
        batch_rows=512,
        sequence_length=2048,
        optimization_level="UNKNOWN",
        model=dict(num_layers=24, embed_dim=2048, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=5632),
    )
    assert result["warnings"] == []
    assert result["memory"]["argument"] < 67e6
    assert result["memory"]["temp"] < 3.0e9


def tpu_placement(kernels: str = "auto", **mesh_sizes: int) -> Placement:
    """A placement on TPUs that are not there, for code that looks at the platform and the mesh's shape only."""
    device = types.SimpleNamespace(platform="tpu")
    shape = {axis: mesh_sizes.get(axis, 1) for axis in MESH_AXES}
    return Placement(
        types.SimpleNamespace(devices=np.array([device]), shape=shape, size=math.prod(shape.values())),
        ACTIVATION_AXES,
        kernels,
    )


def random_attention(rows: int, length: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype=jnp.float32):
    """q, k, v and segment ids of up to three documents a row and padding at the end of the first."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(rows, length, heads, head_dim)), dtype)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    segment_ids = 1 + np.sort(rng.integers(0, 3, (rows, length)), axis=1)
    segment_ids[0, -length // 5 :] = 0
    return q, k, v, segment_ids.astype(np.int32)


@pytest.mark.parametrize(
    "length, num_heads, num_kv_heads, head_dim, mesh_sizes, why",
    [
        (96, 2, 2, 64, {}, r"\[1, 96, 2, 64\]: sequence length 96 is not a multiple of 128"),
        (
            384,
            2,
            2,
            64,
            dict(sequence=2),
            r"\[1, 384, 2, 64\]: sequence length 384 is not a multiple of 128 x 2 sequence shards",
        ),
        (128, 2, 2, 48, {}, r"\[1, 128, 2, 48\]: head dimension 48 is not a multiple of 64"),
        (
            128,
            4,
            1,
            64,
            dict(tensor=2),
            r"\[1, 128, 4, 64\]: 4 heads and 1 key/value heads do not split over 2 tensor shards",
        ),
    ],
    ids=["length", "length-in-shards", "head-dim", "heads"],
)
def test_shapes_that_the_kernel_does_not_take_are_named_once_and_still_attended(
    length, num_heads, num_kv_heads, head_dim, mesh_sizes, why
):
    inputs = random_attention(1, length, num_heads, num_kv_heads, head_dim)
    with use_placement(tpu_placement(kernels="reference")):  # one CPU computes it in blocks, which round otherwise
        expected = attend(*inputs)
    with (
        use_placement(tpu_placement(**mesh_sizes)),
        pytest.warns(UserWarning, match=f"does not take queries of shape {why}") as caught,
    ):
        attended = attend(*inputs)
    np.testing.assert_array_equal(attended, expected)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


@pytest.mark.parametrize(
    "place",
    [lambda: placement(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])), lambda: tpu_placement(kernels="reference")],
)
def test_on_other_platforms_and_without_kernels_nothing_is_said(place):
    inputs = random_attention(1, 96, 2, 2, 48)
    with use_placement(place()), warnings.catch_warnings(action="error"):
        attend(*inputs)


@pytest.mark.parametrize(
    "length, num_heads, num_kv_heads, mesh_sizes",
    [
        (
            768,
            2,
            1,
            dict(fsdp=4, sequence=2),
        ),  # several blocks of queries a shard, or an unsharded mask would do as well
        pytest.param(512, 4, 2, dict(fsdp=2, tensor=2, sequence=2), marks=pytest.mark.slow),
        pytest.param(640, 8, 8, dict(replica=2, fsdp=1, tensor=4), marks=pytest.mark.slow),
        pytest.param(1536, 2, 1, dict(fsdp=2, sequence=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_splash_kernel_attends_as_plain_attention_does(length, num_heads, num_kv_heads, mesh_sizes):
    """Values and gradients, the kernel interpreted on 8 CPU devices."""
    mesh = make_mesh(MeshConfig(**mesh_sizes))
    q, k, v, segment_ids = random_attention(
        mesh.shape["replica"] * mesh.shape["fsdp"], length, num_heads, num_kv_heads, 64
    )
    # What comes out at padding is nobody's; every other output's gradient is its own.
    weight = np.where(segment_ids[..., None, None] > 0, np.random.default_rng(1).normal(size=q.shape), 0).astype(
        np.float32
    )

    def values_and_gradients(attend_):
        def weighted_sum(q, k, v):
            out = jnp.where(weight != 0, attend_(q, k, v, segment_ids), 0)
            return jnp.sum(out * weight), out

        gradients, out = jax.jit(jax.grad(weighted_sum, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    plain = values_and_gradients(attend)
    splash = values_and_gradients(lambda *inputs: _splash_attend(*inputs, placement(mesh), interpret=True))
    for name, ours, theirs in zip(("values", "dq", "dk", "dv"), splash, plain):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
