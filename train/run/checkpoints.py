"""Checkpoints: one folder a step that is committed as a whole or not there at all.

Orbax writes a checkpoint under a temporary name while training goes on. Once the files of all processes are in it,
process 0 reads them back, writes their checksums beside them and renames the folder, all in the background; only then
are older checkpoints removed. A folder that still has a temporary name after a crash is no checkpoint and is removed by
the next run. An object store cannot rename: there a last file, `commit_success.txt`, takes the place of the name. So
what is committed has checksums, and they are checked before anything is read from it; and every array in it was opened
once, so that it can be read at all. The state's parts are one unit:

    params             the weights alone, which is all that evaluation and sampling read
    rest               optimizer, counters, random key and the data's cursors
    meta               JSON: config, fingerprints of the representation and the corpora
    checksums.sha256   of every file, also for `sha256sum --check`
"""

import asyncio
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint._src.serialization import types as serialization_types  # as Orbax's own documentation has it

from tokenizer_lab.errors import POSITIVE, UserError, check_numbers
from tokenizer_lab.files import cannot_write, is_remote, matching, remote_errors
from train.hosts import processes
from train.hosts.memory import MemoryGrowth
from train.run.checksums import find_damage, write_checksums

_COMMIT_FILE = ocp.path.atomicity.COMMIT_SUCCESS_FILE  # comes last and says nothing, so that it has no checksum
_SAVE_SECONDS = 3600  # in the background, checksums and all; Orbax would give up after 600

_POLL_SECONDS = 0.01
_PARTS = ("params", "rest")


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


State = TypeVar("State", bound=_Dataclass)
"""`train.step.TrainState`: a dataclass of arrays, the weights of which are its field `params`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved. It is saved at its end, and when it is stopped, in any case."""

    every_steps: int = 1000
    keep: int = 2
    """Newest checkpoints that stay."""
    host_gigabytes: float = 32.0
    """What a save may copy at once into a host's memory; where the host has more to save, training waits until all is
    written."""

    def __post_init__(self) -> None:
        check_numbers(self, "checkpoint.", host_gigabytes=POSITIVE)


class _Folder(epath.gpath.PosixGPath):
    """The path that Orbax is given: it finds by `glob` what the processes have written, which in etils takes the names
    of the folders above for patterns too."""

    def glob(self, pattern: str) -> Iterator[Self]:
        *folders, name = pattern.split("/")
        yield from map(type(self), matching(self.joinpath(*folders), name))


class _WithChecksums(ocp.path.atomicity_types.TemporaryPath):
    """Commits a checkpoint's folder with checksums in it; Orbax calls this on process 0 once all processes have written
    their files."""

    _checkpoint_metadata_store: Any

    async def finalize(self) -> None:
        if self._checkpoint_metadata_store is not None:
            await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
            self._checkpoint_metadata_store = None  # no time of commit is written into a file that has its checksum
        if self.get_final().name.isdecimal():  # a step's folder; each part in it is committed before, in the same way
            await asyncio.to_thread(_open_all_arrays, self.get())
            await asyncio.to_thread(write_checksums, self.get(), {_COMMIT_FILE})
        await super().finalize()


class _Renamed(_WithChecksums, ocp.path.atomicity.AtomicRenameTemporaryPath):
    """On file systems."""


class _Marked(_WithChecksums, ocp.path.atomicity.CommitFileTemporaryPath):
    """On object stores."""


class _Manager(ocp.CheckpointManager):
    """Remembers at once why a save in the background failed. Orbax tells only when it is asked to wait, and among
    several processes not before all have given up waiting for the one that failed; its `check_for_errors` takes the
    error from the thread that would otherwise not go on to remove older checkpoints.
    """

    failure: Exception | None = None

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise


class _Transfers(serialization_types.DefaultSerializationStatusCallback):
    """Tells Orbax whether to copy the whole state to the host before `save` returns, or in portions while it is
    written."""

    in_portions = False

    def key_priority(self, _: Any) -> serialization_types.TransferPriority:
        priority = serialization_types.TransferPriority
        return priority.ASYNCHRONOUS_DEPRIORITIZED if self.in_portions else priority.SYNCHRONOUS


