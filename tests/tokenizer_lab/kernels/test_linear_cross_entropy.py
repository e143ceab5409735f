"""Every implementation of the loss, values and gradients, against its definition in float64."""

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
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels import implementations
from tokenizer_lab.kernels.linear_cross_entropy import PRODUCTION_SHAPES, Layout, api, linear_cross_entropy
from tokenizer_lab.kernels.table_softmax import chunked, pallas_gpu, pallas_tpu, tiles

# Rows, positions, width, vocabulary, rows of the table: one position; a table of three rows; tiles cut by the table's
# end, with whole tiles and single ids behind the vocabulary, and two blocks of positions.
ONE, THREE_IDS, CUT = (1, 1, 8, 100, 128), (1, 8, 1, 1, 3), (2, 65, 32, 570, 896)
IMPLEMENTATIONS = "reference", "chunked", "interpreted", "interpreted_gpu"
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
NAMES = "nats", "logz", "gradient by x", "gradient by table", "gradient by bias"
VMEM_BYTES = {"v5e": 128 << 20, "v6e": 128 << 20, "v5p": 64 << 20, "tpu7x": 64 << 20}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of 256 ids, and blocks of 128 positions, where one would hold all; on a GPU, parts of two tiles."""
    monkeypatch.setattr(chunked, "MAX_TILE_BYTES", 1)
    monkeypatch.setattr(api, "BLOCKS", (pallas_tpu.Blocks(128, 256),))
    monkeypatch.setattr(pallas_gpu, "MAX_GRADIENT_BYTES", 1)
    monkeypatch.setattr(pallas_gpu, "PART_TILES", 2)


def inputs(batch_rows, length, width, vocab_size, table_rows, dtype=np.float32, scale=1.0):
    """x, table, bias, labels, weights of nats and logz; what only pads the table would show, if by nothing else as
    NaN."""
    rng = np.random.default_rng(batch_rows * length)
    x = jnp.asarray(scale * rng.standard_normal((batch_rows, length, width)), dtype)
    table = rng.standard_normal((table_rows, width)).astype(np.float32)
    table[vocab_size::2], table[vocab_size + 1 :: 2] = np.nan, 1e30
    bias = rng.standard_normal(table_rows).astype(np.float32)
    bias[vocab_size:] = 1e30
    labels = rng.integers(0, vocab_size, (batch_rows, length), np.int32)
    labels[0, 0] = vocab_size - 1
    weights = rng.standard_normal((2, batch_rows, length)).astype(np.float32)
    return x, jnp.asarray(table), jnp.asarray(bias), labels, weights


def exact(x, table, bias, labels, weights, vocab_size):
    """nats, logz and the gradients of sum(weights * (nats, logz)) by x, table and bias, in float64."""
    x, table, bias, (nats_weights, logz_weights) = (np.asarray(a, np.float64) for a in (x, table, bias, weights))
    logits = x @ table[:vocab_size].T + bias[:vocab_size]
    largest = logits.max(axis=-1, keepdims=True)
    logz = np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0]
    is_label = labels[..., None] == np.arange(vocab_size)
    nats = logz - logits[is_label].reshape(labels.shape)
    by_logits = (nats_weights + logz_weights)[..., None] * np.exp(logits - logz[..., None]) - nats_weights[
        ..., None
    ] * is_label
    by_table, by_bias = np.zeros_like(table), np.zeros_like(bias)
    by_table[:vocab_size] = np.einsum("btv,btd->vd", by_logits, x)
    by_bias[:vocab_size] = by_logits.sum(axis=(0, 1))
    return nats, logz, by_logits @ table[:vocab_size], by_table, by_bias


@functools.cache
def compiled(implementation, vocab_size, layout=None):
    """What `exact` returns, by an implementation, compiled once for each shape."""

    def weighted(x, table, bias, labels, weights):
        nats, logz = linear_cross_entropy(
            x, table, labels, bias, vocab_size=vocab_size, layout=layout, implementation=implementation
        )
        return jnp.sum(weights[0] * nats) + jnp.sum(weights[1] * logz), (nats, logz)

    differentiated = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))

    def all_results(*arguments):
        gradients, results = differentiated(*arguments)
        return *results, *gradients

    return all_results


def assert_exact(actual, arguments, vocab_size, tolerance=2e-5):
    for name, result, expected in zip(NAMES, actual, exact(*arguments, vocab_size), strict=True):
        assert np.isfinite(result).all(), name
        np.testing.assert_allclose(
            np.asarray(result, np.float32), expected, rtol=tolerance, atol=tolerance, err_msg=name
        )


@every_implementation
@pytest.mark.parametrize("shape", [ONE, THREE_IDS, CUT], ids=str)
def test_values_and_gradients(implementation, shape):
    arguments, vocab_size = inputs(*shape), shape[3]
    actual = compiled(implementation, vocab_size)(*arguments)
    assert all(result.dtype == jnp.float32 for result in actual)
    assert_exact(actual, arguments, vocab_size)


@every_implementation
def test_bfloat16_is_multiplied_and_nothing_else(implementation):
    x, table, *others = inputs(1, 5, 64, 300, 384, dtype=jnp.bfloat16)
    actual = compiled(implementation, 300)(x, table, *others)
    assert [result.dtype.name for result in actual] == ["float32"] * 2 + ["bfloat16"] + ["float32"] * 2
    rounded = table.astype(jnp.bfloat16).astype(jnp.float32)
    assert_exact(actual, (x, rounded, *others), 300, tolerance=0.03)
    for result, value in zip(actual[:2], exact(x, rounded, *others, 300)):
        np.testing.assert_allclose(result, value, rtol=1e-5, atol=1e-5)


@every_implementation
def test_large_logits_do_not_overflow(implementation):
    arguments = inputs(*CUT, scale=1e3)
    assert_exact(compiled(implementation, 570)(*arguments), arguments, 570, tolerance=5e-3)


@every_implementation
def test_positions_without_weight_have_no_gradient(implementation):
    x, table, bias, labels, weights = inputs(*CUT)
    weights[:, 0] = 0  # a whole row
    arguments = x, table, bias, labels, weights
    actual = compiled(implementation, 570)(*arguments)
    assert_exact(actual, arguments, 570)
    assert not np.asarray(actual[2])[0].any()
    for gradient in compiled(implementation, 570)(x, table, bias, labels, 0 * weights)[2:]:
        assert not gradient.any()


@every_implementation
def test_positions_that_fill_a_block_have_no_gradient(implementation):
    """A bias so large that its exponential is infinite, where no log Z is subtracted from it."""
    x, table, bias, labels, weights = inputs(*CUT)
    bias = bias.at[3].set(200.0)
    arguments = x, table, bias, labels, weights
    assert_exact(compiled(implementation, 570)(*arguments), arguments, 570, tolerance=1e-4)


@every_implementation
@pytest.mark.parametrize("label", [-1, 570, 896, 2**30])
def test_a_label_that_is_none_cannot_be_overlooked(implementation, label):
    x, table, bias, labels, weights = inputs(*CUT)
    labels[1, 7] = label
    nats, logz, *gradients = compiled(implementation, 570)(x, table, bias, labels, weights)
    assert np.isposinf(nats[1, 7]) and np.isfinite(np.delete(np.ravel(nats), 65 + 7)).all()
    assert all(np.isfinite(result).all() for result in (logz, *gradients))


def test_no_bias_is_a_bias_of_zeros():
    x, table, bias, labels, _ = inputs(*ONE)
    loss = jax.jit(functools.partial(linear_cross_entropy, vocab_size=100))
    for one, other in zip(loss(x, table, labels, 0 * bias), loss(x, table, labels), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_id_whose_bias_is_minus_infinity_is_none():
    x, table, bias, labels, weights = inputs(*CUT)
    labels = np.minimum(labels, 255)
    kept = jnp.where(jnp.arange(896) < 256, bias, -jnp.inf)  # whole tiles of nothing
    for implementation in IMPLEMENTATIONS[1:]:
        actual = compiled(implementation, 570)(x, table, kept, labels, weights)
        assert_exact(actual, (x, table, bias, labels, weights), 256)


# Over a mesh.

MESHES = [
    ("interpreted", dict(fsdp=2, tensor=2, sequence=2), True),
    ("interpreted_gpu", dict(fsdp=2, tensor=2, sequence=2), True),
    ("chunked", dict(tensor=8), True),  # some shards hold no id at all
    pytest.param("chunked", dict(replica=2), True, marks=pytest.mark.slow),
    pytest.param("interpreted", dict(fsdp=1), True, marks=pytest.mark.slow),
    pytest.param("reference", dict(fsdp=2, tensor=2, sequence=2), True, marks=pytest.mark.slow),
    pytest.param("chunked", dict(fsdp=2, tensor=2, sequence=2), False, marks=pytest.mark.slow),
    pytest.param("interpreted", dict(tensor=2), False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("implementation, sizes, along_sequence", MESHES, ids=str)
def test_the_same_over_a_mesh(implementation, sizes, along_sequence):
    axes = ("replica", "fsdp", "tensor", "sequence")
    shape = [sizes.get(axis, 1) for axis in axes]
    mesh = Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), axes, axis_types=(AxisType.Auto,) * 4)
    positions = PartitionSpec(("replica", "fsdp"), "sequence" if along_sequence else None)
    arguments = inputs(2, 6, 8, 200, 384)
    specs = (
        PartitionSpec(*positions, None),
        PartitionSpec("tensor", None),
        PartitionSpec("tensor"),
        positions,
        PartitionSpec(None, *positions),
    )
    placed = [jax.device_put(value, NamedSharding(mesh, spec)) for value, spec in zip(arguments, specs)]
    actual = compiled(implementation, 200, Layout(mesh, positions, "tensor"))(*placed)
    assert_exact(actual, arguments, 200)


def test_sharded_positions_stay_where_they_are():
    mesh = Mesh(np.array(jax.devices()), ("positions",), axis_types=(AxisType.Auto,))
    x, table, bias, labels, _ = inputs(1, 64, 8, 50, 64)
    spec = PartitionSpec(None, "positions")
    positions, everywhere = NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec())
    loss = jax.jit(
        functools.partial(linear_cross_entropy, vocab_size=50, layout=Layout(mesh, spec), implementation="chunked"),
        in_shardings=(positions, everywhere, positions, everywhere),
        out_shardings=positions,
    )
    program = loss.lower(x, table, labels, bias).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program


# Which implementation, and what it needs.


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
def test_the_vmem_budget_fits_every_chip(num_positions, width, itemsize, monkeypatch):
    monkeypatch.undo()
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
def test_blocks_are_as_large_as_the_budget_allows(num_positions, width, expected, monkeypatch):
    monkeypatch.undo()
    assert pallas_tpu.choose_blocks(api.BLOCKS, num_positions, width, 2) == expected


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed: pip install 'jax[tpu]'",
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
