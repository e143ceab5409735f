"""Forward and backward pass as three TPU kernels over blocks of positions and of ids; logits live in VMEM only.

- forward, and backward by x: for a block of positions, all blocks of ids; their results lie in VMEM meanwhile.
- backward by table and bias: for a block of ids, all blocks of positions, likewise.

Whatever comes first may run on different cores. A kernel reads its inner operand once for each outer block: the more
positions a block has, the less often the table comes from HBM.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tokenizer_lab.kernels.table_softmax import tiles

NUM_LANES = 128
NUM_SUBLANES = 8
DTYPES = (jnp.bfloat16, jnp.float32)  # that the kernels multiply
# Mosaic refuses a kernel that needs more. Chips have 64 MiB or more, which XLA also uses around the kernel.
VMEM_LIMIT_BYTES = 40 << 20


class Blocks(NamedTuple):
    """The size of a tile of logits."""

    positions: int  # whole lanes
    ids: int  # a multiple of `tiles.ID_MULTIPLE`


def choose_blocks(choices: Sequence[Blocks], num_positions: int, width: int, itemsize: int) -> Blocks | None:
    """The first of `choices` within the budget, with no more positions than there are (in whole lanes); None if none
    is."""
    whole_lanes = pl.cdiv(num_positions, NUM_LANES) * NUM_LANES
    candidates = (Blocks(min(positions, whole_lanes), ids) for positions, ids in choices)
    return next((blocks for blocks in candidates if vmem_bytes(blocks, width, itemsize) <= VMEM_LIMIT_BYTES), None)


def refusal(choices: Sequence[Blocks], x_nd: jax.Array | jax.ShapeDtypeStruct) -> str | None:
    """What the kernels do not take about hidden states [N, D], and why; None if they take them."""
    if x_nd.dtype not in DTYPES:
        return f"hidden states of type {x_nd.dtype}, only bfloat16 and float32"
    num_positions, width = x_nd.shape
    if choose_blocks(choices, num_positions, width, x_nd.dtype.itemsize) is None:
        return (
            f"hidden states {list(x_nd.shape)} of type {x_nd.dtype}, whose width does not fit its"
            f" {VMEM_LIMIT_BYTES >> 20} MiB of VMEM"
        )
    return None


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
        + table  # without the rows of no id
        + 6 * logits  # values in between, spilled: logits, probabilities, the gradient and its transpose
    )
    return operands + max(forward, backward)


def forward(
    of_no_ids: Callable[..., Any],
    add: Callable[..., Any],
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    numbers: tuple[jax.Array, ...],
    *,
    name: str,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Folds the logits of all ids, tile after tile, into a state of each position.

    Args:
      of_no_ids, add: see `passes.Fold`.
      x_nd: f[N, D]; table_vd: f[V, D], multiplied in x's type; bias_v: f[V], -inf for what is no id.
      numbers: [N] each, what `add` is given of each position, as rows [1, N].
      name: of the operation, for the compiled program and its profile.
      interpret: runs the kernel without a TPU, slowly.

    Returns:
      What the state's `results` gives, [N] each.
    """
    op = _Operands.of(x_nd, table_vd, bias_v, blocks)
    specs = op.specs(positions_axis=0, ids_axis=1)
    rows = [op.row(x_n) for x_n in numbers]
    state, state_tree = jax.tree.flatten(jax.eval_shape(lambda: of_no_ids(blocks.positions)))
    results = jax.tree.leaves(jax.eval_shape(lambda: of_no_ids(op.num_positions).results()))

    def kernel(x_ref, table_ref, bias_ref, *refs):
        row_refs, result_refs, state_refs = refs[: len(rows)], refs[len(rows) : -len(state)], refs[-len(state) :]
        j = pl.program_id(1)

        @pl.when(j == 0)
        def _():
            _store(state_refs, of_no_ids(blocks.positions))

        logits_vn = tiles.logits(x_ref[...], table_ref[...], _column(bias_ref))
        before = jax.tree.unflatten(state_tree, [ref[...] for ref in state_refs])
        after = add(before, logits_vn, j * blocks.ids, *(ref[...] for ref in row_refs))
        _store(state_refs, after)

        @pl.when(j == pl.num_programs(1) - 1)
        def _():
            _store(result_refs, after.results())

    results_1n = _call(
        kernel,
        f"{name}_forward",
        op.cost(num_products=1, passes_over_x=1, passes_over_table=op.num_position_blocks),
        grid=(op.num_position_blocks, op.num_id_blocks),
        in_specs=[specs.x, specs.table, specs.bias, *[specs.row] * len(rows)],
        out_specs=[specs.row] * len(results),
        out_shape=results,
        scratch_shapes=[pltpu.VMEM(part.shape, part.dtype) for part in state],
        interpret=interpret,
    )(op.x_nd, op.table_vd, op.bias_1v, *rows)
    return tuple(x_1n[0, : len(x_nd)] for x_1n in results_1n)


