"""Which implementation of the generator head runs where, what it refuses and needs, and that it compiles for TPUs."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from tokenizer_lab.kernels.sample_replacements import PRODUCTION_SHAPES, api, sample_replacements, tiles
from tokenizer_lab.kernels.table_softmax import chunked, pallas_tpu

VMEM_BYTES = {"v5e": 128 << 20, "v6e": 128 << 20, "v5p": 64 << 20, "tpu7x": 64 << 20}


def abstract(num_positions=130, num_rows=640, width=8):
    """Abstract x, table, labels and seeds."""
    return (
        jax.ShapeDtypeStruct((num_positions, width), jnp.float32),
        jax.ShapeDtypeStruct((num_rows, width), jnp.float32),
        jax.ShapeDtypeStruct((num_positions,), jnp.int32),
        jax.ShapeDtypeStruct((num_positions, 2), jnp.uint32),
    )


@pytest.mark.parametrize(
    "platform, implementation, is_kernel",
    [
        ("cpu", "auto", False), ("cuda", "auto", False), ("tpu", "auto", True), ("tpu", "pallas", True),
        ("tpu", "chunked", False), ("tpu", "reference", False),
    ],
)  # fmt: skip
def test_the_platform_chooses_unless_told(platform, implementation, is_kernel):
    traced = sample_replacements.trace(*abstract(), vocab_size=600, implementation=implementation)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in program) == is_kernel and "triton" not in program


def test_operands_of_other_shapes_are_refused():
    x, table, labels, seeds = abstract()
    other = abstract(131, 600, 9)
    signed = jax.ShapeDtypeStruct(seeds.shape, jnp.int32)
    bias = jax.ShapeDtypeStruct((600,), jnp.float32)
    for arguments, static in (
        ((x, other[1], labels, seeds), {}),
        ((x, abstract(num_rows=600)[1], labels, seeds), {}),
        ((x, table, other[2], seeds), {}),
        ((x, table, labels, other[3]), {}),
        ((x, table, labels, signed), {}),
        ((x, table, labels, seeds, bias), {}),
        ((x, table, labels, seeds), dict(vocab_size=641)),
        ((x, table, labels, seeds), dict(temperature=0.0)),
    ):
        with pytest.raises(AssertionError):
            sample_replacements.trace(*arguments, **dict(vocab_size=600) | static)


def test_chunks_need_little_memory(monkeypatch):
    num_positions, num_rows, width = 256, 65536, 8
    arguments = abstract(num_positions, num_rows, width)

    def temporary_bytes(implementation):
        def loss(x, table, labels, seeds):
            return sample_replacements(x, table, labels, seeds, vocab_size=num_rows, implementation=implementation)[
                0
            ].sum()

        return jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    all_logits = 4 * num_positions * num_rows
    assert temporary_bytes("reference") >= all_logits
    monkeypatch.setattr(chunked, "MAX_TILE_BYTES", 1 << 20)
    assert temporary_bytes("chunked") < 10 * chunked.MAX_TILE_BYTES < all_logits / 6


def test_tiles_are_bounded():
    for num_positions in (1, 100, 2048, 8192, 10**6):
        num_ids = chunked.tile_ids(num_positions)
        assert num_ids > 0 and num_ids % tiles.ID_GROUP == 0
        assert num_ids == tiles.ID_GROUP or 4 * num_positions * num_ids <= chunked.MAX_TILE_BYTES


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("num_positions, width", [(1, 64), (2048, 128), (8192, 768), (8192, 2048), (8192, 4096)])
def test_the_vmem_budget_fits_every_chip(num_positions, width, itemsize):
    blocks = pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, itemsize)
    assert blocks.positions % 128 == 0 and blocks.ids % tiles.ID_GROUP == 0
    sums = 4 * width * max(blocks)
    logits = 4 * blocks.positions * blocks.ids
    budget = pallas_tpu.vmem_bytes(blocks, width, itemsize)
    assert sums + logits < budget <= pallas_tpu.VMEM_LIMIT_BYTES <= min(VMEM_BYTES.values()) * 3 // 4


@pytest.mark.parametrize("num_positions, width, expected", [
    (1, 128, (128, 256)), (129, 128, (256, 256)), (8192, 768, (512, 256)), (8192, 4096, (256, 256)),
])  # fmt: skip
def test_blocks_are_as_large_as_the_budget_allows(num_positions, width, expected):
    assert pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, 2) == expected


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'tokenizer-lab[tpu]'",
)
@pytest.mark.parametrize(
    "topologies",
    [("v5e:2x2",), pytest.param(("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_the_kernels_compile_for_tpus(topologies):
    """Samples and gradients of production's shapes, ahead of time and within the VMEM budget; nothing runs."""
    script = pathlib.Path(__file__).with_name("sample_replacements_compile.py")
    result = subprocess.run([sys.executable, script, *topologies], capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-4000:]
    by_topology = json.loads(result.stdout.splitlines()[-1])
    for topology, programs in by_topology.items():
        shapes = {tuple(program["shape"]) for program in programs}
        expected = {shape for shape in PRODUCTION_SHAPES if topology == topologies[0] or shape[0] == 8192}
        assert shapes >= expected and topology in topologies
        for program in programs:
            assert program["tpu_custom_calls"] == 3, (topology, program)
            assert program["temp_bytes"] < 2**20, (topology, program)  # all logits are 250 MB to 2.2 GB
    assert len(by_topology) == len(topologies)
