"""What matrices hold as training begins."""

import jax
import jax.numpy as jnp
from flax import nnx


def fan_in_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
    """f32 truncated normal (at two sigma) of standard deviation scale / sqrt(fan_in)."""
    truncated_std = 0.87962566103423978  # of the unit normal cut at two sigma
    return jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32) * (
        scale * fan_in**-0.5 / truncated_std
    )


def published_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> jax.Array:
    """f32 normal of standard deviation 0.02, truncated at two sigma: all of BERT's matrices (Devlin et al. 2019, arXiv
    1810.04805)."""
    return 0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)
