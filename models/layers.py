"""The layers that every transformer here is a stack of.

Legend: B batch, T positions, D embed, F mlp.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.attention import Attention, KVCache
from models.axes import constrain, on_one_cpu, parameter
from models.config import Remat, TransformerConfig
from models.dense import Dense, project
from models.dropout import Dropout, no_dropout
from models.norms import LayerNorm, rms_norm
from models.rotary import Places

_UNROLLED_LAYERS = 12  # at a time; more take long to compile


class SwiGLU(nnx.Module):
    """The gated MLP, (silu(x G) * x U) W (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        d, f = config.embed_dim, config.mlp_dim
        self.gate = parameter(config.matrix(rngs, (d, f), d), "embed", "mlp")
        self.up = parameter(config.matrix(rngs, (d, f), d), "embed", "mlp")
        self.down = parameter(config.matrix(rngs, (f, d), f, config.residual_scale), "mlp", "embed")

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        hidden_btf = jax.nn.silu(project(x_btd, self.gate)) * project(x_btd, self.up)
        return project(constrain(hidden_btf, "batch", "sequence", "mlp"), self.down)


class Block(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.attention_scale = parameter(jnp.ones(config.embed_dim), "norm")
        self.attention = Attention(config, rngs=rngs)
        self.mlp_scale = parameter(jnp.ones(config.embed_dim), "norm")
        self.mlp = SwiGLU(config, rngs=rngs)

    def __call__(
        self, x_btd: jax.Array, places: Places, cache: KVCache | None = None
    ) -> tuple[jax.Array, KVCache | None]:
        added_btd, cache = self.attention(rms_norm(x_btd, self.attention_scale[...]), places, cache)
        x_btd = constrain(x_btd + added_btd, "batch", "sequence", "embed")
        x_btd = x_btd + self.mlp(rms_norm(x_btd, self.mlp_scale[...]))
        return constrain(x_btd, "batch", "sequence", "embed"), cache


class PostNormBlock(nnx.Module):
    """One layer in the published form: attention and a GELU MLP, each added and then normed (Devlin et al. 2019, arXiv
    1810.04805)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = LayerNorm(config.embed_dim)
        self.up = Dense(config, rngs, config.embed_dim, config.mlp_dim, "embed", "mlp")
        self.down = Dense(config, rngs, config.mlp_dim, config.embed_dim, "mlp", "embed")
        self.mlp_norm = LayerNorm(config.embed_dim)

    def __call__(self, x_btd: jax.Array, places: Places, dropout: Dropout = no_dropout) -> jax.Array:
        added_btd, _ = self.attention(x_btd, places, dropout=dropout)
        x_btd = constrain(self.attention_norm(x_btd + dropout(added_btd, 1)), "batch", "sequence", "embed")
        hidden_btf = constrain(jax.nn.gelu(self.up(x_btd), approximate=False), "batch", "sequence", "mlp")
        return constrain(self.mlp_norm(x_btd + dropout(self.down(hidden_btf), 2)), "batch", "sequence", "embed")


def recomputed(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """A layer of which the backward pass recomputes as much as `ModelConfig.remat` says."""
    match remat:
        case "dots":
            return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        case "full":
            return jax.checkpoint(layer)
        case "none":
            return layer


def over_layers(layer: Callable[..., Any], x: jax.Array, stacked: Any, remat: Remat) -> tuple[jax.Array, Any]:
    """`jax.lax.scan` over stacked layers, `recomputed` each.

    A loop compiles once for all layers, but XLA's CPU runtime copies what it slices from and writes to the stack: there
    they are written out.
    """
    return jax.lax.scan(recomputed(layer, remat), x, stacked, unroll=_UNROLLED_LAYERS if on_one_cpu() else 1)