class Checkpoints:
    """The checkpoints of one run. Saves run in the background; `check`, `wait` and the next save raise what went wrong
    in them.

    Args:
      folder: where they are.
      keep: as many of the newest stay.
      host_gigabytes: a save copies this process's share of the state into the host's memory and returns. A share that
        is larger than this is copied in portions that are not, or of one array each, and `save` returns when all is
        written.
      read_only: nothing is made or cleaned up, as another process may be saving.
    """

    def __init__(self, folder: epath.PathLike, keep: int = 2, host_gigabytes: float = 32, *, read_only: bool = False):
        self.folder = epath.Path(folder) if is_remote(folder) else _Folder(folder).absolute()
        if "\\" in os.fspath(self.folder):
            raise UserError(
                f"{self.folder}: checkpoints cannot lie below a name with a backslash; choose another --run-dir"
            )
        self._host_gigabytes, self._memory = host_gigabytes, MemoryGrowth()
        self._transfers = _Transfers()
        arrays = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(callback=self._transfers))
        )
        parts = {
            name: ocp.PyTreeCheckpointHandler(
                save_device_host_concurrent_gb=host_gigabytes / 2, type_handler_registry=arrays
            )
            for name in _PARTS
        }
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            read_only=read_only,
            lightweight_initialize=True,
            async_options=ocp.options.AsyncOptions(timeout_secs=_SAVE_SECONDS),
            temporary_path_class=_Marked if is_remote(self.folder) else _Renamed,
        )
        try:
            with remote_errors(self.folder):
                self._manager = _Manager(
                    self.folder, options=options, item_handlers=parts | {"meta": ocp.JsonCheckpointHandler()}
                )
        except OSError as error:
            raise UserError(f"cannot use {self.folder} for checkpoints: {error}; choose another --run-dir") from error

    @property
    def memory_growth_bytes(self) -> int:
        """How far the resident memory of this process has risen during a save, at most."""
        return self._memory.peak_bytes

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
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with remote_errors(self.folder):
                    damage = find_damage(self.folder / str(step), {_COMMIT_FILE})
            except OSError as error:
                raise UserError(
                    f"cannot read {self.folder / str(step)}: {error.strerror or error}; mend that,"
                    f" {self._instead_of(step)}"
                ) from error
            if damage is None:
                for number, reason in damaged.items():
                    report(
                        f"checkpoint {self.folder / str(number)} is damaged: {reason}; the one before, of step {step},"
                        " is used"
                    )
                return step
            damaged[step] = damage
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"no checkpoint in {self.folder} is whole ({reasons}); put a copy of one in its place, or train anew in"
                " another --run-dir"
            )
        return None

    def set_aside_after(self, step: int) -> None:
        """Renames the checkpoints of later steps, which are damaged, to STEP.damaged: those steps will be saved
        again."""
        for later in [number for number in self._manager.all_steps() if number > step and processes.is_first()]:
            aside = self.folder / f"{later}.damaged"
            try:
                with remote_errors(aside):
                    if aside.exists():
                        aside.rmtree()
                    (self.folder / str(later)).rename(aside)
            except OSError as error:
                raise cannot_write(aside, error) from error
        processes.first_decides("damaged checkpoints are set aside", True)
        self._manager.reload()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving a state, a dataclass with `params` among its fields; it may be donated as soon as this returns.
        Raises UserError if this or the save before failed."""
        rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != "params"}
        self.wait()
        share_bytes = sum(
            shard.data.nbytes
            for array in jax.tree.leaves(state)
            for shard in array.addressable_shards
            if shard.replica_id == 0
        )
        self._transfers.in_portions = share_bytes > self._host_gigabytes * 1e9
        with self._saving():
            handed_over = threading.Event()
            self._memory.watch_until(lambda: handed_over.is_set() and not self._manager.is_saving_in_progress())
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params),
                    rest=ocp.args.PyTreeSave(rest),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
            handed_over.set()
        if self._transfers.in_portions:  # they are read from the state meanwhile
            self.wait()

    def check(self) -> None:
        """Raises UserError if the save in the background has failed by now."""
        if self._manager.failure:
            with self._saving():
                raise self._manager.failure

    def wait(self) -> None:
        """Until the last save is committed. Raises UserError if it failed."""
        while self._manager.is_saving_in_progress() and not self._manager.failure:
            time.sleep(_POLL_SECONDS)
        self.check()
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._memory.end()
        if not self._manager.failure:  # else the other processes still wait for this one
            with contextlib.suppress(OSError, ValueError):  # a save that failed has been told of by `save` or `wait`
                self._manager.close()

    def read_meta(self, step: int) -> dict[str, Any]:
        return self._restore(step, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, step: int, shapes: State, shardings: State) -> State:
        """The state of a step, laid out as `shardings` say; the mesh may be another than it was saved from."""
        target = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
        )
        rest = {
            field.name: getattr(target, field.name) for field in dataclasses.fields(target) if field.name != "params"
        }
        restored = self._restore(step, params=_restored_as(target.params), rest=_restored_as(rest))
        return dataclasses.replace(shapes, params=restored["params"], **restored["rest"])

    def restore_params(self, step: int, shapes: Any, shardings: Any) -> Any:
        """The weights alone."""
        target = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
        )
        return self._restore(step, params=_restored_as(target))["params"]

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (ValueError, OSError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read: {reason}; put a copy in its place,"
                f" {self._instead_of(step)}"
            ) from error

    def _instead_of(self, step: int) -> str:
        """What helps where a step cannot be read and will not be; nobody is told to remove the only one there is."""
        earlier = max((number for number in self._manager.all_steps() if number < step), default=None)
        if earlier is None:
            return "or train anew in another --run-dir; there is none before it, keep it"
        return f"or move that folder out of {self.folder} to go on from step {earlier}"

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns whatever a failed save raises into one line that says what is still there."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, OSError | ValueError) and not is_remote(
                self.folder
            ):  # the clients of object stores have errors of their own
                raise
            step = max(self._manager.all_steps(read=True), default=None)
            kept = f"the newest there is of step {step}" if step is not None else "there is none yet"
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"saving a checkpoint in {self.folder} failed: {reason}; {kept}; mend that and run the same command"
                " again"
            ) from error


def _open_all_arrays(folder: epath.Path) -> None:
    """Raises ValueError where an array that a checkpoint names is not in its files."""
    for part in _PARTS:
        ocp.PyTreeCheckpointHandler().metadata(folder / part)


def _restored_as(target: Any) -> ocp.args.PyTreeRestore:
    """Arguments that give the arrays of a part the shapes, types and shardings of `target`."""
    return ocp.args.PyTreeRestore(item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
