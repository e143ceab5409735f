"""Every implementation of the loss, values and gradients, against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.linear_cross_entropy import api, choose_num_chunks, linear_cross_entropy, reference

# Rows, positions, width, vocabulary, rows of the table: ragged, padded, of one.
SHAPES = [(2, 12, 8, 17, 17), (1, 6, 5, 33, 48), (3, 1, 4, 2, 128), (1, 8, 1, 1, 3)]
REFERENCE = reference.linear_cross_entropy


def chunked(num_chunks):
    return functools.partial(linear_cross_entropy, num_chunks=num_chunks)


def inputs(batch_rows, length, width, vocab_size, table_rows, dtype=np.float32, scale=1.0):
    """x, table, labels, and weights for nats and logz; the rows that only pad the table are large, so that they would show."""
    rng = np.random.default_rng(batch_rows * length)
    x = jnp.asarray(scale * rng.standard_normal((batch_rows, length, width)), dtype)
    table = rng.standard_normal((table_rows, width)).astype(np.float32)
    table[vocab_size:] *= 100
    labels = rng.integers(0, vocab_size, (batch_rows, length), np.int32)
    labels[0, 0] = vocab_size - 1
    weights = rng.standard_normal((2, batch_rows, length)).astype(np.float32)
    return x, jnp.asarray(table), labels, weights


def exact(x, table, labels, weights, vocab_size):
    """nats, logz and the gradients of sum(weights * (nats, logz)) by x and table, in float64."""
    x, table, (nats_weights, logz_weights) = (np.asarray(a, np.float64) for a in (x, table, weights))
    logits = x @ table[:vocab_size].T
    largest = logits.max(axis=-1, keepdims=True)
    logz = np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0]
    is_label = labels[..., None] == np.arange(vocab_size)
    nats = logz - logits[is_label].reshape(labels.shape)
    probabilities = np.exp(logits - logz[..., None])
    by_logits = (nats_weights + logz_weights)[..., None] * probabilities - nats_weights[..., None] * is_label
    by_table = np.zeros_like(table)
    by_table[:vocab_size] = np.einsum("btv,btd->vd", by_logits, x)
    return nats, logz, by_logits @ table[:vocab_size], by_table


def computed(implementation, x, table, labels, weights, vocab_size):
    """What `exact` returns, by an implementation."""

    def weighted(x, table):
        nats, logz = implementation(x, table, labels, vocab_size=vocab_size)
        return jnp.sum(weights[0] * nats) + jnp.sum(weights[1] * logz), (nats, logz)

    gradients, values = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(x, table)
    return *values, *gradients


@pytest.mark.parametrize("shape, implementation", [
    *((shape, REFERENCE) for shape in SHAPES),
    *((SHAPES[0], chunked(n)) for n in (1, 3, 12)),
    (SHAPES[1], chunked(2)),
    (SHAPES[2], chunked(1)),
    (SHAPES[3], chunked(4)),
])
def test_values_and_gradients_in_float32(shape, implementation):
    *arguments, vocab_size = *inputs(*shape), shape[3]
    names = ("nats", "logz", "gradient by x", "gradient by table")
    for name, actual, expected in zip(names, computed(implementation, *arguments, vocab_size), exact(*arguments, vocab_size), strict=True):
        assert actual.dtype == jnp.float32, name
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_a_bias_is_added_to_the_logits(num_chunks):
    x, table, labels, _ = inputs(2, 6, 8, 9, 16)
    bias = jnp.asarray(np.random.default_rng(5).normal(size=16), jnp.float32)
    wider = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1), jnp.concatenate([table, bias[:, None]], axis=1)
    for actual, expected in zip(chunked(num_chunks)(x, table, labels, bias, vocab_size=9), REFERENCE(*wider, labels, vocab_size=9)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", [REFERENCE, chunked(4)])
def test_bfloat16_hidden_states_give_float32_losses(implementation):
    *arguments, vocab_size = *inputs(2, 12, 32, 50, 64, dtype=jnp.bfloat16), 50
    x, table, labels, weights = arguments
    nats, logz, by_x, by_table = computed(implementation, *arguments, vocab_size)
    assert (nats.dtype, logz.dtype, by_x.dtype, by_table.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32)
    # The product is of bfloat16 numbers, but nothing is rounded after it.
    rounded = exact(x, table.astype(jnp.bfloat16).astype(jnp.float32), labels, weights, vocab_size)
    np.testing.assert_allclose(nats, rounded[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logz, rounded[1], rtol=1e-5, atol=1e-5)
    for gradient, expected in zip((by_x, by_table), rounded[2:]):
        np.testing.assert_allclose(np.asarray(gradient, np.float32), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("implementation", [REFERENCE, chunked(3)])
def test_large_logits_do_not_overflow(implementation):
    *arguments, vocab_size = *inputs(1, 6, 8, 9, 16, scale=1e3), 9
    for actual, expected in zip(computed(implementation, *arguments, vocab_size), exact(*arguments, vocab_size)):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-3)


def test_chunks_divide_the_length():
    x, table, labels, _ = inputs(1, 6, 4, 5, 8)
    with pytest.raises(AssertionError):
        linear_cross_entropy(x, table, labels, vocab_size=5, num_chunks=4)


def test_chunks_take_that_much_less_memory():
    *arguments, vocab_size = *inputs(1, 256, 16, 2048, 2048), 2048

    def temporary_bytes(num_chunks):
        x, table, labels, _ = arguments
        loss = lambda x, table: chunked(num_chunks)(x, table, labels, vocab_size=vocab_size)[0].sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1))).lower(x, table).compile().memory_analysis().temp_size_in_bytes

    all_logits = 4 * 256 * 2048
    assert temporary_bytes(1) >= all_logits
    assert temporary_bytes(32) < all_logits / 4  # the rest is gradients


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 2**20), st.integers(1, 8), st.integers(0, 3))
def test_choose_num_chunks(batch_rows, length_per_shard, vocab_size, num_devices, log2_shards):
    sequence_shards = 2**log2_shards
    length = length_per_shard * sequence_shards
    chosen = choose_num_chunks(batch_rows, length, vocab_size, num_devices, sequence_shards)
    possible = [n for n in range(1, length + 1) if length % n == 0 and length // n % sequence_shards == 0]
    small_enough = [n for n in possible if 4 * batch_rows * length // n * vocab_size / num_devices <= api.MAX_LOGITS_BYTES]
    assert chosen == (min(small_enough) if small_enough else max(possible))


def test_choose_num_chunks_refuses_a_length_that_does_not_shard():
    with pytest.raises(AssertionError, match="length of 6 does not split over 4"):
        choose_num_chunks(1, 6, 100, 8, sequence_shards=4)


def test_the_same_over_a_mesh():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("rows", "positions", "vocab"), axis_types=(AxisType.Auto,) * 3)
    x, table, labels, weights = inputs(4, 12, 8, 50, 64)
    put = lambda value, *axes: jax.device_put(value, NamedSharding(mesh, PartitionSpec(*axes)))  # noqa: E731
    sharded = computed(
        chunked(3), put(x, "rows", "positions"), put(table, "vocab", "rows"), put(labels, "rows", "positions"),
        put(weights, None, "rows", "positions"), 50)
    for actual, expected in zip(sharded, exact(x, table, labels, weights, 50)):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_chunks_leave_sharded_positions_where_they_are():
    mesh = Mesh(np.array(jax.devices()), ("positions",), axis_types=(AxisType.Auto,))
    x, table, labels, _ = inputs(1, 64, 8, 50, 64)
    positions = NamedSharding(mesh, PartitionSpec(None, "positions"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    loss = jax.jit(
        functools.partial(linear_cross_entropy, vocab_size=50, num_chunks=4), in_shardings=(positions, everywhere, positions), out_shardings=positions)
    program = loss.lower(x, table, labels).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program
