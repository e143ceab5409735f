"""Attention within documents, against its definition written out in float64."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from models import attention
from models.attention import (
    _Causal,
    _Full,
    _splash_attend,
    _splash_refuses,
    attend,
    attend_to_cache,
    splash,
    splash_block,
    splash_mask,
)
from models.axes import Placement, use_placement
from tokenizer_lab.errors import UserError

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
    np.testing.assert_allclose(jax.jit(attend_to_cache)(q, k, v, jnp.full(len(q), first)), expected, atol=2e-6)


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
    assert _splash_refuses(*shapes, placement, causal=True) == said


def test_attention_to_both_sides_is_not_split_over_sequence_shards(placement):
    shapes = (2, 256, 4, 64), (2, 256, 2, 64)
    said = _splash_refuses(*shapes, placement, causal=False)
    assert said == "attention to both sides does not split over 2 sequence shards"
    whole = Placement(placement.mesh, placement.activations | {"sequence": None})
    assert _splash_refuses(*shapes, whole, causal=False) is None


@pytest.mark.parametrize(
    "ours, theirs, q_seq_shards",
    [(_Causal, splash_mask.CausalMask, 1), (_Causal, splash_mask.CausalMask, 2), (_Full, splash_mask.FullMask, 1)],
)
@pytest.mark.parametrize("length, block, keys", [(512, 128, 128), (1024, 128, 256), (1024, 256, 128)])
def test_masks_that_take_no_time_are_the_same_masks(ours, theirs, q_seq_shards, length, block, keys):
    sizes = {f"block_{name}": block for name in ("q", "q_dkv", "q_dq")}
    sizes |= {f"block_{name}": keys for name in ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute", "kv_dq")}
    made = [
        splash.make_splash_mha(
            splash_mask.MultiHeadMask([mask((length, length))] * 2),
            block_sizes=splash.BlockSizes(**sizes),
            head_shards=1,
            q_seq_shards=q_seq_shards,
        )
        for mask in (ours, theirs)
    ]
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        jax.tree.map(np.testing.assert_array_equal, getattr(made[0], name), getattr(made[1], name))


def test_a_mask_makes_no_block_but_those_on_the_diagonal(monkeypatch):
    """Of a million positions there are 2^40 pairs."""
    made, make = [], splash_mask.CausalMask.__getitem__
    monkeypatch.setattr(splash_mask.CausalMask, "__getitem__", lambda mask, at: (made.append(at), make(mask, at))[1])
    mask = _Causal((2**20, 2**20))
    blocks = [slice(start, start + 512) for start in range(0, 2**20, 512)]
    seen = [[mask[queries, keys].shape == (1, 1) for keys in blocks[:3]] for queries in blocks[2:]]
    assert seen == [[True, True, False], *[[True] * 3] * 2045] and made == [(blocks[2], blocks[2])]
    assert mask[blocks[9], blocks[8]].all() and not mask[blocks[8], blocks[9]].any()


@pytest.mark.parametrize(
    "num_queries, num_keys, block",
    [
        (512, 512, 512),
        (384, 768, 128),
        (256 * 5, 256 * 5, 256),
        (1 << 18, 1 << 18, 512),
        (1 << 19, 1 << 19, 1024),
        (1 << 18, 1 << 20, 1024),
        (1 << 20, 1 << 20, None),
        (513 * 128, 513 * 128, None),
    ],
)
def test_blocks_are_as_few_as_the_kernel_can_keep_account_of(num_queries, num_keys, block):
    assert splash_block(num_queries, num_keys) == block


def test_rows_too_long_for_the_kernel_are_refused_and_not_written_to_memory(monkeypatch):
    device = SimpleNamespace(platform="tpu")
    mesh = SimpleNamespace(shape={"heads": 1}, devices=np.array([device], object))
    placement = Placement(mesh, {"sequence": None, "heads": "heads"})
    monkeypatch.setattr(attention, "current_placement", lambda: placement)
    shaped = lambda heads: jax.ShapeDtypeStruct((1, 1 << 20, heads, 64), jnp.bfloat16)
    with pytest.raises(
        UserError, match="rows of 1,048,576 positions.*on 1 sequence shards are more than 262,144 pairs"
    ):
        attend(shaped(4), shaped(2), shaped(2), None)


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
