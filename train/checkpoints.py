"""Checkpoints: one folder a step that is committed as a whole or not there at all.

Orbax writes a checkpoint under a temporary name while training goes on and renames the folder once every file is in it; a folder
that still has a temporary name after a crash is no checkpoint and is removed by the next run. The state's parts are one unit:

    params   the weights alone, which is all that evaluation and sampling read
    rest     optimizer, counters, random key and the data's cursors
    meta     JSON: config, fingerprints of the representation and the corpora
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from tokenizer_lab.errors import UserError
from train.step import TrainState


class Checkpoints:
    """The checkpoints of one run. Saves run in the background; `wait` and the next save raise what went wrong in them."""

    def __init__(self, folder: epath.PathLike, keep: int = 2):
        self.folder = epath.Path(folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True, cleanup_tmp_directories=True)
        try:
            self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        except OSError as error:
            raise UserError(f"cannot use {self.folder} for checkpoints: {error}; choose another --run-dir") from error

    def latest_step(self) -> int | None:
        """The newest committed step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts saving; the state may be donated as soon as this returns. Raises UserError if this or the save before failed."""
        rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.save(step, args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(rest), meta=ocp.args.JsonSave(meta)))

    def check(self) -> None:
        """Raises UserError if the save in the background has failed by now."""
        with self._saving():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Until the last save is committed. Raises UserError if it failed."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a save that failed has been told of by `save` or `wait`
            self._manager.close()

    def read_meta(self, step: int) -> dict[str, Any]:
        return self._restore(step, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state of a step, laid out as `shardings` say; the mesh may be another than it was saved from."""
        target = jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings)
        rest = {field.name: getattr(target, field.name) for field in dataclasses.fields(target) if field.name != "params"}
        restored = self._restore(step, params=ocp.args.StandardRestore(target.params), rest=ocp.args.StandardRestore(rest))
        return TrainState(params=restored["params"], **restored["rest"])

    def restore_params(self, step: int, shapes: Any, shardings: Any) -> Any:
        """The weights alone."""
        target = jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings)
        return self._restore(step, params=ocp.args.StandardRestore(target))["params"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, OSError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"checkpoint {self.folder / str(step)} cannot be read: {reason}; remove that folder to go on from the one before") from error

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns whatever a failed save raises into one line that says what is still there."""
        try:
            yield
        except (OSError, ValueError) as error:
            step = self.latest_step()
            kept = f"the newest whole one is of step {step}" if step is not None else "there is none yet"
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"saving a checkpoint in {self.folder} failed: {reason}; {kept}; mend that and run the same command again") from error
