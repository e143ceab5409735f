"""Attention within documents, against its definition written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from models.attention import _splash_attend, _splash_refuses, attend, attend_to_cache
from models.axes import Placement, use_placement

ROWS, LENGTH = 2, 24
# Ragged documents, one of a single position; the second row ends in padding.
SEGMENTS = np.stack([np.repeat([1, 2, 3, 4], [7, 1, 11, 5]), np.repeat([1, 2, 0], [3, 15, 6])]).astype(np.int32)


def naive_attention(q, k, v, visible):
    """f64[B, T, H, h] of queries [B, T, H, h], keys and values [B, S, K, h] and bool[B, T, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    rows, length, num_heads, head_dim = q.shape
    for row, t, head in np.ndindex(rows, length, num_heads):
        kv_head = head // (num_heads // k.shape[2])
        seen = visible[row, t]
        scores = k[row, seen, kv_head] @ q[row, t, head] / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[row, t, head] = weights @ v[row, seen, kv_head] / weights.sum()
    return out


def visible_in(segments):
    """bool[B, T, T]: the positions of a document up to this one."""
    length = segments.shape[1]
    return (segments[:, :, None] == segments[:, None, :]) & np.tril(np.ones((length, length), bool))


def random_qkv(num_heads, num_kv_heads, dtype="float32", length=LENGTH, head_dim=8):
    rng = np.random.default_rng(num_heads)
    return [
        jnp.asarray(rng.standard_normal((ROWS, length, count, head_dim)), dtype)
        for count in (num_heads, num_kv_heads, num_kv_heads)
    ]


def assert_near_where_not_padding(actual, expected, segments, atol):
    assert np.isfinite(np.asarray(actual, np.float32)).all()
    np.testing.assert_allclose(np.asarray(actual, np.float64)[segments > 0], expected[segments > 0], atol=atol)


@pytest.mark.parametrize(
    "num_heads, num_kv_heads, dtype, atol",
    [(4, 4, "float32", 2e-6), (6, 2, "float32", 2e-6), (3, 1, "float32", 2e-6), (4, 2, "bfloat16", 2e-2)],
)
def test_attend_is_causal_attention_within_documents(num_heads, num_kv_heads, dtype, atol):
    q, k, v = random_qkv(num_heads, num_kv_heads, dtype)
    out = jax.jit(attend)(q, k, v, SEGMENTS)
    assert out.shape == q.shape and out.dtype == dtype
    assert_near_where_not_padding(out, naive_attention(q, k, v, visible_in(SEGMENTS)), SEGMENTS, atol)


@pytest.mark.parametrize("length", [64, 65, 200, 700])  # one block of queries, more, and a last one that is shorter
def test_attend_is_causal_attention_in_blocks(length):
    q, k, v = random_qkv(4, 2, length=length)
    segments = np.sort(np.random.default_rng(length).integers(1, 4, (ROWS, length), np.int32))
    assert_near_where_not_padding(
        jax.jit(attend)(q, k, v, segments), naive_attention(q, k, v, visible_in(segments)), segments, 2e-6
    )


@pytest.mark.parametrize("first, num_new", [(0, LENGTH), (0, 5), (9, 3), (LENGTH - 1, 1)])
def test_attend_to_cache_sees_what_was_written_so_far(first, num_new):
    q, k, v = random_qkv(4, 2)
    q = q[:, first : first + num_new]
    visible = np.arange(LENGTH) <= first + np.arange(num_new)[:, None]
    expected = naive_attention(q, k, v, np.broadcast_to(visible, (ROWS, num_new, LENGTH)))
    # What lies behind in the cache, such as an earlier text, has no effect.
    written = first + num_new
    k, v = (x.at[:, written:].set(1e4) for x in (k, v))
    np.testing.assert_allclose(jax.jit(attend_to_cache)(q, k, v, jnp.int32(first)), expected, atol=2e-6)


@pytest.fixture(scope="module")
def placement():
    mesh = Mesh(
        np.array(jax.devices()).reshape(2, 2, 2), ("rows", "heads", "positions"), axis_types=(AxisType.Auto,) * 3
    )
    return Placement(mesh, {"batch": ("rows",), "sequence": "positions", "heads": "heads"})


def test_attend_is_the_same_over_a_mesh(placement):
    q, k, v = random_qkv(4, 2)

    def sharded(q, k, v):
        with use_placement(placement):
            return attend(
                *(
                    jax.lax.with_sharding_constraint(
                        x, jax.NamedSharding(placement.mesh, placement.spec("batch", "sequence", "heads", None))
                    )
                    for x in (q, k, v)
                ),
                SEGMENTS,
            )

    np.testing.assert_allclose(jax.jit(sharded)(q, k, v), jax.jit(attend)(q, k, v, SEGMENTS), atol=2e-6)


@pytest.mark.parametrize(
    "shapes, said",
    [
        (((2, 256, 4, 64), (2, 256, 2, 64)), None),
        (((2, 200, 4, 64), (2, 200, 2, 64)), "sequence length 200 is not a multiple of 128 x 2 sequence shards"),
        (((2, 256, 4, 32), (2, 256, 2, 32)), "head dimension 32 is not a multiple of 64"),
        (((2, 256, 3, 64), (2, 256, 3, 64)), "3 heads and 3 key/value heads do not split over 2 tensor shards"),
        (((2, 256, 4, 64), (2, 256, 1, 64)), "4 heads and 1 key/value heads do not split over 2 tensor shards"),
    ],
)
def test_what_the_splash_kernel_does_not_take_has_its_reason(placement, shapes, said):
    assert _splash_refuses(*shapes, placement) == said


def test_the_splash_kernel_is_the_same_attention_with_the_same_gradients(placement):
    length = 256
    q, k, v = random_qkv(4, 2, length=length, head_dim=64)
    segments = np.stack([np.repeat([1, 2, 3], [100, 1, 155]), np.repeat([1, 2, 0], [5, 200, 51])]).astype(np.int32)
    weights = np.random.default_rng(0).standard_normal(q.shape, np.float32) * (segments > 0)[:, :, None, None]

    def value_and_gradients(attention):
        loss = lambda q, k, v: (lambda out: (jnp.sum(weights * out), out))(attention(q, k, v))
        gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return out, gradients

    expected, expected_gradients = value_and_gradients(lambda q, k, v: attend(q, k, v, segments))
    out, gradients = value_and_gradients(lambda q, k, v: _splash_attend(q, k, v, segments, placement, interpret=True))
    assert_near_where_not_padding(out, np.asarray(expected), segments, atol=2e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, expected_gradient, atol=2e-5)
