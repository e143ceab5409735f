"""The parts that every transformer here is built from.

Legend: B batch, T positions, D embed, H heads, K key/value heads, h head dimension, F mlp.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.attention import attend, attend_to_cache
from models.axes import constrain, parameter

KVCache = tuple[jax.Array, jax.Array]  # keys and values, f[B, S, K, h] each


def fan_in_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
    """f32 truncated normal (at two sigma) of standard deviation scale / sqrt(fan_in)."""
    truncated_std = 0.87962566103423978  # of the unit normal cut at two sigma
    return jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32) * (scale * fan_in**-0.5 / truncated_std)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (normed * scale).astype(x.dtype)


def rotary_embedding(x_bthd: jax.Array, positions_bt: jax.Array, theta: float) -> jax.Array:
    """Rotates each pair (x[i], x[i + h/2]) by position * theta^(-2i/h) (Su et al. 2021, arXiv 2104.09864, section 3.2.2)."""
    half = x_bthd.shape[-1] // 2
    frequency_d = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_btd = positions_bt[:, :, None].astype(jnp.float32) * frequency_d
    cos, sin = jnp.cos(angle_btd)[:, :, None], jnp.sin(angle_btd)[:, :, None]
    first, second = x_bthd[..., :half].astype(jnp.float32), x_bthd[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_bthd.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions and, as an option, QK-norm (Henry et al. 2020, arXiv 2010.04245)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        d, heads, kv_heads, head_dim = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.config = config
        self.query = parameter(fan_in_normal(rngs, (d, heads, head_dim), d), "embed", "heads", "head_dim")
        self.key = parameter(fan_in_normal(rngs, (d, kv_heads, head_dim), d), "embed", "kv_heads", "head_dim")
        self.value = parameter(fan_in_normal(rngs, (d, kv_heads, head_dim), d), "embed", "kv_heads", "head_dim")
        self.out = parameter(
            fan_in_normal(rngs, (heads, head_dim, d), heads * head_dim, config.residual_scale), "heads", "head_dim", "embed")
        if config.qk_norm:
            self.query_scale = parameter(jnp.ones(head_dim), "head_dim")
            self.key_scale = parameter(jnp.ones(head_dim), "head_dim")

    def __call__(
        self, x_btd: jax.Array, segment_ids_bt: jax.Array, positions_bt: jax.Array, cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """x_btd -> what attention adds to it, and the cache with this call's keys and values.

        With a cache, all rows are at the same position and of one document, so that `segment_ids_bt` is not looked at.
        """
        dtype, config = x_btd.dtype, self.config
        q_bthd = jnp.einsum("btd,dhk->bthk", x_btd, self.query.astype(dtype))
        k_bthd = jnp.einsum("btd,dhk->bthk", x_btd, self.key.astype(dtype))
        v_bthd = jnp.einsum("btd,dhk->bthk", x_btd, self.value.astype(dtype))
        if config.qk_norm:
            q_bthd, k_bthd = rms_norm(q_bthd, self.query_scale[...]), rms_norm(k_bthd, self.key_scale[...])
        q_bthd = rotary_embedding(q_bthd, positions_bt, config.rope_theta)
        k_bthd = rotary_embedding(k_bthd, positions_bt, config.rope_theta)
        q_bthd = constrain(q_bthd, "batch", "sequence", "heads", None)
        if cache is None:
            out_bthd = attend(q_bthd, k_bthd, v_bthd, segment_ids_bt)
        else:
            first = positions_bt[0, 0]
            cache = tuple(jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), first, axis=1)
                          for old, new in zip(cache, (k_bthd, v_bthd)))
            out_bthd = attend_to_cache(q_bthd, *cache, first)
        return jnp.einsum("bthk,hkd->btd", out_bthd, self.out.astype(dtype)), cache


class SwiGLU(nnx.Module):
    """The gated MLP, (silu(x G) * x U) W (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        d, f = config.embed_dim, config.mlp_dim
        self.gate = parameter(fan_in_normal(rngs, (d, f), d), "embed", "mlp")
        self.up = parameter(fan_in_normal(rngs, (d, f), d), "embed", "mlp")
        self.down = parameter(fan_in_normal(rngs, (f, d), f, config.residual_scale), "mlp", "embed")

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        dtype = x_btd.dtype
        hidden_btf = jax.nn.silu(x_btd @ self.gate.astype(dtype)) * (x_btd @ self.up.astype(dtype))
        return constrain(hidden_btf, "batch", "sequence", "mlp") @ self.down.astype(dtype)


class Block(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        self.attention_scale = parameter(jnp.ones(config.embed_dim), "norm")
        self.attention = Attention(config, rngs=rngs)
        self.mlp_scale = parameter(jnp.ones(config.embed_dim), "norm")
        self.mlp = SwiGLU(config, rngs=rngs)

    def __call__(
        self, x_btd: jax.Array, segment_ids_bt: jax.Array, positions_bt: jax.Array, cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        added_btd, cache = self.attention(rms_norm(x_btd, self.attention_scale[...]), segment_ids_bt, positions_bt, cache)
        x_btd = constrain(x_btd + added_btd, "batch", "sequence", "embed")
        x_btd = x_btd + self.mlp(rms_norm(x_btd, self.mlp_scale[...]))
        return constrain(x_btd, "batch", "sequence", "embed"), cache
