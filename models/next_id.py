"""What a model of the next id offers: to the objectives that train it, and to what asks it for probabilities and text.

Legend: B batch, T positions, D embed, V vocab (padded), S cache length.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextIdConfig(ModelConfig, abc.ABC):
    """The config of a model that predicts each next id from those before it."""

    family: ClassVar[str] = "decoder"

    @abc.abstractmethod
    def build(self, vocab_size: int, rngs: nnx.Rngs) -> "NextIdModel":
        """The model as training begins with it."""

    @abc.abstractmethod
    def count_parameters(self, vocab_size: int) -> dict[str, int]:
        """Parameter counts by component, and "total". Rows that only pad the vocabulary are not counted."""

    @abc.abstractmethod
    def training_flops_per_token(self, vocab_size: int, sequence_length: int) -> dict[str, float]:
        """FLOPs to train on one position of a sequence, by component, and "total"; "softmax" is the projection onto the
        vocabulary."""

    def generation_flops_per_token(self, vocab_size: int, sequence_length: int) -> float:
        """FLOPs to generate one position of a sequence, on average over it: one forward pass, a third of training."""
        return self.training_flops_per_token(vocab_size, sequence_length)["total"] / 3

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that generation keeps of a position."""
        return 0


class NextIdModel(nnx.Module, abc.ABC):
    """Ids -> hidden states; what is done with them is the objective's.

    What `extend` keeps from call to call is the model's own affair (`empty_cache`). Here it is the ids themselves, of
    which each call computes all anew: right for every model, and slow.
    """

    config: NextIdConfig
    vocab_size: int

    @property
    @abc.abstractmethod
    def output_table(self) -> jax.Array:
        """f[V, D], the table that hidden states are projected onto, in the layout for that."""

    @abc.abstractmethod
    def __call__(self, ids_bt: jax.Array, segment_ids_bt: jax.Array, positions_bt: jax.Array) -> jax.Array:
        """i32[B, T] ids, documents (0 is padding) and positions within them -> f[B, T, D] hidden states, of which each
        depends on ids of its own document up to its own position."""

    def logits(self, hidden_bd: jax.Array) -> jax.Array:
        """f[..., D] -> f32[..., V]; the ids that only pad the table can never be drawn."""
        table_vd = self.output_table.astype(hidden_bd.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden_bd, table_vd, preferred_element_type=jnp.float32)
        return jnp.where(jnp.arange(table_vd.shape[0]) < self.vocab_size, logits, -jnp.inf)

    def empty_cache(self, batch_rows: int, length: int) -> Any:
        """What `extend` takes at first, with room for `length` positions; here i32[B, S]."""
        return jnp.zeros((batch_rows, length), jnp.int32)

    def extend(
        self, ids_bt: jax.Array, first_b: jax.Array, cache: Any, last_b: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """T more ids of one document a row, from position `first_b` (i32[B]) on -> f32[B, V] logits after the last, and
        the cache.

        `last_b` (i32[B]) is which of the T ids is the last, where rows are padded; the next ones then take the places
        of those behind it.
        """
        places_bt = first_b[:, None] + jnp.arange(ids_bt.shape[1])
        cache_bs = jax.vmap(lambda row_s, places_t, ids_t: row_s.at[places_t].set(ids_t))(cache, places_bt, ids_bt)
        positions_bs = jnp.broadcast_to(jnp.arange(cache_bs.shape[1]), cache_bs.shape)
        hidden_bsd = self(cache_bs, jnp.ones_like(cache_bs), positions_bs)
        asked_b = places_bt[:, -1] if last_b is None else first_b + last_b
        return self.logits(jnp.take_along_axis(hidden_bsd, asked_b[:, None, None], axis=1)[:, 0]), cache_bs
