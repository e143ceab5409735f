"""Attention within documents: the layer, and what it computes with: JAX's own function on every platform, the splash
kernel on TPU.

Legend: B batch, T query positions, S key positions, D embed, H heads, K key/value heads, h head dimension.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as splash_mask,
)
from jax.sharding import NamedSharding, PartitionSpec

from models.axes import Placement, constrain, current_placement, on_one_cpu, parameter
from models.config import TransformerConfig
from models.dense import project
from models.dropout import Dropout, no_dropout
from models.norms import rms_norm
from models.rotary import Places, rotary_embedding
from tokenizer_lab.errors import UserError

KVCache = tuple[jax.Array, jax.Array]  # keys and values, f[B, S, K, h] each

_SPLASH_BLOCKS = (512, 1024, 256, 128)  # the first that divides a shard's queries into few enough blocks
_MAX_SPLASH_PAIRS = 1 << 18  # of blocks: the kernel keeps 3 bytes of each in scalar memory, of which a v5e has 1 MiB
_MAX_UNFUSED_LENGTH = 1 << 15  # 4 GiB of weights for each row and head
_LANES = 128
_QUERY_BLOCK, _MAX_QUERY_BLOCKS = 64, 8


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

        With a cache, each row is of one document, so that segment ids are not looked at.
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
            first_b = places.positions_bt[:, 0]
            write = jax.vmap(lambda old, new, first: jax.lax.dynamic_update_slice_in_dim(old, new, first, axis=0))
            keys, values = (write(old, new.astype(old.dtype), first_b) for old, new in zip(cache, (k_bthd, v_bthd)))
            cache = keys, values
            out_bthd = attend_to_cache(q_bthd, keys, values, first_b)
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


def attend(
    q_bthd: jax.Array,
    k_bshd: jax.Array,
    v_bshd: jax.Array,
    segment_ids_bt: jax.Array,
    *,
    causal: bool = True,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Attention that never crosses documents.

    Args:
      q_bthd: f[B, T, H, h] queries; k_bshd, v_bshd: f[B, T, K, h] with H a multiple of K.
      segment_ids_bt: i32[B, T]; positions attend only to positions of the same id. 0 marks padding, whose output is
        unspecified.
      causal: whether a position attends only to itself and those before it.
      dropout: of the attention weights (`models.dropout.row_dropout`), which are then written to memory.

    Returns:
      f[B, T, H, h].
    """
    placement = current_placement()
    if dropout is not None:
        return _attend_with_dropout(q_bthd, k_bshd, v_bshd, segment_ids_bt, causal, dropout)
    if placement is not None and placement.kernels != "reference" and placement.mesh.devices.flat[0].platform == "tpu":
        if (why := _splash_refuses(q_bthd.shape, k_bshd.shape, placement, causal)) is None:
            return _splash_attend(q_bthd, k_bshd, v_bshd, segment_ids_bt, placement, causal)
        if (length := q_bthd.shape[1]) > _MAX_UNFUSED_LENGTH:
            raise UserError(
                f"rows of {length:,} positions take the splash kernel (beyond {_MAX_UNFUSED_LENGTH:,} its weights would"
                f" not fit into memory), and it does not take them: {why}"
            )
        warnings.warn(
            f"splash attention does not take queries of shape {list(q_bthd.shape)}: {why}; attention writes its weights"
            " to memory instead",
            stacklevel=2,
        )
    if causal and on_one_cpu():
        return _attend_in_blocks(q_bthd, k_bshd, v_bshd, segment_ids_bt)
    same_document_btt = segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]
    return jax.nn.dot_product_attention(q_bthd, k_bshd, v_bshd, mask=same_document_btt[:, None], is_causal=causal)


