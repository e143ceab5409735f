"""The decoder transformer: causal language models over any representation's ids.

Legend: B batch, T positions, D embed, V vocab (padded), L layers, S cache length.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from models import flops
from models.attention import KVCache
from models.axes import constrain, parameter
from models.config import TransformerConfig
from models.layers import Block, over_layers
from models.next_id import NextIdConfig, NextIdModel
from models.norms import rms_norm
from models.rotary import Places


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(TransformerConfig, NextIdConfig):
    """The shape of a decoder."""

    kind: Literal["decoder"] = "decoder"
    tied_embeddings: bool = False
    """One table for looking ids up and for projecting onto them."""

    def build(self, vocab_size: int, rngs: nnx.Rngs) -> "Decoder":
        return Decoder(self, vocab_size, rngs=rngs)

    def count_parameters(self, vocab_size: int) -> dict[str, int]:
        counts, table = flops.layer_parameters(self), vocab_size * self.embed_dim
        counts["norm"] += self.embed_dim
        counts |= {"embedding": table, "softmax": 0 if self.tied_embeddings else table}
        return counts | {"total": sum(counts.values())}

    def training_flops_per_token(self, vocab_size: int, sequence_length: int) -> dict[str, float]:
        """FLOPs to train on one position of a sequence, by component, and "total".

        Causal attention is counted at half: a position sees (sequence_length + 1) / 2 others on average. That
        sequences hold several documents, which see less, is not taken off.
        """
        return flops.training_flops(self._forward_flops(vocab_size, sequence_length), lookups=self.embed_dim)

    def generation_flops_per_token(self, vocab_size: int, sequence_length: int) -> float:
        """FLOPs to generate one position of a sequence with a cache of keys and values, on average over the sequence:
        one forward pass."""
        return sum(self._forward_flops(vocab_size, sequence_length).values())

    @property
    def kv_cache_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * jnp.dtype(self.compute_dtype).itemsize

    def _forward_flops(self, vocab_size: int, sequence_length: int) -> dict[str, float]:
        return flops.layer_flops(self, (sequence_length + 1) / 2) | {"softmax": 2.0 * self.embed_dim * vocab_size}


class Decoder(NextIdModel):
    """Token ids -> the last hidden states; what is done with them is the objective's."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config, self.vocab_size = config, vocab_size
        table_shape = (config.padded_vocab_size(vocab_size), config.embed_dim)
        self.embedding = parameter(config.matrix(rngs, table_shape, config.embed_dim), "vocab", "embed")
        if not config.tied_embeddings:
            self.unembedding = parameter(config.matrix(rngs, table_shape, config.embed_dim), "vocab", "embed")
        self.blocks = nnx.vmap(lambda rngs: Block(config, rngs=rngs))(rngs.split(config.num_layers))
        self.final_scale = parameter(jnp.ones(config.embed_dim), "norm")

    @property
    def output_table(self) -> jax.Array:
        """f[V, D], the table that hidden states are projected onto, in their type and in the layout for that."""
        table_vd = self.embedding if self.config.tied_embeddings else self.unembedding
        # Split over vocab only, so that a loss in chunks gathers it, and sums its gradient up over devices, once and
        # not for every chunk.
        return constrain(table_vd.astype(self.config.compute_dtype), "vocab", None)

    def __call__(self, ids_bt: jax.Array, segment_ids_bt: jax.Array, positions_bt: jax.Array) -> jax.Array:
        """Hidden states are normed."""
        hidden_btd, _ = self._run(ids_bt, segment_ids_bt, positions_bt, None)
        return hidden_btd

    def extend(
        self, ids_bt: jax.Array, first_b: jax.Array, cache: KVCache, last_b: jax.Array | None = None
    ) -> tuple[jax.Array, KVCache]:
        positions_bt = first_b[:, None] + jnp.arange(ids_bt.shape[1])
        hidden_btd, cache = self._run(ids_bt, jnp.ones_like(ids_bt), positions_bt, cache)
        if last_b is None:
            return self.logits(hidden_btd[:, -1]), cache
        return self.logits(jnp.take_along_axis(hidden_btd, last_b[:, None, None], axis=1)[:, 0]), cache

    def empty_cache(self, batch_rows: int, length: int) -> KVCache:
        """Room for `length` positions: keys and values, f[L, B, S, K, h] each."""
        config = self.config
        shape = (config.num_layers, batch_rows, length, config.num_kv_heads, config.head_dim)
        return jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype)

    def _run(self, ids_bt, segment_ids_bt, positions_bt, cache):
        # Gathering rows from a table split over both axes would move the ids of the whole batch; split over vocab only.
        table_vd = constrain(self.embedding.astype(self.config.compute_dtype), "vocab", None)
        x_btd = constrain(table_vd[ids_bt], "batch", "sequence", "embed")
        places = Places.of(self.config, segment_ids_bt, positions_bt)
        block_def, blocks = nnx.split(self.blocks)

        def layer(x_btd, block_and_cache):
            block, cache = block_and_cache
            return nnx.merge(block_def, block)(x_btd, places, cache)

        x_btd, cache = over_layers(layer, x_btd, (blocks, cache), self.config.remat)
        return rms_norm(x_btd, self.final_scale[...]), cache
