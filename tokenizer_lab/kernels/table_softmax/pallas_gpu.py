"""The passes with GPU kernels, by Triton: a tile of logits in registers, to which the width is added piece by piece.

- forward: a program folds some tiles of ids into a state of each of its positions; XLA makes one of the states of all
  ids. Positions alone would be too few programs to keep a GPU busy.
- backward: a kernel computes the logits' gradient, `MAX_GRADIENT_BYTES` of it at a time, in x's type; XLA multiplies
  with it. The sums by x or by the table, float32 and as wide as the hidden states, are kept in VMEM on TPUs. A GPU's
  core has 256 KiB of registers: kernels with these sums in them would compute the logits again for every 256 or so of
  the width.

Compiled for an H100 ahead of time, run nowhere yet.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tokenizer_lab.kernels.table_softmax import chunked, tiles

DTYPES = (jnp.bfloat16, jnp.float32)  # that the kernels multiply
# A tile of logits, and the sum it comes from, take half of the registers of a core: 128 for each of 8 x 32 threads.
TILE_POSITIONS, TILE_IDS = 128, tiles.ID_MULTIPLE
PIECE_BYTES = 128  # of a row of x or table: what is multiplied at a time
PART_TILES = 8  # that a program folds
NUM_WARPS = 8
NUM_STAGES = 3  # pieces in shared memory: one is multiplied while the next two are read
MAX_GRADIENT_BYTES = 32 << 20
SHARED_MEMORY_LIMIT_BYTES = 227 << 10  # of a program on an H100


def shared_memory_bytes() -> int:
    """What a program takes at most."""
    return NUM_STAGES * (TILE_POSITIONS + TILE_IDS) * PIECE_BYTES


def refusal(x_nd: jax.Array | jax.ShapeDtypeStruct) -> str | None:
    """What the kernels do not take about hidden states [N, D], and why; None if they take them."""
    return None if x_nd.dtype in DTYPES else f"hidden states of type {x_nd.dtype}, only bfloat16 and float32"


def forward(
    of_no_ids: Callable[..., Any],
    add: Callable[..., Any],
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    numbers: tuple[jax.Array, ...],
    *,
    name: str,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """See `pallas_tpu.forward`."""
    num_blocks, num_tiles = pl.cdiv(len(x_nd), TILE_POSITIONS), pl.cdiv(len(table_vd), TILE_IDS)
    num_parts = pl.cdiv(num_tiles, PART_TILES)
    state, tree = jax.tree.flatten(jax.eval_shape(lambda: of_no_ids(num_blocks * TILE_POSITIONS)))

    def kernel(x_ref, table_ref, bias_ref, *refs):
        row_refs, state_refs = refs[: len(numbers)], refs[len(numbers) :]
        part, block = pl.program_id(0), pl.program_id(1)
        rows = [ref[:, _block(block)] for ref in row_refs]

        def add_tile(tile, state):
            return add(state, _logits(x_ref, table_ref, bias_ref, block, tile), tile * TILE_IDS, *rows)

        first = part * PART_TILES
        state = jax.lax.fori_loop(
            first, jnp.minimum(first + PART_TILES, num_tiles), add_tile, of_no_ids(TILE_POSITIONS)
        )
        for ref, value in zip(state_refs, jax.tree.leaves(state), strict=True):
            ref[pl.ds(part, 1), _block(block)] = value

    parts = _call(
        kernel,
        f"{name}_forward",
        grid=(num_parts, num_blocks),  # neighbours read the same tiles of the table
        out_shape=[jax.ShapeDtypeStruct((num_parts, row.shape[1]), row.dtype) for row in state],
        interpret=interpret,
    )(*_operands(x_nd, table_vd, bias_v), *map(_row, numbers))
    return tuple(x_1n[0, : len(x_nd)] for x_1n in jax.tree.unflatten(tree, parts).of_all().results())


def backward(
    x_nd: jax.Array, table_vd: jax.Array, bias_v: jax.Array, *rows: jax.Array, name: str, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `pallas_tpu.backward`."""

    def of_tile(*arguments):
        return _logits_gradient(*arguments, name=name, interpret=interpret)

    num_ids = chunked.tile_ids(len(x_nd), x_nd.dtype.itemsize, MAX_GRADIENT_BYTES)
    return chunked.backward(x_nd, table_vd, bias_v, *rows, of_tile=of_tile, num_ids=num_ids)