def _attend_in_blocks(q_bthd, k_bshd, v_bshd, segment_ids_bt):
    """Causal attention, a block of queries after the other: none is computed against the keys behind its block."""
    length = q_bthd.shape[1]
    size = max(_QUERY_BLOCK, -(-length // _MAX_QUERY_BLOCKS))

    def block(first: int) -> jax.Array:
        queries, keys = slice(first, first + size), slice(0, first + size)
        visible_bts = segment_ids_bt[:, queries, None] == segment_ids_bt[:, None, keys]
        visible_bts &= jnp.tril(jnp.ones((length, length), bool))[queries, keys]
        return jax.nn.dot_product_attention(
            q_bthd[:, queries], k_bshd[:, keys], v_bshd[:, keys], mask=visible_bts[:, None]
        )

    return jnp.concatenate([block(first) for first in range(0, length, size)], axis=1)


def _attend_with_dropout(q_bthd, k_bshd, v_bshd, segment_ids_bt, causal, dropout):
    length, groups = q_bthd.shape[1], q_bthd.shape[2] // k_bshd.shape[2]
    k_bshd, v_bshd = (jnp.repeat(x, groups, axis=2) for x in (k_bshd, v_bshd))
    logits_bhts = (
        jnp.einsum("bthd,bshd->bhts", q_bthd, k_bshd, preferred_element_type=jnp.float32) * q_bthd.shape[-1] ** -0.5
    )
    visible_bts = segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]
    if causal:
        visible_bts &= jnp.tril(jnp.ones((length, length), bool))
    weights_bhts = jax.nn.softmax(logits_bhts, axis=-1, where=visible_bts[:, None])
    return jnp.einsum("bhts,bshd->bthd", dropout(weights_bhts, 0).astype(v_bshd.dtype), v_bshd)


def attend_to_cache(q_bthd: jax.Array, k_bshd: jax.Array, v_bshd: jax.Array, first_b: jax.Array) -> jax.Array:
    """Attention of T new positions a row, the first at `first_b` (i32[B]), to a cache of S >= first + T positions."""
    positions_bt = first_b[:, None] + jnp.arange(q_bthd.shape[1])
    visible_bts = jnp.arange(k_bshd.shape[1]) <= positions_bt[:, :, None]
    return jax.nn.dot_product_attention(q_bthd, k_bshd, v_bshd, mask=visible_bts[:, None])


def _axis_size(placement: Placement, logical: str) -> int:
    axes = placement.activations[logical]
    axes = (axes,) if isinstance(axes, str) else axes or ()
    size = 1
    for axis in axes:
        size *= placement.mesh.shape[axis]
    return size


def _splash_refuses(
    q_shape: tuple[int, ...], k_shape: tuple[int, ...], placement: Placement, causal: bool
) -> str | None:
    """Why the splash kernel cannot take these global shapes, or None."""
    _, length, num_heads, head_dim = q_shape
    sequence_shards, head_shards = _axis_size(placement, "sequence"), _axis_size(placement, "heads")
    if length % (_LANES * sequence_shards):
        return f"sequence length {length} is not a multiple of {_LANES} x {sequence_shards} sequence shards"
    if splash_block(length // sequence_shards, length) is None:
        return (
            f"{length:,} positions on {sequence_shards} sequence shards are more than {_MAX_SPLASH_PAIRS:,} pairs of"
            " blocks; use a multiple of 1,024 positions, fewer of them, or a larger --mesh.sequence"
        )
    if sequence_shards > 1 and not causal:  # JAX 0.10 to 0.12 fail where no block of a mask is seen in part
        return f"attention to both sides does not split over {sequence_shards} sequence shards"
    if head_dim % 64:
        return f"head dimension {head_dim} is not a multiple of 64"
    if num_heads % head_shards or k_shape[2] % head_shards:
        return f"{num_heads} heads and {k_shape[2]} key/value heads do not split over {head_shards} tensor shards"
    return None


class _Causal(splash_mask.CausalMask):
    """A mask of which only the blocks on the diagonal are made: of the others JAX asks whether all or none of a block
    is visible, once for each trace and block, which takes 4 s in rows of 32k positions and an hour in rows of 1M."""

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        queries, keys = index
        if keys.stop <= queries.start or keys.start >= queries.stop:
            return np.full((1, 1), keys.stop <= queries.start)
        return super().__getitem__(index)


class _Full(splash_mask.FullMask):
    """Likewise where all is visible."""

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        return np.ones((1, 1), bool)


def splash_block(num_queries: int, num_keys: int) -> int | None:
    """Queries and keys that the splash kernel takes at a time, of so many on a shard; None where it takes no so
    many."""
    fits = lambda size: num_queries % size == 0 and num_queries // size * (num_keys // size) <= _MAX_SPLASH_PAIRS
    return next(filter(fits, _SPLASH_BLOCKS), None)


def _splash_attend(q_bthd, k_bshd, v_bshd, segment_ids_bt, placement, causal=True, interpret=False):
    """`attend` by the splash kernel under `shard_map`: queries split over sequence shards, keys and values gathered.

    `interpret` runs the kernel on any platform, slowly.
    """
    mesh, (_, length, num_heads, head_dim) = placement.mesh, q_bthd.shape
    sequence_shards, head_shards = _axis_size(placement, "sequence"), _axis_size(placement, "heads")
    block = splash_block(length // sequence_shards, length)
    assert block, "what the kernel does not take has been refused"
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash.make_splash_mha(
        mask=splash_mask.MultiHeadMask([(_Causal if causal else _Full)((length, length))] * num_heads),
        head_shards=head_shards,
        q_seq_shards=sequence_shards,
        block_sizes=sizes,
        interpret=interpret,
    )
    batch, sequence, heads = (placement.activations[name] for name in ("batch", "sequence", "heads"))
    kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, sequence)))
    query, key = PartitionSpec(batch, heads, sequence, None), PartitionSpec(batch, heads, None, None)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        out_specs=query,
        check_vma=False,
        in_specs=(kernel_spec, query, key, key, PartitionSpec(batch, sequence), PartitionSpec(batch, None)),
    )
    def sharded(kernel, q_bhtd, k_bhsd, v_bhsd, segment_ids_bt, segment_ids_bs):
        per_row = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids))
        return per_row(q_bhtd, k_bhsd, v_bhsd, splash.SegmentIds(segment_ids_bt, segment_ids_bs))

    heads_first = lambda x: x.swapaxes(1, 2)
    scaled_q = q_bthd * head_dim**-0.5
    return heads_first(
        sharded(kernel, heads_first(scaled_q), heads_first(k_bshd), heads_first(v_bshd), segment_ids_bt, segment_ids_bt)
    )
