"""Global batches of a run's training text, from where its data stands."""

import contextlib
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from data.document_hash import NoteHash
from data.held_out import run_sources
from data.rows import RowStreams
from train.setup import Setup
from train.sharding import batch_sharding, cursor_sharding, local_rows, put_rows
from train.step import TrainState


@contextlib.contextmanager
def open_batches(setup: Setup, state: TrainState, note_hash: NoteHash) -> Iterator[Callable[[], dict[str, jax.Array]]]:
    """Yields a function that gives the next global batch, from where the state's cursors stand; rows tell `note_hash`
    what they have read. The threads and processes that read ahead end with the context: Python cannot end while
    threads are in native code."""
    data, mesh = setup.recipe.data, setup.mesh
    rows = local_rows(mesh, data.batch_rows)
    weights = data.weights or (1.0,) * len(setup.corpora)
    streams = RowStreams(
        run_sources(setup.corpora, weights, setup.split.trained_from),
        setup.representation,
        batch_rows=data.batch_rows,
        sequence_length=data.sequence_length,
        seed=setup.recipe.seed,
        rows=rows,
        cursors=_rows_of(state.cursors, rows),
        piece_length=data.piece_length,
        num_workers=data.num_workers,
        num_processes=data.num_processes,
        layout=setup.recipe.layout,
        note_hash=note_hash,
    )
    batches = iter(grain.experimental.ThreadPrefetchIterDataset(streams, prefetch_buffer_size=data.prefetch_batches))

    def place(name: str, value: np.ndarray) -> jax.Array:
        sharding = cursor_sharding(mesh) if name == "cursors" else batch_sharding(mesh, value.ndim)
        return put_rows(value, rows, data.batch_rows, sharding)

    with contextlib.closing(batches):
        yield lambda: {name: place(name, value) for name, value in next(batches).items()}


def _rows_of(cursors: jax.Array, rows: list[int]) -> np.ndarray:
    """This process's rows of the global cursors i32[B, S + 3]."""
    own: dict[int, np.ndarray] = {}
    for shard in cursors.addressable_shards:
        own |= zip(range(*shard.index[0].indices(cursors.shape[0])), np.asarray(shard.data))
    return np.stack([own[row] for row in rows])
