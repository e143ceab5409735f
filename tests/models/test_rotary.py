"""Rotary angles against float64, up to the last position that an int32 holds."""

import jax
import numpy as np
import pytest

from models.decoder import DecoderConfig
from models.rotary import Places

POSITIONS = [0, 1, 2, 511, 8191, 2**17 + 1, 2**20 - 1, 2**20, 2**24 + 1, 2**31 - 1]


@pytest.mark.parametrize("theta", [100.0, 1e4, 5e5, 1e7])
@pytest.mark.parametrize("head_dim", [2, 64, 128])
def test_angles_are_exact_at_every_position(theta, head_dim):
    config = DecoderConfig(head_dim=head_dim, rope_theta=theta)
    positions = np.array([POSITIONS], np.int32)
    places = jax.jit(Places.of, static_argnums=0)(config, np.ones_like(positions), positions)
    angles = positions[:, :, None].astype(np.float64) * theta ** (-np.arange(head_dim // 2) / (head_dim // 2))
    np.testing.assert_allclose(places.cos_btd, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(places.sin_btd, np.sin(angles), atol=1e-6)
