"""ELECTRA's generator head at the masked positions, by whichever implementation is for the platform."""

import functools
from typing import Callable, Literal

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.sample_replacements import chunked, pallas_tpu, reference

Implementation = Literal["auto", "reference", "chunked", "pallas"]
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
    in memory. "auto" is the Pallas kernel on TPUs and "chunked" elsewhere. Over a mesh, call the kernel under
    `jax.shard_map` with `check_vma=False` (XLA cannot split it); "chunked" takes sharded positions under `jax.jit`.
    """
    _check(x_nd, table_vd, labels_n, seeds_n2, bias_v, vocab_size, temperature)
    if bias_v is None:
        bias_v = jnp.zeros(len(table_vd), jnp.float32)
    static = dict(vocab_size=vocab_size, temperature=temperature)
    if implementation == "reference":
        return reference.sample_replacements(x_nd, table_vd, bias_v, labels_n, seeds_n2, **static)
    forward = functools.partial(_choose(implementation, "forward"), **static)
    backward = functools.partial(_choose(implementation, "backward"), vocab_size=vocab_size)
    return with_gradient(forward, backward)(x_nd, table_vd, bias_v, labels_n, seeds_n2)


def with_gradient(forward: Callable, backward: Callable) -> Callable:
    """`forward`, differentiated by `backward`; both as in `chunked`."""

    @jax.custom_vjp
    def operation(*arguments):
        return forward(*arguments)

    def forward_and_residuals(x_nd, table_vd, bias_v, labels_n, seeds_n2):
        results = forward(x_nd, table_vd, bias_v, labels_n, seeds_n2)
        return results, (x_nd, table_vd, bias_v, labels_n, results[1])

    def gradients(residuals, by_results):
        by_nats_n, by_logz_n, _ = by_results  # a sample has no gradient
        return *backward(*residuals, by_nats_n, by_logz_n), None, None

    operation.defvjp(forward_and_residuals, gradients)
    return operation


def _check(x_nd, table_vd, labels_n, seeds_n2, bias_v, vocab_size, temperature) -> None:
    num_positions, width = x_nd.shape
    num_rows = len(table_vd)
    assert num_positions > 0 and jnp.issubdtype(x_nd.dtype, jnp.floating), x_nd
    assert table_vd.shape == (num_rows, width) and num_rows % ROW_MULTIPLE == 0, (table_vd, x_nd)
    assert 0 < vocab_size <= num_rows, (vocab_size, table_vd)
    assert bias_v is None or bias_v.shape == (num_rows,), (bias_v, table_vd)
    assert labels_n.shape == (num_positions,) and labels_n.dtype == jnp.int32, (labels_n, x_nd)
    assert seeds_n2.shape == (num_positions, 2) and seeds_n2.dtype == jnp.uint32, (seeds_n2, x_nd)
    assert temperature > 0, temperature


def _choose(implementation: Implementation, name: str) -> Callable:
    by_chunks, by_pallas = getattr(chunked, name), getattr(pallas_tpu, name)

    def by_platform(*arrays, **static):
        kernel, default = (functools.partial(f, **static) for f in (by_pallas, by_chunks))
        return jax.lax.platform_dependent(*arrays, tpu=kernel, default=default)

    return {"auto": by_platform, "chunked": by_chunks, "pallas": by_pallas}[implementation]
