"""Forward and backward pass in XLA, a tile of the vocabulary after the other: for where there is no kernel.

Positions are never cut, so they may be sharded; the backward pass computes the logits of a tile again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.table_softmax import tiles

MAX_TILE_BYTES = 16 << 20  # of the float32 logits of a tile; a handful of arrays of this size are alive at a time


def tile_ids(num_positions: int, itemsize: int = 4, max_bytes: int | None = None) -> int:
    """Ids in a tile: as many multiples as `max_bytes`, by default `MAX_TILE_BYTES`, allows of logits of `itemsize`
    bytes, at least one."""
    return max(1, (max_bytes or MAX_TILE_BYTES) // (itemsize * num_positions * tiles.ID_MULTIPLE)) * tiles.ID_MULTIPLE


def forward(
    of_no_ids: Callable[..., Any],
    add: Callable[..., Any],
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    numbers: tuple[jax.Array, ...],
) -> tuple[Any, ...]:
    """See `pallas_tpu.forward`."""
    rows = [x_n[None] for x_n in numbers]

    def add_tile(state, first_id, num_ids):
        table_tile_vd, bias_tile_v = _tile(x_nd, table_vd, bias_v, first_id, num_ids)
        return add(state, tiles.logits(x_nd, table_tile_vd, bias_tile_v[:, None]), first_id, *rows)

    state = _over_tiles(add_tile, of_no_ids(len(x_nd)), table_vd.shape[0], tile_ids(len(x_nd)))
    return tuple(x_1n[0] for x_1n in state.results())


def logits_gradient(
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    labels_n: jax.Array,
    logz_n: jax.Array,
    by_nats_n: jax.Array,
    by_logz_n: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """[v, N] in x's type, and f32[v]: the loss by a tile's logits and bias; labels count from the tile's first id."""
    logits_vn = tiles.logits(x_nd, table_vd, bias_v[:, None])
    by_logits_vn = tiles.logits_gradient(logits_vn, 0, labels_n[None], logz_n[None], by_nats_n[None], by_logz_n[None])
    return by_logits_vn.astype(x_nd.dtype), jnp.sum(by_logits_vn, axis=1)


def backward(
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    labels_n: jax.Array,
    logz_n: jax.Array,
    by_nats_n: jax.Array,
    by_logz_n: jax.Array,
    *,
    of_tile: Callable[..., Any] = logits_gradient,
    num_ids: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `pallas_tpu.backward`.

    Args:
      of_tile: what computes `logits_gradient`.
      num_ids: in a tile, by default `tile_ids`.
    """

    def add_tile(gradients, first_id, num_ids):
        by_x_nd, by_table_vd, by_bias_v = gradients
        table_tile_vd, bias_tile_v = _tile(x_nd, table_vd, bias_v, first_id, num_ids)
        by_logits_vn, by_bias_tile_v = of_tile(
            x_nd, table_tile_vd, bias_tile_v, labels_n - first_id, logz_n, by_nats_n, by_logz_n
        )
        table_tile_vd = tiles.without_none(table_tile_vd, bias_tile_v[:, None])
        by_x_nd += jnp.einsum("vn,vd->nd", by_logits_vn, table_tile_vd, preferred_element_type=jnp.float32)
        by_tile_vd = jnp.einsum("vn,nd->vd", by_logits_vn, x_nd, preferred_element_type=jnp.float32)
        by_table_vd = jax.lax.dynamic_update_slice(by_table_vd, by_tile_vd.astype(table_vd.dtype), (first_id, 0))
        return (
            by_x_nd,
            by_table_vd,
            jax.lax.dynamic_update_slice(by_bias_v, by_bias_tile_v.astype(bias_v.dtype), (first_id,)),
        )

    zeros = jnp.zeros(x_nd.shape, jnp.float32), jnp.zeros_like(table_vd), jnp.zeros_like(bias_v)
    by_x_nd, by_table_vd, by_bias_v = _over_tiles(add_tile, zeros, table_vd.shape[0], num_ids or tile_ids(len(x_nd)))
    return by_x_nd.astype(x_nd.dtype), by_table_vd, by_bias_v


def _over_tiles(add_tile: Callable[..., Any], state: Any, num_rows: int, num_ids: int) -> Any:
    """`add_tile(state, first_id, num_ids)` over all rows of the table; what the last tile lacks has its own program."""
    num_ids = min(num_ids, num_rows)
    num_whole, num_left = divmod(num_rows, num_ids)
    state = jax.lax.fori_loop(0, num_whole, lambda i, state: add_tile(state, i * num_ids, num_ids), state)
    return add_tile(state, num_whole * num_ids, num_left) if num_left else state


def _tile(x_nd, table_vd, bias_v, first_id, num_ids):
    table_tile_vd = jax.lax.dynamic_slice_in_dim(table_vd, first_id, num_ids).astype(x_nd.dtype)
    bias_tile_v = jax.lax.dynamic_slice_in_dim(bias_v, first_id, num_ids)
    return table_tile_vd, bias_tile_v.astype(jnp.float32)
