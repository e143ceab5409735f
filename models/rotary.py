"""Rotary positions (Su et al. 2021, arXiv 2104.09864), and where the positions of a batch are.

Legend: B batch, T positions, H heads, h head dimension.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
        """The angle of pair i is position * theta^(-2i/h) (Su et al., section 3.2.2), for positions below 2^31."""
        angle_btd = _angles(positions_bt, config.rope_theta, config.head_dim // 2)
        return cls(segment_ids_bt, positions_bt, jnp.cos(angle_btd), jnp.sin(angle_btd))


def _angles(positions_bt: jax.Array, theta: float, num_pairs: int) -> jax.Array:
    """f32[B, T, h/2] angles, whole turns left out.

    A float32 holds no large angle: at position 2^20 it is wrong by 0.06. Turns are counted in units of 2^-32 instead,
    whose whole part wraps away in 32 bits; what a frequency has beyond such units is small enough for a float32.
    """
    units_d = theta ** (-np.arange(num_pairs) / num_pairs) / (2 * np.pi) * 2**32  # of a turn, for each position
    whole_d = np.floor(units_d)
    wrapped_btd = positions_bt[:, :, None].astype(jnp.uint32) * whole_d.astype(np.uint32)
    rest_btd = positions_bt[:, :, None].astype(jnp.float32) * (units_d - whole_d).astype(np.float32)
    units_btd = jax.lax.bitcast_convert_type(wrapped_btd, jnp.int32).astype(jnp.float32) + rest_btd
    return units_btd * np.float32(2 * np.pi / 2**32)


def rotary_embedding(x_bthd: jax.Array, places: Places) -> jax.Array:
    """Rotates each pair (x[i], x[i + h/2]) by its position's angle."""
    half = x_bthd.shape[-1] // 2
    cos, sin = places.cos_btd[:, :, None], places.sin_btd[:, :, None]
    first, second = x_bthd[..., :half].astype(jnp.float32), x_bthd[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_bthd.dtype)
