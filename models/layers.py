"""The parts that every transformer here is built from.

Legend: B batch, T positions, D embed, H heads, K key/value heads, h head dimension, F mlp.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from models.attention import attend, attend_to_cache
from models.axes import constrain, current_placement, on_one_cpu, parameter
from tokenizer_lab.errors import UserError

KVCache = tuple[jax.Array, jax.Array]  # keys and values, f[B, S, K, h] each
Dropout = Callable[[jax.Array, int], jax.Array]  # f[B, ...] and a number of the place it is used at -> f[B, ...]

_UNROLLED_LAYERS = 12  # at a time; more take long to compile
RMS_NORM_EPSILON, LAYER_NORM_EPSILON = 1e-6, 1e-12  # the second as in BERT
_VOCAB_MULTIPLE = 128  # a lane tile of a TPU; an unpadded table costs two copies of itself there


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What the shapes of all transformers here have in common. The vocabulary is not in it: that is the
    representation's."""

    num_layers: int = 4
    embed_dim: int = 256
    """Width of the residual stream."""
    num_heads: int = 4
    num_kv_heads: int = 4
    """Key/value heads; fewer than num_heads is grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245)."""
    head_dim: int = 64
    mlp_dim: int = 768
    """Width inside the MLP; a gated one has three matrices."""
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or each layer from its input."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations and matrix products; parameters are float32."""

    causal: ClassVar[bool] = True
    """Whether a position sees only those before it."""
    published: ClassVar[bool] = False
    """Whether the layers are BERT's: post-norm, LayerNorm, biases, GELU, no rotary positions."""

    def __post_init__(self):
        for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim {self.head_dim} is odd; rotary positions rotate pairs, use an even one")
        if not self.rope_theta > 0:
            raise UserError(f"model.rope_theta is {self.rope_theta}; it must be more than 0, e.g. 10000")
        for field in dataclasses.fields(self):
            choices = get_args(field.type)
            if isinstance(field.type, type(Literal["a"])) and getattr(self, field.name) not in choices:
                raise UserError(
                    f"model.{field.name} is {getattr(self, field.name)!r}; it is one of {', '.join(choices)}"
                )

    @property
    def residual_scale(self) -> float:
        """Of the matrices that write to the residual stream, so that its variance does not grow with depth (GPT-2,
        section 2.3)."""
        return (2 * self.num_layers) ** -0.5

    def matrix(self, rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
        """A matrix as training begins with it."""
        return published_normal(rngs, shape) if self.published else fan_in_normal(rngs, shape, fan_in, scale)

    def padded_vocab_size(self, vocab_size: int) -> int:
        return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def fan_in_normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
    """f32 truncated normal (at two sigma) of standard deviation scale / sqrt(fan_in)."""
    truncated_std = 0.87962566103423978  # of the unit normal cut at two sigma
    return jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32) * (
        scale * fan_in**-0.5 / truncated_std
    )


