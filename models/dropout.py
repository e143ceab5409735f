"""Dropout whose draws do not depend on how a batch is split."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Dropout = Callable[[jax.Array, int], jax.Array]  # f[B, ...] and a number of the place it is used at -> f[B, ...]


def no_dropout(x: jax.Array, place: int) -> jax.Array:
    del place
    return x


def row_dropout(row_seeds_b: jax.Array, rate: float) -> Dropout:
    """Dropout whose draws belong to rows (u32[B] seeds): neither devices nor microbatches change them."""

    def dropout(x: jax.Array, place: int) -> jax.Array:
        def keep(seed):
            return jax.random.bernoulli(jax.random.fold_in(jax.random.key(seed), place), 1 - rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(row_seeds_b), x / (1 - rate), 0)

    return dropout if rate else no_dropout
