"""Rotary positions (Su et al. 2021, arXiv 2104.09864), and where the positions of a batch are.

Legend: B batch, T positions, H heads, h head dimension.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.config import TransformerConfig


class Places(NamedTuple):
    """Where the positions of a batch are, the same for all layers."""

    segment_ids_bt: jax.Array
    positions_bt: jax.Array
    cos_btd: jax.Array
    """f32[B, T, h/2], of the angles that rotary positions turn pairs by; `sin_btd` likewise."""
    sin_btd: jax.Array

    @classmethod
    def of(cls, config: TransformerConfig, segment_ids_bt: jax.Array, positions_bt: jax.Array) -> "Places":
        """The angle of pair i is position * theta^(-2i/h) (Su et al., section 3.2.2)."""
        half = config.head_dim // 2
        frequency_d = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle_btd = positions_bt[:, :, None].astype(jnp.float32) * frequency_d
        return cls(segment_ids_bt, positions_bt, jnp.cos(angle_btd), jnp.sin(angle_btd))


def rotary_embedding(x_bthd: jax.Array, places: Places) -> jax.Array:
    """Rotates each pair (x[i], x[i + h/2]) by its position's angle."""
    half = x_bthd.shape[-1] // 2
    cos, sin = places.cos_btd[:, :, None], places.sin_btd[:, :, None]
    first, second = x_bthd[..., :half].astype(jnp.float32), x_bthd[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_bthd.dtype)
