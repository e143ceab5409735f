"""Projection onto the vocabulary + softmax cross-entropy without the logits in memory, by whichever implementation is
for the platform."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from tokenizer_lab.kernels.implementations import choose
from tokenizer_lab.kernels.linear_cross_entropy import reference
from tokenizer_lab.kernels.table_softmax import tiles
from tokenizer_lab.kernels.table_softmax.pallas_tpu import Blocks
from tokenizer_lab.kernels.table_softmax.passes import Fold, Passes, all_passes, differentiable, refusals

Implementation = Literal["auto", "reference", "chunked", "pallas", "interpreted", "pallas_gpu", "interpreted_gpu"]
# Of a device's float32 logits, up to which "auto" keeps them all where there is no kernel: no product twice.
MAX_LOGITS_BYTES = 128 << 20
BLOCKS = Blocks(1024, 512), Blocks(512, 512), Blocks(512, 256), Blocks(256, 256), Blocks(128, 256)
# (positions of a device, rows of the table, width): bytes, the demo's subwords, 2**15, GPT-2's 50,257, 2**16, Llama 3's
# 128,256.
PRODUCTION_SHAPES = tuple(
    (8192, num_rows, width)
    for num_rows, width in (
        (384, 768),
        (2048, 768),
        (32768, 1024),
        (50304, 768),
        (65536, 768),
        (65536, 2048),
        (128256, 4096),
    )
)


class Layout(NamedTuple):
    """How the arguments lie on a mesh; over its other axes they are copies."""

    mesh: Mesh
    positions: PartitionSpec
    """Of labels i32[B, T]."""
    vocab: str | None = None
    """Mesh axis that the table's rows are split over."""

    @property
    def position_axes(self) -> tuple[str, ...]:
        """Mesh axes that positions are split over."""
        return tuple(axis for axes in self.positions for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis)

    @property
    def num_position_shards(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.position_axes)


def linear_cross_entropy(
    x_btd: jax.Array,
    table_vd: jax.Array,
    labels_bt: jax.Array,
    bias_v: jax.Array | None = None,
    *,
    vocab_size: int,
    layout: Layout | None = None,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array]:
    """See `reference.linear_cross_entropy` for arguments and results.

    Args:
      layout: over a mesh, how the arguments lie on it. Each device computes its positions and ids; log-sum-exp and
        label logits are then combined over shards of the vocabulary, and gradients summed up over those who share what
        they are by.
      implementation: "reference" has all logits in memory (and leaves a mesh to XLA); "chunked", in XLA, the TPU kernel
        "pallas" and the GPU kernel "pallas_gpu" have a tile of them, and compute each twice or three times;
        "interpreted" and "interpreted_gpu" are the kernels without their chip, slow. "auto" is the kernel on TPUs.
        Elsewhere, and where that kernel refuses (`table_softmax.pallas_tpu.refusal`), it is "reference" up to
        `MAX_LOGITS_BYTES` and then "chunked": the GPU kernel has run on no GPU yet.
    """
    assert x_btd.shape == (*labels_bt.shape, table_vd.shape[1]) and labels_bt.dtype == jnp.int32, (
        x_btd,
        table_vd,
        labels_bt,
    )
    assert 0 < vocab_size <= len(table_vd), (vocab_size, table_vd)
    if bias_v is None:
        bias_v = jnp.zeros(len(table_vd), jnp.float32)
    num_positions, num_rows = labels_bt.size // (layout.num_position_shards if layout else 1), len(table_vd)
    if layout and layout.vocab:
        num_rows //= layout.mesh.shape[layout.vocab]

    fold = Fold("linear_cross_entropy", tiles.Loss.of_no_ids, tiles.Loss.add, BLOCKS)
    implementations: dict[str, Callable[..., Any]] = {
        "reference": _plain(vocab_size, layout),
        **{name: differentiable(_over_mesh(passes, layout), vocab_size) for name, passes in all_passes(fold).items()},
    }
    operation = choose(
        fold.name,
        implementation,
        implementations,
        elsewhere="reference" if 4 * num_positions * num_rows <= MAX_LOGITS_BYTES else "chunked",
        refusals=refusals(BLOCKS, jax.ShapeDtypeStruct((num_positions, x_btd.shape[2]), x_btd.dtype)),
        platform=layout and layout.mesh.devices.flat[0].platform,
    )
    return operation(x_btd, table_vd, bias_v, labels_bt)


def _plain(vocab_size: int, layout: Layout | None) -> Callable[..., Any]:
    """The reference. On one device rows and positions are one axis: of two, XLA's CPU compiler copies the logits'
    gradient transposed."""
    plain = functools.partial(reference.linear_cross_entropy, vocab_size=vocab_size)
    if layout and layout.mesh.size > 1:
        return plain

    def as_one_axis(x_btd, table_vd, bias_v, labels_bt):
        results = plain(x_btd.reshape(-1, x_btd.shape[-1]), table_vd, bias_v, labels_bt.reshape(-1))
        return tuple(x_n.reshape(labels_bt.shape) for x_n in results)

    return as_one_axis


def _over_mesh(passes: Passes, layout: Layout | None) -> Passes:
    """The passes for [B, T] positions, which devices have parts of, and so of the table; the results are nats and log
    Z."""
    vocab = layout.vocab if layout else None

    def own_labels(labels_bt, table_vd):
        """Flat, and counted from the first of this device's ids: others are none of its ids."""
        return labels_bt.reshape(-1) - (jax.lax.axis_index(vocab) * len(table_vd) if vocab else 0)

    def forward(x_btd, table_vd, bias_v, labels_bt):
        label_logit_n, logz_n = passes.forward(
            x_btd.reshape(-1, x_btd.shape[-1]), table_vd, bias_v, own_labels(labels_bt, table_vd)
        )
        if vocab:
            label_logit_n, largest_n = jax.lax.pmax((label_logit_n, logz_n), vocab)
            logz_n = largest_n + jnp.log(jax.lax.psum(jnp.exp(logz_n - largest_n), vocab))
        return tuple(x_n.reshape(labels_bt.shape) for x_n in (logz_n - label_logit_n, logz_n))

    def backward(x_btd, table_vd, bias_v, labels_bt, *rows_bt):
        x_nd, rows = x_btd.reshape(-1, x_btd.shape[-1]), [row_bt.reshape(-1) for row_bt in rows_bt]
        by_x_nd, *by_table_and_bias = passes.backward(x_nd, table_vd, bias_v, own_labels(labels_bt, table_vd), *rows)
        by_x_nd = jax.lax.psum(by_x_nd, vocab) if vocab else by_x_nd
        if layout and layout.position_axes:
            by_table_and_bias = jax.lax.psum(by_table_and_bias, layout.position_axes)
        return by_x_nd.reshape(x_btd.shape), *by_table_and_bias

    if layout is None:
        return Passes(forward, backward)
    positions, hidden, table, bias = (
        layout.positions,
        PartitionSpec(*layout.positions, None),
        PartitionSpec(vocab, None),
        PartitionSpec(vocab),
    )
    on_devices = functools.partial(jax.shard_map, mesh=layout.mesh, check_vma=False)
    return Passes(
        on_devices(forward, in_specs=(hidden, table, bias, positions), out_specs=(positions, positions)),
        on_devices(backward, in_specs=(hidden, table, bias, *[positions] * 4), out_specs=(hidden, table, bias)),
    )
