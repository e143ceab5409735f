"""The operation as three TPU kernels over blocks of positions and of ids; logits live in VMEM only.

- forward, and backward by x: for a block of positions, all blocks of ids; their results lie in VMEM meanwhile.
- backward by table and bias: for a block of ids, all blocks of positions, likewise.

Whatever comes first may run on different cores. A kernel reads its inner operand once for each outer block: the more
positions a block has, the less often the table comes from HBM.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tokenizer_lab.kernels.sample_replacements import tiles

NUM_LANES = 128
NUM_SUBLANES = 8
# Mosaic refuses a kernel that needs more. Chips have 64 MiB or more, which XLA also uses around the kernel.
VMEM_LIMIT_BYTES = 40 << 20


class Blocks(NamedTuple):
    """The size of a tile of logits."""

    positions: int  # whole lanes
    ids: int  # a multiple of `tiles.ID_GROUP`


# More ids at a time would compile for half a minute: Mosaic unrolls the noise.
CHOICES = Blocks(512, 256), Blocks(256, 256), Blocks(128, 256)


def choose_blocks(num_positions: int, width: int, itemsize: int) -> Blocks:
    """The largest of `CHOICES` within the budget, with no more positions than there are (in whole lanes)."""
    whole_lanes = pl.cdiv(num_positions, NUM_LANES) * NUM_LANES
    for positions, ids in CHOICES:
        blocks = Blocks(min(positions, whole_lanes), ids)
        if vmem_bytes(blocks, width, itemsize) <= VMEM_LIMIT_BYTES:
            return blocks
    raise AssertionError(f"hidden states of {width} do not fit VMEM: use implementation='chunked'")


def vmem_bytes(blocks: Blocks, width: int, itemsize: int) -> int:
    """An upper bound of the VMEM that each kernel takes, for x and table of a type of `itemsize` bytes."""
    width = pl.cdiv(width, NUM_LANES) * NUM_LANES
    logits = 4 * blocks.positions * blocks.ids
    hidden, table = (itemsize * size * width for size in blocks)
    row = 4 * NUM_SUBLANES * blocks.positions  # a number for each position: rows come in whole tiles
    bias = 4 * NUM_SUBLANES * blocks.ids
    operands = 2 * (hidden + table + 4 * row + bias)  # read while the block before them is computed
    forward = 2 * 3 * row + 5 * row + 8 * logits  # results, the state, and values in between as below
    largest = max(blocks)
    backward = (
        2 * 4 * largest * width  # the result, written while the next block is computed
        + 4 * largest * width  # its sum in float32
        + 4 * largest * width  # the product that is added to it
        + 4 * NUM_LANES * blocks.ids  # the bias's sum, by lanes
        + table  # without what lies behind its end
        + 6 * logits  # values in between, spilled: logits, probabilities, the gradient and its transpose
    )
    return operands + max(forward, backward)


def forward(
    x_nd, table_vd, bias_v, labels_n, seeds_n2, *, vocab_size: int, temperature: float,
    blocks: Blocks | None = None, interpret: bool = False,
):  # fmt: skip
    """See `reference.sample_replacements`; `interpret` runs the kernel without a TPU."""
    op = _Operands.of(x_nd, table_vd, bias_v, blocks)
    specs = op.specs(positions_axis=0, ids_axis=1)

    def kernel(x_ref, table_ref, bias_ref, labels_ref, seeds_ref, nats_ref, logz_ref, sample_ref, *state_refs):
        j = pl.program_id(1)

        @pl.when(j == 0)
        def _():
            _store(state_refs, tiles.State.of_no_ids(op.blocks.positions))

        first_id = j * op.blocks.ids
        logits_vn = tiles.logits(x_ref[...], table_ref[...], _column(bias_ref), first_id, vocab_size)
        state = tiles.State(*(ref[...] for ref in state_refs))
        state = tiles.add_ids(state, logits_vn, first_id, labels_ref[...], seeds_ref[...], temperature)
        _store(state_refs, state)

        @pl.when(j == pl.num_programs(1) - 1)
        def _():
            _store((nats_ref, logz_ref, sample_ref), state.results())

    results = _call(
        kernel,
        "sample_replacements_forward",
        grid=(op.num_position_blocks, pl.cdiv(vocab_size, op.blocks.ids)),
        in_specs=[specs.x, specs.table, specs.bias, specs.row, specs.two_rows],
        out_specs=[specs.row] * 3,
        out_shape=[op.row(dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32)],
        scratch_shapes=[pltpu.VMEM((1, op.blocks.positions), dtype) for dtype in (jnp.float32,) * 4 + (jnp.int32,)],
        interpret=interpret,
    )(op.x_nd, op.table_vd, op.bias_1v, op.rows(labels_n), op.rows(seeds_n2))
    return tuple(x_1n[0, : len(x_nd)] for x_1n in results)


def backward(
    x_nd, table_vd, bias_v, labels_n, logz_n, by_nats_n, by_logz_n, *, vocab_size: int,
    blocks: Blocks | None = None, interpret: bool = False,
):  # fmt: skip
    """The loss by x_nd, table_vd and bias_v, each in its type, from the loss by nats and by logz."""
    op = _Operands.of(x_nd, table_vd, bias_v, blocks)
    # Rows of zeros, which fill the last block, give a gradient of zero.
    rows = [op.rows(x_n) for x_n in (labels_n, logz_n, by_nats_n, by_logz_n)]
    arguments = op, rows, vocab_size, interpret
    by_x_nd = _backward_by_x(*arguments)[: len(x_nd)]
    by_table_vd, by_bias_1v = _backward_by_table(*arguments, table_vd.dtype)
    return by_x_nd, by_table_vd, by_bias_1v[0].astype(bias_v.dtype)


def _backward_by_x(op, rows, vocab_size, interpret):
    specs = op.specs(positions_axis=0, ids_axis=1)

    def kernel(x_ref, table_ref, bias_ref, labels_ref, logz_ref, by_nats_ref, by_logz_ref, by_x_ref, sum_ref):
        j = pl.program_id(1)

        @pl.when(j == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        first_id = j * op.blocks.ids
        row_refs = labels_ref, logz_ref, by_nats_ref, by_logz_ref
        by_logits_vn = _logits_gradient(x_ref, table_ref, bias_ref, row_refs, first_id, vocab_size)
        # Behind the end of the table lies anything, and even zero times a NaN is one.
        ids_vd = first_id + jax.lax.broadcasted_iota(jnp.int32, table_ref.shape, 0)
        table_vd = jnp.where(ids_vd < vocab_size, table_ref[...], 0)
        sum_ref[...] += _contract_ids(by_logits_vn.astype(table_vd.dtype), table_vd)

        @pl.when(j == pl.num_programs(1) - 1)
        def _():
            by_x_ref[...] = sum_ref[...].astype(by_x_ref.dtype)

    return _call(
        kernel,
        "sample_replacements_backward_by_x",
        grid=(op.num_position_blocks, pl.cdiv(vocab_size, op.blocks.ids)),
        in_specs=[specs.x, specs.table, specs.bias] + [specs.row] * 4,
        out_specs=specs.x,
        out_shape=jax.ShapeDtypeStruct(op.x_nd.shape, op.x_nd.dtype),
        scratch_shapes=[pltpu.VMEM((op.blocks.positions, op.width), jnp.float32)],
        interpret=interpret,
    )(op.x_nd, op.table_vd, op.bias_1v, *rows)


def _backward_by_table(op, rows, vocab_size, interpret, dtype):
    specs = op.specs(positions_axis=1, ids_axis=0)

    def kernel(
        x_ref, table_ref, bias_ref, labels_ref, logz_ref, by_nats_ref, by_logz_ref,
        by_table_ref, by_bias_ref, sum_ref, bias_sum_ref,
    ):  # fmt: skip
        j = pl.program_id(1)

        @pl.when(j == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)
            bias_sum_ref[...] = jnp.zeros_like(bias_sum_ref)

        first_id = pl.program_id(0) * op.blocks.ids
        row_refs = labels_ref, logz_ref, by_nats_ref, by_logz_ref
        by_logits_vn = _logits_gradient(x_ref, table_ref, bias_ref, row_refs, first_id, vocab_size)
        sum_ref[...] += jnp.dot(by_logits_vn.astype(x_ref.dtype), x_ref[...], preferred_element_type=jnp.float32)
        # Lane by lane: adding lanes up, and turning the column of sums into a row, waits for the last block.
        for lane in range(0, op.blocks.positions, NUM_LANES):
            bias_sum_ref[...] += by_logits_vn[:, lane : lane + NUM_LANES]

        @pl.when(j == pl.num_programs(1) - 1)
        def _():
            by_table_ref[...] = sum_ref[...].astype(by_table_ref.dtype)
            by_bias_ref[...] = jnp.sum(bias_sum_ref[...].T, axis=0, keepdims=True)

    return _call(
        kernel,
        "sample_replacements_backward_by_table",
        grid=(pl.cdiv(op.table_vd.shape[0], op.blocks.ids), op.num_position_blocks),
        in_specs=[specs.x, specs.table, specs.bias] + [specs.row] * 4,
        out_specs=[specs.table, specs.bias],
        out_shape=[
            jax.ShapeDtypeStruct(op.table_vd.shape, dtype),
            jax.ShapeDtypeStruct(op.bias_1v.shape, jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((op.blocks.ids, op.width), jnp.float32),
            pltpu.VMEM((op.blocks.ids, NUM_LANES), jnp.float32),
        ],
        interpret=interpret,
    )(op.x_nd, op.table_vd, op.bias_1v, *rows)


def _logits_gradient(x_ref, table_ref, bias_ref, row_refs, first_id, vocab_size):
    logits_vn = tiles.logits(x_ref[...], table_ref[...], _column(bias_ref), first_id, vocab_size)
    return tiles.logits_gradient(logits_vn, first_id, *(ref[...] for ref in row_refs))


def _contract_ids(by_logits_vn, table_vd):
    return jax.lax.dot_general(
        by_logits_vn, table_vd, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )


class _Specs(NamedTuple):
    """Where on a grid each operand's block is."""

    x: pl.BlockSpec
    table: pl.BlockSpec
    bias: pl.BlockSpec
    row: pl.BlockSpec
    two_rows: pl.BlockSpec


