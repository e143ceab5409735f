"""Norms over the last axis, computed in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.axes import parameter

RMS_NORM_EPSILON, LAYER_NORM_EPSILON = 1e-6, 1e-12  # the second as in BERT


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = RMS_NORM_EPSILON) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq.
    4)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (normed * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32 (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, width: int):
        self.scale, self.bias = parameter(jnp.ones(width), "norm"), parameter(jnp.zeros(width), "norm")

    def __call__(self, x: jax.Array, epsilon: float = LAYER_NORM_EPSILON) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
        return (normed * self.scale + self.bias).astype(x.dtype)
