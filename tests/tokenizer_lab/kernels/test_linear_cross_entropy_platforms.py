"""Which implementation of the loss runs where, what it refuses, what memory it needs, and that it compiles for TPUs."""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokenizer_lab.kernels import implementations
from tokenizer_lab.kernels.linear_cross_entropy import PRODUCTION_SHAPES, api, linear_cross_entropy
from tokenizer_lab.kernels.table_softmax import chunked, pallas_tpu, tiles

VMEM_BYTES = {"v5e": 128 << 20, "v6e": 128 << 20, "v5p": 64 << 20, "tpu7x": 64 << 20}


def abstract(num_positions=8, num_rows=384, width=8, dtype=jnp.float32):
    """Abstract x, table and labels."""
    return (
        jax.ShapeDtypeStruct((1, num_positions, width), dtype),
        jax.ShapeDtypeStruct((num_rows, width), jnp.float32),
        jax.ShapeDtypeStruct((1, num_positions), jnp.int32),
    )


def lowered(platform, implementation, *shape, **options):
    loss = jax.jit(functools.partial(linear_cross_entropy, vocab_size=300, implementation=implementation))
    return loss.trace(*abstract(*shape, **options)).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    "platform, implementation, is_kernel",
    [
        ("cpu", "auto", False), ("cuda", "auto", False), ("tpu", "auto", True), ("tpu", "pallas", True),
        ("tpu", "chunked", False), ("tpu", "reference", False),
    ],
)  # fmt: skip
def test_the_platform_chooses_unless_told(platform, implementation, is_kernel):
    program = lowered(platform, implementation)
    assert ("tpu_custom_call" in program) == is_kernel and "triton" not in program


def test_without_a_kernel_few_logits_are_kept_and_many_are_not(monkeypatch):
    for max_logits_bytes, is_chunked in ((4 * 8 * 384, False), (4 * 8 * 384 - 1, True)):
        monkeypatch.setattr(api, "MAX_LOGITS_BYTES", max_logits_bytes)
        assert ("stablehlo.while" in lowered("cpu", "auto")) == is_chunked


def test_an_unknown_implementation_says_which_there_are():
    with pytest.raises(
        ValueError,
        match=(
            "no implementation 'triton' of linear_cross_entropy; there are auto, reference, chunked, pallas,"
            " interpreted, pallas_gpu, interpreted_gpu"
        ),
    ):
        lowered("cpu", "triton")


@pytest.fixture
def on_a_tpu():
    """A layout on a TPU that is not there, as far as the choice looks at it."""
    device = types.SimpleNamespace(platform="tpu")
    return types.SimpleNamespace(
        mesh=types.SimpleNamespace(devices=np.array([device]), shape={"fsdp": 2}, size=2),
        num_position_shards=2,
        vocab=None,
        position_axes=("fsdp",),
    )


@pytest.mark.parametrize(
    "width, dtype, why",
    [
        (
            65536,
            jnp.float32,
            r"hidden states \[4, 65536\] of type float32, whose width does not fit its 40 MiB of VMEM",
        ),
        (8, jnp.float16, "hidden states of type float16, only bfloat16 and float32"),
    ],
)
def test_what_the_kernel_does_not_take_is_named_once_and_computed_all_the_same(
    width, dtype, why, on_a_tpu, monkeypatch
):
    implementations.warn_once.cache_clear()
    monkeypatch.setattr(api, "_over_mesh", lambda passes, layout: passes)  # there is no such mesh to compute on
    loss = functools.partial(linear_cross_entropy, vocab_size=300, layout=on_a_tpu)
    trace = functools.partial(jax.eval_shape, loss, *abstract(width=width, dtype=dtype))
    with pytest.warns(
        UserWarning,
        match=(
            f"^the TPU kernel of linear_cross_entropy does not take {why}; "
            "it is computed by the reference implementation instead$"
        ),
    ) as caught:
        assert [result.shape for result in trace()] == [(1, 8)] * 2
        trace()
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_what_the_kernel_does_not_take_is_of_no_interest_elsewhere_unless_asked_for():
    implementations.warn_once.cache_clear()
    with warnings.catch_warnings(action="error"):
        assert "tpu_custom_call" not in lowered("cpu", "auto", dtype=jnp.float16)
    with pytest.raises(
        ValueError, match="does not take hidden states of type float16.*; use the implementation 'auto' or 'reference'"
    ):
        lowered("cpu", "pallas", dtype=jnp.float16)
    with pytest.raises(
        ValueError, match="the GPU kernel of linear_cross_entropy does not take hidden states of type float16"
    ):
        lowered("cpu", "pallas_gpu", dtype=jnp.float16)