def backward(
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    labels_n: jax.Array,
    logz_n: jax.Array,
    by_nats_n: jax.Array,
    by_logz_n: jax.Array,
    *,
    name: str,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The loss by x_nd, table_vd and bias_v, each in its type, from the loss by nats and by logz."""
    op = _Operands.of(x_nd, table_vd, bias_v, blocks)
    # Of what fills the last block all probabilities are 0.
    rows = [op.row(labels_n), op.row(logz_n, fill=jnp.inf), op.row(by_nats_n), op.row(by_logz_n)]
    by_x_nd = _backward_by_x(op, rows, name, interpret)[: len(x_nd)]
    by_table_vd, by_bias_1v = _backward_by_table(op, rows, name, interpret, table_vd.dtype)
    return by_x_nd, by_table_vd, by_bias_1v[0, : len(bias_v)].astype(bias_v.dtype)


def _backward_by_x(op, rows, name, interpret):
    specs = op.specs(positions_axis=0, ids_axis=1)

    def kernel(x_ref, table_ref, bias_ref, labels_ref, logz_ref, by_nats_ref, by_logz_ref, by_x_ref, sum_ref):
        j = pl.program_id(1)

        @pl.when(j == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        row_refs = labels_ref, logz_ref, by_nats_ref, by_logz_ref
        by_logits_vn = _logits_gradient(x_ref, table_ref, bias_ref, row_refs, j * op.blocks.ids)
        table_vd = tiles.without_none(table_ref[...], _column(bias_ref))
        sum_ref[...] += _contract_ids(by_logits_vn.astype(table_vd.dtype), table_vd)

        @pl.when(j == pl.num_programs(1) - 1)
        def _():
            by_x_ref[...] = sum_ref[...].astype(by_x_ref.dtype)

    return _call(
        kernel,
        f"{name}_backward_by_x",
        op.cost(num_products=2, passes_over_x=2, passes_over_table=op.num_position_blocks),
        grid=(op.num_position_blocks, op.num_id_blocks),
        in_specs=[specs.x, specs.table, specs.bias] + [specs.row] * 4,
        out_specs=specs.x,
        out_shape=jax.ShapeDtypeStruct(op.x_nd.shape, op.x_nd.dtype),
        scratch_shapes=[pltpu.VMEM((op.blocks.positions, op.width), jnp.float32)],
        interpret=interpret,
    )(op.x_nd, op.table_vd, op.bias_1v, *rows)


def _backward_by_table(op, rows, name, interpret, dtype):
    specs = op.specs(positions_axis=1, ids_axis=0)

    def kernel(
        x_ref,
        table_ref,
        bias_ref,
        labels_ref,
        logz_ref,
        by_nats_ref,
        by_logz_ref,
        by_table_ref,
        by_bias_ref,
        sum_ref,
        bias_sum_ref,
    ):
        j = pl.program_id(1)

        @pl.when(j == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)
            bias_sum_ref[...] = jnp.zeros_like(bias_sum_ref)

        row_refs = labels_ref, logz_ref, by_nats_ref, by_logz_ref
        by_logits_vn = _logits_gradient(x_ref, table_ref, bias_ref, row_refs, pl.program_id(0) * op.blocks.ids)
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
        f"{name}_backward_by_table",
        op.cost(
            num_products=2, passes_over_x=op.num_id_blocks, passes_over_table=3
        ),  # read in x's type and written in float32
        grid=(op.num_id_blocks, op.num_position_blocks),
        in_specs=[specs.x, specs.table, specs.bias] + [specs.row] * 4,
        out_specs=[specs.table, specs.bias],
        out_shape=[jax.ShapeDtypeStruct(op.table_vd.shape, dtype), jax.ShapeDtypeStruct(op.bias_1v.shape, jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM((op.blocks.ids, op.width), jnp.float32),
            pltpu.VMEM((op.blocks.ids, NUM_LANES), jnp.float32),
        ],
        interpret=interpret,
    )(op.x_nd, op.table_vd, op.bias_1v, *rows)


def _logits_gradient(x_ref, table_ref, bias_ref, row_refs, first_id):
    logits_vn = tiles.logits(x_ref[...], table_ref[...], _column(bias_ref))
    return tiles.logits_gradient(logits_vn, first_id, *(ref[...] for ref in row_refs))


def _contract_ids(by_logits_vn, table_vd):
    return jax.lax.dot_general(by_logits_vn, table_vd, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


class _Specs(NamedTuple):
    """Where on a grid each operand's block is."""

    x: pl.BlockSpec
    table: pl.BlockSpec
    bias: pl.BlockSpec
    row: pl.BlockSpec


class _Operands(NamedTuple):
    """What the kernels take: whole blocks of positions, one type to multiply, bias and numbers of positions as rows."""

    x_nd: jax.Array
    table_vd: jax.Array  # its last block may reach behind its end
    bias_1v: jax.Array  # -inf there
    blocks: Blocks

    @classmethod
    def of(cls, x_nd: jax.Array, table_vd: jax.Array, bias_v: jax.Array, blocks: Blocks) -> "_Operands":
        x_nd = jnp.pad(x_nd, ((0, -len(x_nd) % blocks.positions), (0, 0)))
        bias_v = jnp.pad(bias_v.astype(jnp.float32), (0, -len(bias_v) % blocks.ids), constant_values=-jnp.inf)
        return cls(x_nd, table_vd.astype(x_nd.dtype), bias_v[None], blocks)

    @property
    def num_positions(self) -> int:
        return self.x_nd.shape[0]

    @property
    def width(self) -> int:
        return self.x_nd.shape[1]

    @property
    def num_position_blocks(self) -> int:
        return self.num_positions // self.blocks.positions

    @property
    def num_id_blocks(self) -> int:
        return self.bias_1v.shape[1] // self.blocks.ids

    def row(self, number_n: jax.Array, fill: float = 0) -> jax.Array:
        """[N] as [1, N], with `fill` for the positions that fill the last block."""
        return jnp.pad(number_n, (0, self.num_positions - len(number_n)), constant_values=fill)[None]

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
        )

    def cost(self, *, num_products: int, passes_over_x: int, passes_over_table: int) -> pl.CostEstimate:
        """What XLA is told, and its cost analysis counts; `num_products` of positions and table, as large as the
        logits."""
        num_logits = self.num_positions * self.table_vd.shape[0]
        num_bytes = passes_over_x * self.x_nd.nbytes + passes_over_table * self.table_vd.nbytes
        return pl.CostEstimate(
            flops=2 * num_products * num_logits * self.width, transcendentals=num_logits, bytes_accessed=num_bytes
        )


def _call(kernel, name, cost, **arguments):
    parameters = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT_BYTES)
    return pl.pallas_call(kernel, name=name, cost_estimate=cost, compiler_params=parameters, **arguments)


def _store(refs: Any, values: Any) -> None:
    for ref, value in zip(refs, jax.tree.leaves(values), strict=True):
        ref[...] = value


def _column(row_ref: jax.Array) -> jax.Array:
    """A row [1, v] as a column [v, 1]."""
    return jnp.broadcast_to(row_ref[...], (NUM_LANES, row_ref.shape[1])).T[:, :1]
