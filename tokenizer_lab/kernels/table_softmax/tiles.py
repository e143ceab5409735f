"""Logits of a tile of the vocabulary and what becomes of them, in the jnp that XLA and Mosaic both compile.

Positions lie on lanes and ids on sublanes: what belongs to a position is a dense row [1, N], and reductions over ids
are elementwise until the last eight. A tile begins at `first_id`, a multiple of `ID_MULTIPLE`.

An id whose bias is -inf is none: its row of the table, which may hold anything, is nowhere seen. That is how the rows
that only pad a table are left out, and those behind its end in its last tile.

Axes: n = positions, v = ids of the tile, d = the width of hidden states.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

ID_MULTIPLE = 256  # two tiles of lanes: operations may treat ids in pairs that are 128 apart


class Loss(NamedTuple):
    """What the ids so far say of each position's cross-entropy, f32[1, N] each."""

    largest: jax.Array  # logit
    total: jax.Array  # of exp(logit - largest)
    label_logit: jax.Array  # -inf while the label is none of the ids

    @staticmethod
    def of_no_ids(num_positions: int) -> "Loss":
        def row(value):
            return jnp.full((1, num_positions), value, jnp.float32)

        # A finite `largest`: -inf - -inf is no number.
        return Loss(row(jnp.finfo(jnp.float32).min), row(0.0), row(-jnp.inf))

    def add(self, logits_vn: jax.Array, first_id: jax.Array, labels_1n: jax.Array) -> "Loss":
        """After a tile (Milakov & Gimelshein 2018, arXiv 1805.02867)."""
        largest_1n = jnp.maximum(self.largest, max_of_ids(logits_vn))
        total_1n = self.total * jnp.exp(self.largest - largest_1n) + jnp.sum(
            jnp.exp(logits_vn - largest_1n), axis=0, keepdims=True
        )
        is_label_vn = ids(first_id, logits_vn.shape) == labels_1n
        return Loss(
            largest_1n, total_1n, jnp.maximum(self.label_logit, max_of_ids(jnp.where(is_label_vn, logits_vn, -jnp.inf)))
        )

    @property
    def logz(self) -> jax.Array:
        return self.largest + jnp.log(self.total)

    def of_all(self) -> "Loss":
        """One state of all ids from those of parts of them, f32[parts, N] each."""
        largest_1n = max_of_ids(self.largest)
        total_1n = jnp.sum(self.total * jnp.exp(self.largest - largest_1n), axis=0, keepdims=True)
        return Loss(largest_1n, total_1n, max_of_ids(self.label_logit))

    def results(self) -> tuple[jax.Array, jax.Array]:
        """label_logit_1n, logz_1n."""
        return self.label_logit, self.logz


def logits(x_nd: jax.Array, table_vd: jax.Array, bias_v1: jax.Array) -> jax.Array:
    """f32[v, N] of a tile; -inf where the bias is."""
    contract_width = (((1,), (1,)), ((), ()))
    products_vn = jax.lax.dot_general(table_vd, x_nd, contract_width, preferred_element_type=jnp.float32)
    return with_bias(products_vn, bias_v1)


def with_bias(products_vn: jax.Array, bias_v1: jax.Array) -> jax.Array:
    """Logits from products with the table's rows."""
    return jnp.where(bias_v1 == -jnp.inf, -jnp.inf, products_vn + bias_v1)


def logits_gradient(
    logits_vn: jax.Array,
    first_id: jax.Array | int,
    labels_1n: jax.Array,
    logz_1n: jax.Array,
    by_nats_1n: jax.Array,
    by_logz_1n: jax.Array,
) -> jax.Array:
    """f32[v, N]: the loss by a tile's logits, from the loss by nats and by logz."""
    probabilities_vn = jnp.exp(logits_vn - logz_1n)
    is_label_vn = ids(first_id, logits_vn.shape) == labels_1n
    return (by_nats_1n + by_logz_1n) * probabilities_vn - jnp.where(is_label_vn, by_nats_1n, 0.0)


def without_none(table_vd: jax.Array, bias_v1: jax.Array) -> jax.Array:
    """The table with zeros in the rows of no id, to be multiplied with: even zero times a NaN is one."""
    return jnp.where(bias_v1 == -jnp.inf, 0, table_vd)


def ids(first_id: jax.Array | int, shape_vn: tuple[int, ...]) -> jax.Array:
    return first_id + jax.lax.broadcasted_iota(jnp.int32, shape_vn, 0)


def max_of_ids(x_vn: jax.Array) -> jax.Array:
    return jnp.max(x_vn, axis=0, keepdims=True)
