"""Products with matrices: by themselves, and with a bias as a layer."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.axes import current_placement, parameter
from models.config import TransformerConfig


class Dense(nnx.Module):
    """x W + b."""

    def __init__(
        self, config: TransformerConfig, rngs: nnx.Rngs, in_dim: int, out_dim: int, in_axis: str, out_axis: str
    ):
        self.kernel = parameter(config.matrix(rngs, (in_dim, out_dim), in_dim), in_axis, out_axis)
        self.bias = parameter(jnp.zeros(out_dim), "norm" if out_axis in ("embed", "table") else out_axis)

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self.kernel) + self.bias.astype(x.dtype)


def project(x: jax.Array, param: nnx.Param[Any], num_inner: int = 1) -> jax.Array:
    """x f[..., *in] times kernel f[*in, *out] -> f[..., *out], in the type of x; `in` has `num_inner` axes."""
    kernel, placement = param[...].astype(x.dtype), current_placement()
    if placement is not None and placement.mesh.size > 1:  # rows and positions may each be split over devices
        return jnp.tensordot(x, kernel, num_inner)
    # Rows and positions as one axis: of two, XLA's CPU compiler copies the gradient transposed, element by element,
    # before it sums over them.
    matrix = kernel.reshape(math.prod(kernel.shape[:num_inner]), -1)
    return (x.reshape(-1, len(matrix)) @ matrix).reshape(*x.shape[: x.ndim - num_inner], *kernel.shape[num_inner:])