def published_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> jax.Array:
    """f32 normal of standard deviation 0.02, truncated at two sigma: all of BERT's matrices (Devlin et al. 2019, arXiv
    1810.04805)."""
    return 0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = RMS_NORM_EPSILON) -> jax.Array:
    """Root-mean-square norm over the last axis, computed in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq.
    4)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (normed * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32 (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, width: int):
        self.scale, self.bias = parameter(jnp.ones(width), "norm"), parameter(jnp.zeros(width), "norm")

    def __call__(self, x: jax.Array, epsilon: float = LAYER_NORM_EPSILON) -> jax.Array:
        x32 = x.astype(jnp.float32)
        centered = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        normed = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
        return (normed * self.scale + self.bias).astype(x.dtype)


class Dense(nnx.Module):
    """x W + b."""

    def __init__(
        self, config: TransformerConfig, rngs: nnx.Rngs, in_dim: int, out_dim: int, in_axis: str, out_axis: str
    ):
        self.kernel = parameter(config.matrix(rngs, (in_dim, out_dim), in_dim), in_axis, out_axis)
        self.bias = parameter(jnp.zeros(out_dim), "norm" if out_axis in ("embed", "table") else out_axis)

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self.kernel) + self.bias.astype(x.dtype)


def project(x: jax.Array, kernel: jax.Array, num_inner: int = 1) -> jax.Array:
    """x f[..., *in] times kernel f[*in, *out] -> f[..., *out], in the type of x; `in` has `num_inner` axes."""
    kernel, placement = kernel[...].astype(x.dtype), current_placement()
    if placement is not None and placement.mesh.size > 1:  # rows and positions may each be split over devices
        return jnp.tensordot(x, kernel, num_inner)
    # Rows and positions as one axis: of two, XLA's CPU compiler copies the gradient transposed, element by element,
    # before it sums over them.
    matrix = kernel.reshape(math.prod(kernel.shape[:num_inner]), -1)
    return (x.reshape(-1, len(matrix)) @ matrix).reshape(*x.shape[: x.ndim - num_inner], *kernel.shape[num_inner:])


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


class Places(NamedTuple):
    """Where the positions of a batch are, the same for all layers."""

    segment_ids_bt: jax.Array
    positions_bt: jax.Array
    cos_btd: jax.Array
    """f32[B, T, h/2], of the angles that rotary positions turn pairs by; `sin_btd` likewise."""
    sin_btd: jax.Array

    @classmethod
    def of(cls, config: TransformerConfig, segment_ids_bt: jax.Array, positions_bt: jax.Array) -> "Places":
        """The angle of pair i is position * theta^(-2i/h) (Su et al. 2021, arXiv 2104.09864, section 3.2.2)."""
        half = config.head_dim // 2
        frequency_d = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
        angle_btd = positions_bt[:, :, None].astype(jnp.float32) * frequency_d
        return cls(segment_ids_bt, positions_bt, jnp.cos(angle_btd), jnp.sin(angle_btd))


def rotary_embedding(x_bthd: jax.Array, places: Places) -> jax.Array:
    """Rotates each pair (x[i], x[i + h/2]) by its position's angle."""
    half = x_bthd.shape[-1] // 2
    cos, sin = places.cos_btd[:, :, None], places.sin_btd[:, :, None]
    first, second = x_bthd[..., :half].astype(jnp.float32), x_bthd[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_bthd.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention.

    With rotary positions and, as an option, QK-norm (Henry et al. 2020, arXiv 2010.04245); in the published form with
    biases instead.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        d, heads, kv_heads, head_dim = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        self.config = config
        self.query = parameter(config.matrix(rngs, (d, heads, head_dim), d), "embed", "heads", "head_dim")
        self.key = parameter(config.matrix(rngs, (d, kv_heads, head_dim), d), "embed", "kv_heads", "head_dim")
        self.value = parameter(config.matrix(rngs, (d, kv_heads, head_dim), d), "embed", "kv_heads", "head_dim")
        self.out = parameter(
            config.matrix(rngs, (heads, head_dim, d), heads * head_dim, config.residual_scale),
            "heads",
            "head_dim",
            "embed",
        )
        if config.published:
            self.query_bias = parameter(jnp.zeros((heads, head_dim)), "heads", "head_dim")
            self.key_bias = parameter(jnp.zeros((kv_heads, head_dim)), "kv_heads", "head_dim")
            self.value_bias = parameter(jnp.zeros((kv_heads, head_dim)), "kv_heads", "head_dim")
            self.out_bias = parameter(jnp.zeros(d), "norm")
        elif config.qk_norm:
            self.query_scale = parameter(jnp.ones(head_dim), "head_dim")
            self.key_scale = parameter(jnp.ones(head_dim), "head_dim")

    def __call__(
        self, x_btd: jax.Array, places: Places, cache: KVCache | None = None, dropout: Dropout = no_dropout
    ) -> tuple[jax.Array, KVCache | None]:
        """x_btd -> what attention adds to it, and the cache with this call's keys and values.

        With a cache, all rows are at the same position and of one document, so that segment ids are not looked at.
        """
        config = self.config
        q_bthd, k_bthd, v_bthd = self._project(x_btd, places)
        q_bthd = constrain(q_bthd, "batch", "sequence", "heads", None)
        if cache is None:
            out_bthd = attend(
                q_bthd,
                k_bthd,
                v_bthd,
                places.segment_ids_bt,
                causal=config.causal,
                dropout=None if dropout is no_dropout else dropout,
            )
        else:
            first = places.positions_bt[0, 0]
            cache = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), first, axis=1)
                for old, new in zip(cache, (k_bthd, v_bthd))
            )
            out_bthd = attend_to_cache(q_bthd, *cache, first)
        out_btd = project(out_bthd, self.out, 2)
        return out_btd + self.out_bias.astype(x_btd.dtype) if config.published else out_btd, cache

    def _project(self, x_btd: jax.Array, places: Places) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, f[B, T, H or K, h]."""
        dtype, config = x_btd.dtype, self.config
        q_bthd, k_bthd, v_bthd = (project(x_btd, kernel) for kernel in (self.query, self.key, self.value))
        if config.published:
            return (
                q_bthd + self.query_bias.astype(dtype),
                k_bthd + self.key_bias.astype(dtype),
                v_bthd + self.value_bias.astype(dtype),
            )
        if config.qk_norm:
            q_bthd, k_bthd = rms_norm(q_bthd, self.query_scale[...]), rms_norm(k_bthd, self.key_scale[...])
        return rotary_embedding(q_bthd, places), rotary_embedding(k_bthd, places), v_bthd


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


def over_layers(layer: Callable, x: jax.Array, stacked: Any, remat: str) -> tuple[jax.Array, Any]:
    """`jax.lax.scan` over stacked layers, each of which the backward pass recomputes as far as
    `TransformerConfig.remat` says.

    A loop compiles once for all layers, but XLA's CPU runtime copies what it slices from and writes to the stack: there
    they are written out.
    """
    match remat:
        case "dots":
            layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
        case "full":
            layer = jax.checkpoint(layer)
    return jax.lax.scan(layer, x, stacked, unroll=_UNROLLED_LAYERS if on_one_cpu() else 1)
