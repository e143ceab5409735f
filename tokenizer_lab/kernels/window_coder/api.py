"""The step of the exact window code, by whichever implementation is for the platform it is compiled for."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tokenizer_lab.kernels.implementations import choose
from tokenizer_lab.kernels.window_coder import pallas_tpu, reference

Implementation = Literal["auto", "reference", "pallas"]
WINDOW_BITS = (16, 32, 64, 128)
# (bits of a window, streams of a device): windows up to 24 bits are a table and need no coder.
PRODUCTION_SHAPES = tuple((window_bits, num_streams) for window_bits in (32, 64, 128) for num_streams in (256, 4096))


@functools.partial(jax.jit, static_argnames="implementation")
def encode_step(
    shares_bn: jax.Array,
    span_kn: jax.Array,
    low_kn: jax.Array,
    byte_n: jax.Array,
    *,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.encode_step` for arguments and results.

    "auto" is the Pallas kernel on TPUs and the reference elsewhere. Over a mesh, call it under `jax.shard_map`: XLA
    cannot split a kernel.
    """
    _check(shares_bn, span_kn, low_kn)
    assert byte_n.shape == shares_bn.shape[1:] and byte_n.dtype == jnp.int32, byte_n
    return _choose(implementation, "encode_step")(shares_bn, span_kn, low_kn, byte_n)


@functools.partial(jax.jit, static_argnames="implementation")
def decode_step(
    shares_bn: jax.Array,
    span_kn: jax.Array,
    low_kn: jax.Array,
    point_kn: jax.Array,
    *,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.decode_step` for arguments and results, and `encode_step` for `implementation`."""
    _check(shares_bn, span_kn, low_kn)
    assert point_kn.shape == span_kn.shape and point_kn.dtype == jnp.uint32, point_kn
    return _choose(implementation, "decode_step")(shares_bn, span_kn, low_kn, point_kn)


def _check(shares_bn: jax.Array, span_kn: jax.Array, low_kn: jax.Array) -> None:
    num_limbs, num_streams = span_kn.shape
    assert num_limbs * reference.LIMB_BITS in WINDOW_BITS, span_kn
    assert span_kn.dtype == jnp.uint32, span_kn
    assert low_kn.shape == span_kn.shape and low_kn.dtype == jnp.uint32, low_kn
    assert shares_bn.shape == (reference.NUM_BYTES, num_streams) and shares_bn.dtype == jnp.int32, shares_bn


def _choose(implementation: Implementation, step: str) -> Callable[..., Any]:
    implementations = {"reference": getattr(reference, step), "pallas": getattr(pallas_tpu, step)}
    return choose(step, implementation, implementations, elsewhere="reference")