def _logits_gradient(x_nd, table_vd, bias_v, labels_n, logz_n, by_nats_n, by_logz_n, *, name, interpret):
    """See `chunked.logits_gradient`."""
    num_blocks, num_tiles = pl.cdiv(len(x_nd), TILE_POSITIONS), pl.cdiv(len(table_vd), TILE_IDS)
    # Of what fills the last block all probabilities are 0.
    rows = _row(labels_n), _row(logz_n, fill=jnp.inf), _row(by_nats_n), _row(by_logz_n)

    def kernel(x_ref, table_ref, bias_ref, labels_ref, logz_ref, by_nats_ref, by_logz_ref, by_logits_ref, by_bias_ref):
        tile, block = pl.program_id(0), pl.program_id(1)
        rows = (ref[:, _block(block)] for ref in (labels_ref, logz_ref, by_nats_ref, by_logz_ref))
        by_logits_vn = tiles.logits_gradient(_logits(x_ref, table_ref, bias_ref, block, tile), tile * TILE_IDS, *rows)
        by_logits_ref[_tile(tile), _block(block)] = by_logits_vn.astype(by_logits_ref.dtype)
        by_bias_ref[block, _tile(tile)] = jnp.sum(by_logits_vn, axis=1)

    by_logits_vn, by_bias_kv = _call(
        kernel,
        f"{name}_backward",
        grid=(num_tiles, num_blocks),
        out_shape=[
            jax.ShapeDtypeStruct((num_tiles * TILE_IDS, num_blocks * TILE_POSITIONS), x_nd.dtype),
            jax.ShapeDtypeStruct((num_blocks, num_tiles * TILE_IDS), jnp.float32),
        ],
        interpret=interpret,
    )(*_operands(x_nd, table_vd, bias_v), *rows)
    return by_logits_vn[: len(table_vd), : len(x_nd)], jnp.sum(by_bias_kv, axis=0)[: len(table_vd)]


def _logits(x_ref: Any, table_ref: Any, bias_ref: Any, block: jax.Array, tile: jax.Array) -> jax.Array:
    """f32[v, N] of a block of positions and a tile of ids.

    Behind the end of x and table their last row is read again: such positions are cut off, and such ids have a bias of
    -inf.
    """
    positions, ids = (
        jnp.minimum(i * size + jnp.arange(size), ref.shape[0] - 1)
        for ref, i, size in ((x_ref, block, TILE_POSITIONS), (table_ref, tile, TILE_IDS))
    )
    piece = _piece(x_ref.dtype)

    def add_piece(i, products_nv):
        columns, contract_width = pl.ds(i * piece, piece), (((1,), (1,)), ((), ()))
        return products_nv + jax.lax.dot_general(
            x_ref[positions, columns], table_ref[ids, columns], contract_width, preferred_element_type=jnp.float32
        )

    products_nv = jax.lax.fori_loop(
        0, x_ref.shape[1] // piece, add_piece, jnp.zeros((TILE_POSITIONS, TILE_IDS), jnp.float32)
    )
    # Transposing moves nothing: a thread keeps a quarter of the ids of a few positions, and reductions over ids are
    # nearly all its own. Of a product with positions as columns it would have few ids of many positions: hundreds of
    # exchanges with other threads, and too few registers.
    return tiles.with_bias(products_nv.T, bias_ref[_tile(tile)][:, None])


def _operands(x_nd: jax.Array, table_vd: jax.Array, bias_v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one type, in whole pieces, and a bias of whole tiles."""

    def whole_pieces(rows_rd):
        return jnp.pad(rows_rd, ((0, 0), (0, -rows_rd.shape[1] % _piece(x_nd.dtype))))

    bias_v = jnp.pad(bias_v.astype(jnp.float32), (0, -len(bias_v) % TILE_IDS), constant_values=-jnp.inf)
    return whole_pieces(x_nd), whole_pieces(table_vd.astype(x_nd.dtype)), bias_v


def _row(number_n: jax.Array, fill: float = 0) -> jax.Array:
    """[N] as [1, N], with `fill` for the positions that fill the last block."""
    return jnp.pad(number_n, (0, -len(number_n) % TILE_POSITIONS), constant_values=fill)[None]


def _piece(dtype: jax.typing.DTypeLike) -> int:
    return PIECE_BYTES // jnp.dtype(dtype).itemsize


def _block(block: jax.Array) -> slice | pl.Slice:
    return pl.ds(block * TILE_POSITIONS, TILE_POSITIONS)


def _tile(tile: jax.Array) -> slice | pl.Slice:
    return pl.ds(tile * TILE_IDS, TILE_IDS)


def _call(kernel: Callable[..., Any], name: str, **arguments: Any) -> Callable[..., Any]:
    parameters = plgpu.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES)
    return pl.pallas_call(kernel, name=name, compiler_params=parameters, **arguments)