def test_operands_of_other_shapes_are_refused():
    x, table, labels = abstract()
    for arguments, vocab_size in (
        ((x, abstract(width=9)[1], labels), 300),
        ((x, table, abstract(9)[2]), 300),
        ((x, table, jax.ShapeDtypeStruct(labels.shape, jnp.uint8)), 300),
        ((x, table, labels), 385),
        ((x, table, labels), 0),
    ):
        with pytest.raises(AssertionError):
            jax.eval_shape(functools.partial(linear_cross_entropy, vocab_size=vocab_size), *arguments)


def test_chunks_need_little_memory(monkeypatch):
    monkeypatch.setattr(chunked, "MAX_TILE_BYTES", 1 << 20)
    arguments = abstract(256, 65536, 8)

    def temporary_bytes(implementation):
        def loss(x, table, labels):
            return linear_cross_entropy(x, table, labels, vocab_size=65536, implementation=implementation)[0].sum()

        return jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    all_logits = 4 * 256 * 65536
    assert temporary_bytes("reference") >= all_logits
    assert temporary_bytes("chunked") < 10 * chunked.MAX_TILE_BYTES < all_logits / 6


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(
    "num_positions, width", [(1, 64), (2048, 128), *sorted({(shape[0], shape[2]) for shape in PRODUCTION_SHAPES})]
)
def test_the_vmem_budget_fits_every_chip(num_positions, width, itemsize):
    blocks = pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, itemsize)
    assert blocks.positions % 128 == 0 and blocks.ids % tiles.ID_MULTIPLE == 0
    sums, logits = 4 * width * max(blocks), 4 * blocks.positions * blocks.ids
    assert (
        sums + logits
        < pallas_tpu.vmem_bytes(blocks, width, itemsize)
        <= pallas_tpu.VMEM_LIMIT_BYTES
        <= min(VMEM_BYTES.values()) * 3 // 4
    )


@pytest.mark.parametrize("num_positions, width, expected", [
    (1, 128, (128, 512)), (129, 128, (256, 512)), (8192, 768, (1024, 512)),
    (8192, 2048, (512, 512)), (8192, 4096, (256, 256)),
])  # fmt: skip
def test_blocks_are_as_large_as_the_budget_allows(num_positions, width, expected):
    assert pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, 2) == expected


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'tokenizer-lab[tpu]'",
)
LARGEST = "8192x65536x768"


def compile_for_tpus(*arguments: str) -> dict[str, list[dict]]:
    """What linear_cross_entropy_compile.py prints."""
    script = pathlib.Path(__file__).with_name("linear_cross_entropy_compile.py")
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def most_temporary_bytes(num_positions: int, width: int) -> int:
    """What the kernels may need: neither logits nor the table once more."""
    return 2**20 + 8 * num_positions * width


@needs_libtpu
@pytest.mark.parametrize(
    "arguments",
    [
        ("v5e:2x2", "--shapes", LARGEST),
        pytest.param(("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"), marks=pytest.mark.slow),
        pytest.param(
            ("v5e:2x2", "--dtype", "float32", "--shapes", LARGEST, "8192x128256x4096"), marks=pytest.mark.slow
        ),
        # Unaligned, and less than a tile or than a block.
        pytest.param(
            ("v5e:2x2", "--shapes", "1x96x64", "130x100x40", "8192x24x128", "1000x257x768"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("v5p:2x2x1", "--mesh", "fsdp=2,tensor=2", "--shapes", "8192x16384x768", "8192x96x768"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_the_kernels_compile_for_tpus(arguments):
    """Loss and gradients, ahead of time and within the VMEM budget; nothing runs."""
    for topology, programs in compile_for_tpus(*arguments).items():
        for program in programs:
            num_positions, num_rows, width = program["shape"]
            assert program["kernels"] == ["backward_by_table", "backward_by_x", "forward"], (topology, program)
            assert program["tpu_custom_calls"] == 3, (topology, program)
            assert program["temp_bytes"] < most_temporary_bytes(num_positions, width), (topology, program)
            if num_positions == 8192 and num_rows % 512 == 0:
                assert program["flops"] == pytest.approx(5 * 2 * num_positions * num_rows * width, rel=0.01), (
                    topology,
                    program,
                )


@needs_libtpu
def test_plain_xla_needs_twenty_times_the_memory_that_the_kernels_may():
    """Of loss and gradients, at a production shape of a TPU."""
    (plain,) = compile_for_tpus("v5e:2x2", "--shapes", LARGEST, "--implementation", "reference")["v5e:2x2"]
    assert not plain["kernels"]
    assert plain["temp_bytes"] >= 20 * most_temporary_bytes(plain["shape"][0], plain["shape"][2])
