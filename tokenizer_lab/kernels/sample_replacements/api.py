"""ELECTRA's generator head at the masked positions, by whichever implementation is for the platform."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.implementations import choose
from tokenizer_lab.kernels.sample_replacements import reference, tiles
from tokenizer_lab.kernels.table_softmax.pallas_tpu import Blocks
from tokenizer_lab.kernels.table_softmax.passes import Fold, Passes, all_passes, differentiable, refusals

Implementation = Literal["auto", "reference", "chunked", "pallas", "interpreted", "pallas_gpu", "interpreted_gpu"]
# More ids at a time would compile for half a minute: Mosaic unrolls the noise.
BLOCKS = Blocks(512, 256), Blocks(256, 256), Blocks(128, 256)
ROW_MULTIPLE = 128  # of the table: XLA copies a table of other sizes before a kernel reads it
# (masked positions of a device, rows of the table, width): ELECTRA-small's 30,522 WordPieces, 2**15, and 2**16 and 5
# special ids, each padded.
PRODUCTION_SHAPES = tuple(
    (num_positions, num_rows, width)
    for num_positions in (2048, 8192)
    for num_rows, width in ((30592, 128), (32768, 256), (65664, 768))
)


@functools.partial(jax.jit, static_argnames=("vocab_size", "temperature", "implementation"))
def sample_replacements(
    x_nd: jax.Array,
    table_vd: jax.Array,
    labels_n: jax.Array,
    seeds_n2: jax.Array,
    bias_v: jax.Array | None = None,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.sample_replacements` for arguments and results; the table's rows are a multiple of 128.

    All implementations draw the same samples, but where rounding of the logits decides. Only "reference" has all logits
    in memory. "auto" is the Pallas kernel on TPUs and "chunked" elsewhere, or where the kernel refuses
    (`table_softmax.pallas_tpu.refusal`); "pallas_gpu" is one for GPUs, which has run on none yet; "interpreted" and
    "interpreted_gpu" are the kernels without their chip, slow. Over a mesh, call a kernel under `jax.shard_map` with
    `check_vma=False` (XLA cannot split it); "chunked" takes sharded positions under `jax.jit`.
    """
    _check(x_nd, table_vd, labels_n, seeds_n2, bias_v, vocab_size, temperature)
    if bias_v is None:
        bias_v = jnp.zeros(len(table_vd), jnp.float32)
    add = functools.partial(tiles.State.add, temperature=temperature)
    add_by_triton = functools.partial(add, one_below_other=tiles.one_below_other_by_triton)
    fold = Fold("sample_replacements", tiles.State.of_no_ids, add, BLOCKS, add_by_triton)
    implementations = {name: _by_passes(passes, vocab_size) for name, passes in all_passes(fold).items()}
    implementations["reference"] = functools.partial(
        reference.sample_replacements, vocab_size=vocab_size, temperature=temperature
    )
    operation = choose(fold.name, implementation, implementations, elsewhere="chunked", refusals=refusals(BLOCKS, x_nd))
    return operation(x_nd, table_vd, bias_v, labels_n, seeds_n2)


def _by_passes(passes: Passes, vocab_size: int) -> Callable[..., Any]:
    operation = differentiable(passes, vocab_size)
    return lambda x_nd, table_vd, bias_v, labels_n, seeds_n2: operation(
        x_nd, table_vd, bias_v, labels_n, seeds_n2[:, 0], seeds_n2[:, 1]
    )


def _check(
    x_nd: jax.Array,
    table_vd: jax.Array,
    labels_n: jax.Array,
    seeds_n2: jax.Array,
    bias_v: jax.Array | None,
    vocab_size: int,
    temperature: float,
) -> None:
    num_positions, width = x_nd.shape
    num_rows = len(table_vd)
    assert num_positions > 0 and jnp.issubdtype(x_nd.dtype, jnp.floating), x_nd
    assert table_vd.shape == (num_rows, width) and num_rows % ROW_MULTIPLE == 0, (table_vd, x_nd)
    assert 0 < vocab_size <= num_rows, (vocab_size, table_vd)
    assert bias_v is None or bias_v.shape == (num_rows,), (bias_v, table_vd)
    assert labels_n.shape == (num_positions,) and labels_n.dtype == jnp.int32, (labels_n, x_nd)
    assert seeds_n2.shape == (num_positions, 2) and seeds_n2.dtype == jnp.uint32, (seeds_n2, x_nd)
    assert temperature > 0, temperature
