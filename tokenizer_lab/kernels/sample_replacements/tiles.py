"""The operation on a tile of the vocabulary: the loss of `table_softmax`, and a sample by noise (see `reference`).

Axes: n = positions, v = ids of the tile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.sample_replacements import reference
from tokenizer_lab.kernels.table_softmax import tiles

ID_GROUP = 2 * reference.PAIR_DISTANCE  # two ids share random bits, and a tile holds both
assert tiles.ID_MULTIPLE % ID_GROUP == 0


def one_below_other(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of two arrays [groups, v, N]."""
    return jnp.concatenate(pair, axis=1)


def one_below_other_by_triton(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of two arrays [1, v, N]: Triton joins along a new last axis only. No word goes to another thread for it."""
    first, second = pair
    return jnp.stack((first[0], second[0]), axis=-1).transpose(2, 0, 1)


class State(NamedTuple):
    """What the ids so far say of each position: f32[1, N], but `sample` i32[1, N]."""

    loss: tiles.Loss
    best_score: jax.Array  # logit / temperature + noise
    sample: jax.Array  # the id of the best score

    @staticmethod
    def of_no_ids(num_positions: int) -> "State":
        shape = (1, num_positions)
        return State(
            tiles.Loss.of_no_ids(num_positions), jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.int32)
        )

    def add(
        self,
        logits_vn: jax.Array,
        first_id: jax.Array,
        labels_1n: jax.Array,
        seed0_1n: jax.Array,
        seed1_1n: jax.Array,
        *,
        temperature: float,
        one_below_other: Callable[..., Any] = one_below_other,
    ) -> "State":
        """The state after a tile."""
        scores_vn = logits_vn * (1 / temperature) + reference.gumbel(
            _random_bits(seed0_1n, seed1_1n, first_id, logits_vn.shape[0], one_below_other)
        )
        score_1n = tiles.max_of_ids(scores_vn)
        # Of equal scores the lowest id: here by the minimum, between tiles because a later one has to be better.
        sample_1n = _lowest(tiles.ids(first_id, logits_vn.shape), scores_vn == score_1n)
        is_better_1n = score_1n > self.best_score
        return State(
            self.loss.add(logits_vn, first_id, labels_1n),
            jnp.where(is_better_1n, score_1n, self.best_score),
            jnp.where(is_better_1n, sample_1n, self.sample),
        )

    def of_all(self) -> "State":
        """One state of all ids from those of parts of them, [parts, N] each."""
        score_1n = tiles.max_of_ids(self.best_score)
        return State(self.loss.of_all(), score_1n, _lowest(self.sample, self.best_score == score_1n))

    def results(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """nats_1n, logz_1n, sample_1n."""
        return self.loss.logz - self.loss.label_logit, self.loss.logz, self.sample


def _lowest(ids_vn: jax.Array, is_one_vn: jax.Array) -> jax.Array:
    """The lowest of those that are one, i32[1, N]."""
    return jnp.min(jnp.where(is_one_vn, ids_vn, jnp.iinfo(jnp.int32).max), axis=0, keepdims=True)


def _random_bits(
    seed0_1n: jax.Array, seed1_1n: jax.Array, first_id: jax.Array, num_ids: int, one_below_other: Callable[..., Any]
) -> jax.Array:
    """`reference.random_bits` of a tile's ids, u32[v, N], with one call of Threefry for two."""
    groups = -(-num_ids // ID_GROUP)
    shape = groups, reference.PAIR_DISTANCE, seed0_1n.shape[1]
    group, offset = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    counter = (first_id + group * ID_GROUP + offset).astype(jnp.uint32)
    pair = reference.threefry(seed0_1n[None], seed1_1n[None], counter, jnp.uint32(0))
    return one_below_other(pair).reshape(groups * ID_GROUP, shape[2])[:num_ids]
