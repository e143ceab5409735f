"""The operation on a tile of the vocabulary, in the jnp that XLA and Mosaic both compile.

Positions lie on lanes and ids on sublanes: what belongs to a position is a dense row [1, N], and reductions over ids
are elementwise until the last eight. A tile begins at `first_id`, a multiple of 256 (two ids share random bits).

Axes: n = positions, v = ids of the tile, d = the width of hidden states.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.sample_replacements import reference

ID_GROUP = 2 * reference.PAIR_DISTANCE  # ids that a tile begins at a multiple of


class State(NamedTuple):
    """What the ids so far say of each position: f32[1, N], but `sample` i32[1, N]."""

    largest: jax.Array  # logit
    total: jax.Array  # of exp(logit - largest)
    label_logit: jax.Array
    best_score: jax.Array  # logit / temperature + noise
    sample: jax.Array  # the id of the best score

    @staticmethod
    def of_no_ids(num_positions: int) -> "State":
        def row(value, dtype=jnp.float32):
            return jnp.full((1, num_positions), value, dtype)

        return State(row(-jnp.inf), row(0.0), row(-jnp.inf), row(-jnp.inf), row(0, jnp.int32))

    def results(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """nats_1n, logz_1n, sample_1n."""
        logz_1n = self.largest + jnp.log(self.total)
        return logz_1n - self.label_logit, logz_1n, self.sample


def logits(x_nd: jax.Array, table_vd: jax.Array, bias_v1: jax.Array, first_id: jax.Array, vocab_size: int) -> jax.Array:
    """f32[v, N] of a tile; -inf behind the vocabulary, whatever the table holds there."""
    contract_width = (((1,), (1,)), ((), ()))
    products_vn = jax.lax.dot_general(table_vd, x_nd, contract_width, preferred_element_type=jnp.float32)
    return jnp.where(_ids(first_id, products_vn.shape) < vocab_size, products_vn + bias_v1, -jnp.inf)


def add_ids(
    state: State,
    logits_vn: jax.Array,
    first_id: jax.Array,
    labels_1n: jax.Array,
    seeds_2n: jax.Array,
    temperature: float,
) -> State:
    """The state after a tile (Milakov & Gimelshein 2018, arXiv 1805.02867), of which the first holds an id."""
    ids_vn = _ids(first_id, logits_vn.shape)
    largest_1n = jnp.maximum(state.largest, _max(logits_vn))
    total_1n = state.total * jnp.exp(state.largest - largest_1n) + _sum(jnp.exp(logits_vn - largest_1n))
    label_logit_1n = jnp.maximum(state.label_logit, _max(jnp.where(ids_vn == labels_1n, logits_vn, -jnp.inf)))
    scores_vn = logits_vn * (1 / temperature) + reference.gumbel(_random_bits(seeds_2n, first_id, logits_vn.shape[0]))
    score_1n = _max(scores_vn)
    # Of equal scores the lowest id: here by the minimum, between tiles because a later one has to be better.
    sample_1n = jnp.min(jnp.where(scores_vn == score_1n, ids_vn, jnp.iinfo(jnp.int32).max), axis=0, keepdims=True)
    is_better_1n = score_1n > state.best_score
    return State(
        largest_1n,
        total_1n,
        label_logit_1n,
        jnp.where(is_better_1n, score_1n, state.best_score),
        jnp.where(is_better_1n, sample_1n, state.sample),
    )


def logits_gradient(
    logits_vn: jax.Array,
    first_id: jax.Array,
    labels_1n: jax.Array,
    logz_1n: jax.Array,
    by_nats_1n: jax.Array,
    by_logz_1n: jax.Array,
) -> jax.Array:
    """f32[v, N]: the loss by a tile's logits, from the loss by nats and by logz."""
    probabilities_vn = jnp.exp(logits_vn - logz_1n)
    is_label_vn = _ids(first_id, logits_vn.shape) == labels_1n
    return (by_nats_1n + by_logz_1n) * probabilities_vn - jnp.where(is_label_vn, by_nats_1n, 0.0)


def _random_bits(seeds_2n: jax.Array, first_id: jax.Array, num_ids: int) -> jax.Array:
    """`reference.random_bits` of a tile's ids, u32[v, N], with one call of Threefry for two."""
    groups = -(-num_ids // ID_GROUP)
    shape = groups, reference.PAIR_DISTANCE, seeds_2n.shape[1]
    group, offset = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    counter = (first_id + group * ID_GROUP + offset).astype(jnp.uint32)
    pair = reference.threefry(seeds_2n[None, 0:1], seeds_2n[None, 1:2], counter, jnp.uint32(0))
    return jnp.concatenate(pair, axis=1).reshape(groups * ID_GROUP, shape[2])[:num_ids]


def _ids(first_id: jax.Array, shape_vn: tuple[int, int]) -> jax.Array:
    return first_id + jax.lax.broadcasted_iota(jnp.int32, shape_vn, 0)


def _max(x_vn: jax.Array) -> jax.Array:
    return jnp.max(x_vn, axis=0, keepdims=True)


def _sum(x_vn: jax.Array) -> jax.Array:
    return jnp.sum(x_vn, axis=0, keepdims=True)