class _Operands(NamedTuple):
    """What the kernels take: positions in whole blocks, one type to multiply, bias and numbers of positions as rows."""

    x_nd: jax.Array
    table_vd: jax.Array
    bias_1v: jax.Array
    blocks: Blocks

    @classmethod
    def of(cls, x_nd, table_vd, bias_v, blocks: Blocks | None) -> "_Operands":
        num_positions, width = x_nd.shape
        blocks = blocks or choose_blocks(num_positions, width, x_nd.dtype.itemsize)
        x_nd = jnp.pad(x_nd, ((0, -num_positions % blocks.positions), (0, 0)))
        return cls(x_nd, table_vd.astype(x_nd.dtype), bias_v[None].astype(jnp.float32), blocks)

    @property
    def width(self) -> int:
        return self.x_nd.shape[1]

    @property
    def num_position_blocks(self) -> int:
        return len(self.x_nd) // self.blocks.positions

    def row(self, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, len(self.x_nd)), dtype)

    def rows(self, numbers: jax.Array) -> jax.Array:
        """[N] or [N, k] as [1, N] or [k, N], with zeros for the positions that fill the last block."""
        rows_kn = numbers.reshape(len(numbers), -1).T
        return jnp.pad(rows_kn, ((0, 0), (0, len(self.x_nd) - len(numbers))))

    def specs(self, *, positions_axis: int, ids_axis: int) -> _Specs:
        positions, ids = self.blocks

        def spec(shape, axis, dimension):
            """Blocks of a shape, moved along a dimension by an axis of the grid."""
            return pl.BlockSpec(shape, lambda *grid: tuple(grid[axis] if k == dimension else 0 for k in range(2)))

        return _Specs(
            x=spec((positions, self.width), positions_axis, 0),
            table=spec((ids, self.width), ids_axis, 0),
            bias=spec((1, ids), ids_axis, 1),
            row=spec((1, positions), positions_axis, 1),
            two_rows=spec((2, positions), positions_axis, 1),
        )


def _call(kernel, name, **arguments):
    parameters = pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT_BYTES
    )
    return pl.pallas_call(kernel, name=name, compiler_params=parameters, **arguments)


def _store(refs, values) -> None:
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value


def _column(row_ref: jax.Array) -> jax.Array:
    """A row [1, v] as a column [v, 1]."""
    return jnp.broadcast_to(row_ref[...], (NUM_LANES, row_ref.shape[1])).T[:, :1]
