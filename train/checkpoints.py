"""Checkpoints: one folder a step that is committed as a whole or not there at all.

Orbax writes a checkpoint under a temporary name while training goes on. Once the files of all processes are in it, process 0 reads
them back, writes their checksums beside them and renames the folder, all in the background; only then are older checkpoints removed.
A folder that still has a temporary name after a crash is no checkpoint and is removed by the next run. An object store cannot rename:
there a last file, `commit_success.txt`, takes the place of the name. So what is committed has checksums, and they are checked
before anything is read from it. The state's parts are one unit:

    params             the weights alone, which is all that evaluation and sampling read
    rest               optimizer, counters, random key and the data's cursors
    meta               JSON: config, fingerprints of the representation and the corpora
    checksums.sha256   of every file, also for `sha256sum --check`
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote
from train import hosts
from train.checksums import find_damage, write_checksums
from train.step import TrainState

_COMMIT_FILE = ocp.path.atomicity.COMMIT_SUCCESS_FILE  # comes last and says nothing, so that it has no checksum
_SAVE_SECONDS = 3600  # in the background, checksums and all; Orbax would give up after 600


class _WithChecksums:
    """Commits a checkpoint's folder with checksums in it; Orbax calls this on process 0 once all processes have written their files."""

    async def finalize(self) -> None:
        if self._checkpoint_metadata_store is not None:
            await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
            self._checkpoint_metadata_store = None  # no time of commit is written into a file that has its checksum
        await asyncio.to_thread(write_checksums, self.get(), {_COMMIT_FILE})
        await super().finalize()


class _Renamed(_WithChecksums, ocp.path.atomicity.AtomicRenameTemporaryPath):
    """On file systems."""


class _Marked(_WithChecksums, ocp.path.atomicity.CommitFileTemporaryPath):
    """On object stores."""


class Checkpoints:
    """The checkpoints of one run. Saves run in the background; `check`, `wait` and the next save raise what went wrong in them."""

    def __init__(self, folder: epath.PathLike, keep: int = 2, *, read_only: bool = False):
        self.folder = epath.Path(folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True, cleanup_tmp_directories=True, read_only=read_only,
            async_options=ocp.options.AsyncOptions(timeout_secs=_SAVE_SECONDS),
            temporary_path_class=_Marked if is_remote(self.folder) else _Renamed)
        try:
            self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        except OSError as error:
            raise UserError(f"cannot use {self.folder} for checkpoints: {error}; choose another --run-dir") from error

    def latest_step(self) -> int | None:
        """The newest step that is committed or being saved."""
        return self._manager.latest_step()

    def newest_whole(self, report: Callable[[str], None]) -> int | None:
        """The newest step of which every file is what was saved; None where no step was ever committed.

        Args:
          report: called with a line for every newer one that is not.

        Raises:
          UserError: there are checkpoints and none of them is whole.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                damage = find_damage(self.folder / str(step), {_COMMIT_FILE})
            except OSError as error:
                raise UserError(f"cannot read {self.folder / str(step)}: {error.strerror or error}; mend that, or remove the folder to go on "
                                "from the checkpoint before") from error
            if damage is None:
                for number, reason in damaged.items():
                    report(f"checkpoint {self.folder / str(number)} is damaged: {reason}; the one before, of step {step}, is used")
                return step
            damaged[step] = damage
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(f"no checkpoint in {self.folder} is whole ({reasons}); put a copy in its place, or remove that folder to train anew")
        return None

    def set_aside_after(self, step: int) -> None:
        """Renames the checkpoints of later steps, which are damaged, to STEP.damaged: those steps will be saved again."""
        for later in [number for number in self._manager.all_steps() if number > step and hosts.is_first()]:
            aside = self.folder / f"{later}.damaged"
            aside.rmtree(missing_ok=True)
            (self.folder / str(later)).rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

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
            step = max(self._manager.all_steps(read=True), default=None)
            kept = f"the newest there is of step {step}" if step is not None else "there is none yet"
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"saving a checkpoint in {self.folder} failed: {reason}; {kept}; mend that and run the same command again") from error
