"""The decoder transformer: causal language models over any representation's ids.

Legend: B batch, T positions, D embed, V vocab (padded), L layers, S cache length.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from models import flops
from models.axes import constrain, parameter
from models.layers import Block, KVCache, fan_in_normal, rms_norm
from tokenizer_lab.errors import UserError

_VOCAB_MULTIPLE = 128  # a lane tile of a TPU; an unpadded table costs two copies of itself there


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder. The vocabulary is not in it: that is the representation's."""

    num_layers: int = 4
    embed_dim: int = 256
    """Width of the residual stream."""
    num_heads: int = 4
    num_kv_heads: int = 4
    """Key/value heads; fewer than num_heads is grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245)."""
    head_dim: int = 64
    mlp_dim: int = 768
    """Width of the gated MLP, which has three matrices."""
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    tied_embeddings: bool = False
    """One table for looking ids up and for projecting onto them."""
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or each layer from its input."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations and matrix products; parameters are float32."""

    def __post_init__(self):
        for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim {self.head_dim} is odd; rotary positions rotate pairs, use an even one")
        if not self.rope_theta > 0:
            raise UserError(f"model.rope_theta is {self.rope_theta}; it must be more than 0, e.g. 10000")
        for name in ("remat", "compute_dtype"):
            choices = get_args(self.__dataclass_fields__[name].type)
            if getattr(self, name) not in choices:
                raise UserError(f"model.{name} is {getattr(self, name)!r}; it is one of {', '.join(choices)}")

    @property
    def residual_scale(self) -> float:
        """Of the matrices that write to the residual stream, so that its variance does not grow with depth (GPT-2, section 2.3)."""
        return (2 * self.num_layers) ** -0.5

    def build(self, vocab_size: int, rngs: nnx.Rngs) -> "Decoder":
        return Decoder(self, vocab_size, rngs=rngs)

    def count_parameters(self, vocab_size: int) -> dict[str, int]:
        return flops.count_parameters(self, vocab_size)

    def training_flops_per_token(self, vocab_size: int, sequence_length: int) -> dict[str, float]:
        return flops.training_flops_per_token(self, vocab_size, sequence_length)

    def padded_vocab_size(self, vocab_size: int) -> int:
        return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


class Decoder(nnx.Module):
    """Token ids -> the last hidden states; what is done with them is the objective's."""

    def __init__(self, config: DecoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config, self.vocab_size = config, vocab_size
        table_shape = (config.padded_vocab_size(vocab_size), config.embed_dim)
        self.embedding = parameter(fan_in_normal(rngs, table_shape, config.embed_dim), "vocab", "embed")
        if not config.tied_embeddings:
            self.unembedding = parameter(fan_in_normal(rngs, table_shape, config.embed_dim), "vocab", "embed")
        self.blocks = nnx.vmap(lambda rngs: Block(config, rngs=rngs))(rngs.split(config.num_layers))
        self.final_scale = parameter(jnp.ones(config.embed_dim), "norm")

    @property
    def output_table(self) -> jax.Array:
        """f32[V, D], the table that hidden states are projected onto, in the layout for that."""
        table_vd = self.embedding if self.config.tied_embeddings else self.unembedding
        # Split over vocab only, so that a loss in chunks gathers it, and sums its gradient up over devices, once and not for every chunk.
        return constrain(table_vd[...], "vocab", None)

    def __call__(self, ids_bt: jax.Array, segment_ids_bt: jax.Array, positions_bt: jax.Array) -> jax.Array:
        """i32[B, T] ids, documents (0 is padding) and positions within them -> f[B, T, D] hidden states, normed."""
        hidden_btd, _ = self._run(ids_bt, segment_ids_bt, positions_bt, None)
        return hidden_btd

    def extend(self, ids_bt: jax.Array, first_position: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """T more ids of one document a row, all rows at `first_position` (i32[]) -> f32[B, V] logits after the last, and the cache."""
        positions_bt = jnp.broadcast_to(first_position + jnp.arange(ids_bt.shape[1]), ids_bt.shape)
        hidden_btd, cache = self._run(ids_bt, jnp.ones_like(ids_bt), positions_bt, cache)
        return self.logits(hidden_btd[:, -1]), cache

    def logits(self, hidden_bd: jax.Array) -> jax.Array:
        """f[..., D] -> f32[..., V]; the ids that only pad the table can never be drawn."""
        table_vd = self.output_table.astype(hidden_bd.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden_bd, table_vd, preferred_element_type=jnp.float32)
        return jnp.where(jnp.arange(table_vd.shape[0]) < self.vocab_size, logits, -jnp.inf)

    def empty_cache(self, batch_rows: int, length: int) -> KVCache:
        """Room for `length` positions: keys and values, f[L, B, S, K, h] each."""
        config = self.config
        shape = (config.num_layers, batch_rows, length, config.num_kv_heads, config.head_dim)
        return jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype)

    def _run(self, ids_bt, segment_ids_bt, positions_bt, cache):
        # Gathering rows from a table split over both axes would move the ids of the whole batch; split over vocab only.
        table_vd = constrain(self.embedding.astype(self.config.compute_dtype), "vocab", None)
        x_btd = constrain(table_vd[ids_bt], "batch", "sequence", "embed")
        block_def, blocks = nnx.split(self.blocks)

        def layer(x_btd, block_and_cache):
            block, cache = block_and_cache
            return nnx.merge(block_def, block)(x_btd, segment_ids_bt, positions_bt, cache)

        x_btd, cache = jax.lax.scan(_remat(layer, self.config.remat), x_btd, (blocks, cache))
        return rms_norm(x_btd, self.final_scale[...]), cache


def _remat(layer, policy: str):
    match policy:
        case "none":
            return layer
        case "dots":
            return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        case "full":
            return jax.checkpoint(layer)
