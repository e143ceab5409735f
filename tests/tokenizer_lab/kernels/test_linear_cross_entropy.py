"""Every implementation of the loss, values and gradients, against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.linear_cross_entropy import Layout, api, linear_cross_entropy
from tokenizer_lab.kernels.table_softmax import chunked, pallas_gpu, pallas_tpu

# Rows, positions, width, vocabulary, rows of the table: one position; a table of three rows; tiles cut by the table's
# end, with whole tiles and single ids behind the vocabulary, and two blocks of positions.
ONE, THREE_IDS, CUT = (1, 1, 8, 100, 128), (1, 8, 1, 1, 3), (2, 65, 32, 570, 896)
IMPLEMENTATIONS = "reference", "chunked", "interpreted", "interpreted_gpu"
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
NAMES = "nats", "logz", "gradient by x", "gradient by table", "gradient by bias"


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


@pytest.mark.parametrize("implementation", ["chunked", "interpreted", "interpreted_gpu"])
def test_the_program_as_it_ships(as_shipped, implementation):
    arguments, vocab_size = inputs(*CUT), CUT[3]
    assert_exact(compiled.__wrapped__(implementation, vocab_size)(*arguments), arguments, vocab_size)


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
