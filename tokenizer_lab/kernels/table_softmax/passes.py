"""An operation as a pair of a forward and a backward pass, by each way of computing it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.table_softmax import chunked, pallas_gpu, pallas_tpu


class Fold(NamedTuple):
    """What an operation makes of the logits."""

    name: str
    of_no_ids: Callable[[int], Any]
    """A number of positions -> the state before the first tile, a tree of rows [1, N] with the methods `of_all` and
    `results`."""
    add: Callable[..., Any]
    """(state, logits f32[v, N], first_id, *rows) -> the state after a tile; the rows are what else is known of each
    position."""
    blocks: tuple[pallas_tpu.Blocks, ...]
    """Tiles that its TPU kernels may work on, the best first."""
    add_by_triton: Callable[..., Any] | None = None
    """`add` in what Triton compiles, if that is something else."""


class Passes(NamedTuple):
    """How an operation and its gradient are computed."""

    forward: Callable[..., tuple[jax.Array, ...]]
    """(x_nd, table_vd, bias_v, *numbers of positions) -> results [N]; the first of the numbers are labels."""
    backward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    """(x_nd, table_vd, bias_v, labels_n, logz_n, by_nats_n, by_logz_n) -> the loss by x_nd, table_vd and bias_v."""


def all_passes(fold: Fold) -> dict[str, Passes]:
    """By name: in XLA, by the TPU kernels, by the GPU kernels, and by both without their chip (slow, for tests)."""

    def in_chunks(x_nd, table_vd, bias_v, *numbers):
        return chunked.forward(fold.of_no_ids, fold.add, x_nd, table_vd, bias_v, numbers)

    def on_tpu(interpret: bool) -> Passes:
        def static(x_nd):
            num_positions, width = x_nd.shape
            blocks = pallas_tpu.choose_blocks(fold.blocks, num_positions, width, x_nd.dtype.itemsize)
            return dict(name=fold.name, blocks=blocks, interpret=interpret)

        return Passes(
            lambda x_nd, table_vd, bias_v, *numbers: pallas_tpu.forward(
                fold.of_no_ids, fold.add, x_nd, table_vd, bias_v, numbers, **static(x_nd)
            ),
            lambda x_nd, *others: pallas_tpu.backward(x_nd, *others, **static(x_nd)),
        )

    def on_gpu(interpret: bool) -> Passes:
        static: dict[str, Any] = dict(name=fold.name, interpret=interpret)
        return Passes(
            lambda x_nd, table_vd, bias_v, *numbers: pallas_gpu.forward(
                fold.of_no_ids, fold.add_by_triton or fold.add, x_nd, table_vd, bias_v, numbers, **static
            ),
            functools.partial(pallas_gpu.backward, **static),
        )

    return {
        "chunked": Passes(in_chunks, chunked.backward),
        "pallas": on_tpu(interpret=False),
        "interpreted": on_tpu(interpret=True),
        "pallas_gpu": on_gpu(interpret=False),
        "interpreted_gpu": on_gpu(interpret=True),
    }


def refusals(blocks: tuple[pallas_tpu.Blocks, ...], x_nd: jax.Array | jax.ShapeDtypeStruct) -> dict[str, str | None]:
    """What each of the kernels does not take about hidden states [N, D], and why; None if it takes them."""
    on_tpu, on_gpu = pallas_tpu.refusal(blocks, x_nd), pallas_gpu.refusal(x_nd)
    return {"pallas": on_tpu, "interpreted": on_tpu, "pallas_gpu": on_gpu, "interpreted_gpu": on_gpu}


def differentiable(passes: Passes, vocab_size: int) -> Callable[..., tuple[jax.Array, ...]]:
    """The operation on the first `vocab_size` rows of a table; the first two results are nats and log Z, and only they
    have a gradient."""

    @jax.custom_vjp
    def operation(*arguments):
        return passes.forward(*arguments)

    def forward_and_residuals(*arguments):
        results = passes.forward(*arguments)
        return results, (arguments, results[1])

    def gradients(residuals, by_results):
        (x, table, bias, labels, *others), logz = residuals
        by_nats, by_logz, *_ = by_results
        return *passes.backward(x, table, bias, labels, logz, by_nats, by_logz), None, *[None] * len(others)

    operation.defvjp(forward_and_residuals, gradients)

    @functools.wraps(passes.forward)
    def on_vocabulary(x, table, bias_v, *numbers):
        return operation(x, table, jnp.where(jnp.arange(len(bias_v)) < vocab_size, bias_v, -jnp.inf), *numbers)

    return on_vocabulary
