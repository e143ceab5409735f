"""Projection onto the vocabulary + softmax cross-entropy with only a part of the logits in memory at a time."""

import functools

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.linear_cross_entropy import reference

MAX_LOGITS_BYTES = 128 << 20  # of float32 logits per device at a time


def choose_num_chunks(batch_rows: int, length: int, vocab_size: int, num_devices: int, sequence_shards: int = 1) -> int:
    """The fewest chunks for which a device's logits stay under `MAX_LOGITS_BYTES`, if the length divides that far."""
    logits_bytes = 4 * batch_rows * length * vocab_size / num_devices
    divisors = [n for n in range(1, length + 1) if length % n == 0 and (length // n) % sequence_shards == 0]
    assert divisors, f"a length of {length} does not split over {sequence_shards} sequence shards"
    return next((n for n in divisors if logits_bytes / n <= MAX_LOGITS_BYTES), divisors[-1])


def linear_cross_entropy(
    x_btd: jax.Array, table_vd: jax.Array, labels_bt: jax.Array, bias_v: jax.Array | None = None, *, vocab_size: int, num_chunks: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """See `reference.linear_cross_entropy` for arguments and results.

    With `num_chunks` > 1 (a divisor of T) the logits of one chunk are in memory at a time and the backward pass computes
    them again: one more projection, `num_chunks` times less memory.
    """
    plain = functools.partial(reference.linear_cross_entropy, vocab_size=vocab_size)
    if num_chunks == 1:
        return plain(x_btd, table_vd, labels_bt, bias_v)
    assert x_btd.shape[1] % num_chunks == 0, (x_btd.shape, num_chunks)

    def split(y):  # chunk i takes every num_chunks-th position, so that a sharded T axis stays where it is
        return jnp.moveaxis(y.reshape(y.shape[0], -1, num_chunks, *y.shape[2:]), 2, 0)

    def join(y_cbt):
        return jnp.moveaxis(y_cbt, 0, 2).reshape(labels_bt.shape)

    chunk = jax.checkpoint(lambda inputs: plain(inputs[0], table_vd, inputs[1], bias_v))
    nats_cbt, logz_cbt = jax.lax.map(chunk, (split(x_btd), split(labels_bt)))
    return join(nats_cbt), join(logz_cbt)
