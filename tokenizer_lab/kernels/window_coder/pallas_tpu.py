"""The steps of `reference` as TPU kernels: a grid over blocks of streams, and a block's whole step in VMEM.

XLA would write the 256 x N keys to HBM and read them for each of the 24 rounds that find the threshold, and shares for
each of the 8 that find a byte; here a block's shares are read once. Streams lie on lanes, bytes on sublanes, and
streams are independent, so blocks may run on different cores.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tokenizer_lab.kernels.window_coder import reference

NUM_LANES = 128
NUM_SUBLANES = 8
BLOCK_STREAMS = 256
# Mosaic refuses a kernel that needs more. Chips have 64 MiB or more, which XLA also uses around the kernel.
VMEM_LIMIT_BYTES = 8 << 20


def encode_step(
    shares_bn: jax.Array, span_kn: jax.Array, low_kn: jax.Array, byte_n: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.encode_step`; `interpret` runs the kernel without a TPU."""
    numbers = (span_kn, low_kn, byte_n[None])
    fits_1n, span_kn, low_kn = _run(reference.encode_block, shares_bn, numbers, interpret=interpret)
    return fits_1n[0] != 0, span_kn, low_kn


def decode_step(
    shares_bn: jax.Array, span_kn: jax.Array, low_kn: jax.Array, point_kn: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `reference.decode_step`; `interpret` runs the kernel without a TPU."""
    numbers = (span_kn, low_kn, point_kn)
    byte_1n, span_kn, low_kn = _run(reference.decode_block, shares_bn, numbers, interpret=interpret)
    return byte_1n[0], span_kn, low_kn


def block_streams(num_streams: int) -> int:
    """Streams per block: `BLOCK_STREAMS`, or fewer in whole lanes where there are not so many."""
    return min(BLOCK_STREAMS, pl.cdiv(num_streams, NUM_LANES) * NUM_LANES)


def vmem_bytes(num_limbs: int, num_streams: int) -> int:
    """An upper bound of the VMEM that a step takes, for numbers of `num_limbs` limbs."""
    row = 4 * block_streams(num_streams)  # 32 bits for every stream
    shares = reference.NUM_BYTES * row
    number = pl.cdiv(num_limbs, NUM_SUBLANES) * NUM_SUBLANES * row  # rows come in whole tiles
    flags = NUM_SUBLANES * row
    return (
        2 * shares  # read while the block before it is computed
        + 2 * (3 * number)  # span, low, point (or a byte, which is less), likewise
        + 2 * (2 * number + flags)  # span, low, byte or fits: written while the next block is computed
        + 4 * shares  # values in between, spilled: remainders, keys, corrections, a masked operand of a sum
        + 8 * number  # the dividend, begin, span, low and products, a sublane of a tile each at worst
    )


def _run(step, shares_bn, numbers, *, interpret):
    """`step(shares_bn, *numbers)` by blocks; it gives a row of i32 and two numbers like the first of `numbers`."""
    num_limbs, num_streams = numbers[0].shape
    assert vmem_bytes(num_limbs, num_streams) <= VMEM_LIMIT_BYTES, (num_limbs, num_streams)
    block = block_streams(num_streams)
    padded = pl.cdiv(num_streams, block) * block
    # What is computed for streams of zeros means nothing and is cut off.
    operands = [jnp.pad(x, ((0, 0), (0, padded - num_streams))) for x in (shares_bn, *numbers)]

    def kernel(*refs):
        results = step(*(ref[...] for ref in refs[: len(operands)]))
        for ref, result in zip(refs[len(operands) :], results, strict=True):
            ref[...] = result

    def spec(num_rows):
        return pl.BlockSpec((num_rows, block), lambda i: (0, i))

    number = jax.ShapeDtypeStruct((num_limbs, padded), jnp.uint32)
    results = pl.pallas_call(
        kernel,
        grid=(padded // block,),
        in_specs=[spec(x.shape[0]) for x in operands],
        out_specs=[spec(1), spec(num_limbs), spec(num_limbs)],
        out_shape=[jax.ShapeDtypeStruct((1, padded), jnp.int32), number, number],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_LIMIT_BYTES),
        interpret=interpret,
        name=f"window_coder_{step.__name__}",
    )(*operands)
    return [x[:, :num_streams] for x in results]
