"""`toklab submit --to local`: the processes of a job on this machine, started again whenever they can go on.

The processes find each other through TOKLAB_COORDINATOR, TOKLAB_NUM_PROCESSES and TOKLAB_PROCESS_ID. Each writes to a
file of its own; what the first one writes is shown as well.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, BinaryIO, Literal

import rich.console

from tokenizer_lab.errors import FROM_0, UserError, check_numbers
from tokenizer_lab.files import cannot_write, is_remote
from train.console import say
from train.exits import EXIT_STOPPED, EXIT_USER_ERROR, stop_signals_to
from train.recipe import Recipe
from train.run.folder import RunFolder, lock
from train.submit.job import Job, record

EXIT_DONE = 0
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """Start processes on this machine."""

    num_processes: int = 1
    devices_per_process: int | None = None
    """CPU devices that each process makes; without it a process takes what the machine has."""
    max_restarts: int = 3
    """After processes that failed, or stopped without having come further."""
    grace_seconds: float = 60.0
    """That processes have to end by themselves once one of them has failed or all are told to stop."""

    def __post_init__(self) -> None:
        check_numbers(self, "--", max_restarts=FROM_0)

    def place(self, recipe: Recipe) -> Recipe:
        if self.devices_per_process:
            recipe.check_devices(self.num_processes * self.devices_per_process)
        return recipe

    def render(self, job: Job) -> str:
        command = shlex.join(job.command("toklab"))
        lines = [
            " ".join([*(f"{name}={value}" for name, value in self.environment(number, "PORT").items()), command])
            for number in range(self.num_processes)
        ]
        return "\n".join([*lines, f"# output: {logs_folder(job)}/worker-N.log; restarts: {self.max_restarts}"])

    def submit(self, job: Job, console: rich.console.Console) -> int:
        with lock(logs_folder(job)):
            record(job, "local", console)
            return launch(
                job.command(sys.executable, "-m", "train.commands.cli"),
                self,
                logs_folder(job),
                lambda: newest_step(job.run_dir),
                console,
            )

    def environment(self, number: int, port: int | str) -> dict[str, str]:
        """What process `number` finds in its environment besides ours."""
        found: dict[str, str] = {}
        if self.num_processes > 1:
            found |= {
                "TOKLAB_COORDINATOR": f"127.0.0.1:{port}",
                "TOKLAB_NUM_PROCESSES": str(self.num_processes),
                "TOKLAB_PROCESS_ID": str(number),
            }
        if self.devices_per_process:
            found |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(self.devices_per_process)}
        return found


def logs_folder(job: Job) -> pathlib.Path:
    """Where the processes' output goes: into the run's folder, or beside us if that is not on a disk."""
    return (
        pathlib.Path("toklab-logs", job.name)
        if is_remote(job.run_dir)
        else pathlib.Path(os.fspath(RunFolder(job.run_dir).logs))
    )


def newest_step(run_dir: str) -> int:
    """The step of a run's newest checkpoint, -1 if it has none."""
    checkpoints = RunFolder(run_dir).checkpoints
    return (
        max((int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()), default=-1)
        if checkpoints.exists()
        else -1
    )


def launch(
    command: Sequence[str],
    options: Local,
    logs: pathlib.Path,
    progress: Callable[[], int],
    console: rich.console.Console,
) -> int:
    """Runs the processes of a command until they are done, starting all of them again when one has failed.

    Args:
      command: what each process runs.
      options: how many, and how often.
      logs: folder for their output.
      progress: a number that grows as the job comes further; a stop without growth counts as a restart.
      console: where restarts are told.

    Returns:
      0 done, 2 a person can mend it (a process has said how), 75 we were told to stop.

    Raises:
      UserError: the restarts are used up.
    """
    restarts, reached, stop = 0, progress(), StopRequests()
    with stop_signals_to(stop.note):
        while True:
            ended = run_once(command, options, logs, stop)
            if ended.code in (EXIT_DONE, EXIT_USER_ERROR):
                tell_last_line(ended, logs, console)
                return ended.code
            if stop.num_received:
                return EXIT_STOPPED
            before, reached = reached, progress()
            if ended.code != EXIT_STOPPED or reached <= before:
                restarts += 1
            if restarts > options.max_restarts:
                raise UserError(
                    f"process {ended.process} {ended.how} and {options.max_restarts} restarts are used up;"
                    f" {log_file(logs, ended.process)} has what it wrote; mend that, or raise --max-restarts, and run"
                    " the same command again"
                )
            say(
                console,
                f"process {ended.process} {ended.how}; starting all again (restart {restarts} of {options.max_restarts}"
                " at most)",
            )


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the processes of one attempt have ended: the one that decided, and its exit code or minus its signal."""

    process: int
    code: int

    @property
    def how(self) -> str:
        return f"was ended by {signal.Signals(-self.code).name}" if self.code < 0 else f"has exited with {self.code}"


class StopRequests:
    """Counts SIGTERM and Ctrl-C instead of ending."""

    def __init__(self):
        self.num_received = 0

    def note(self, *_: Any) -> None:
        self.num_received += 1


def run_once(command: Sequence[str], options: Local, logs: pathlib.Path, stop: StopRequests) -> Ended:
    """Starts the processes and waits for the last of them. No process outlives this call, nor this program."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(open_log(logs, 0, "rb"))
        shown.seek(0, os.SEEK_END)
        files = [stack.enter_context(open_log(logs, number, "ab")) for number in range(options.num_processes)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for number, file in enumerate(files):
                processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=_die_with_parent(os.getpid()),
                        env=os.environ | {"PYTHONUNBUFFERED": "1"} | options.environment(number, port),
                    )
                )
            ended: dict[int, int] = {}
            deadline = Deadline(processes, options.grace_seconds, stop)
            while len(ended) < len(processes):
                ended |= {
                    number: process.returncode
                    for number, process in enumerate(processes)
                    if process.poll() is not None and number not in ended
                }
                deadline.enforce(ended.values())
                show(shown)
                time.sleep(_POLL_SECONDS)
        finally:
            for process in processes:
                send(process, signal.SIGKILL)
                process.wait()
            show(shown)
    return verdict(ended)


class Deadline:
    """Passes stop requests on to the processes, and ends the rest of them once one has failed.

    A process that has stopped (75) or is done leaves the others time to do so by themselves: they are saving too. Where
    one has failed the others can only wait for it in vain, and are told to end at once. Who has not ended after the
    grace period is killed.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], grace_seconds: float, stop: StopRequests):
        self._processes, self._grace_seconds, self._stop = processes, grace_seconds, stop
        self._num_forwarded, self._ends, self._told = 0, math.inf, False

    def enforce(self, codes: Collection[int]) -> None:
        """To be called again and again, with the exit codes so far."""
        stopped, failed = EXIT_STOPPED in codes, bool(set(codes) - {EXIT_DONE, EXIT_STOPPED})
        if self._stop.num_received > self._num_forwarded or (failed and not self._told):
            self._num_forwarded, self._told = self._stop.num_received, True
            self._ends = time.monotonic() + self._grace_seconds
            self._send(signal.SIGTERM)
        elif stopped and self._ends == math.inf:
            self._ends = time.monotonic() + self._grace_seconds
        if time.monotonic() > self._ends:
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                send(process, number)


def verdict(codes: dict[int, int]) -> Ended:
    """What the exit codes of the processes, in the order in which they ended, say together.

    A mistake of a person's (2) comes first, since a restart would meet it again; then the first that failed, then any
    that stopped.
    """

    def rank(number: int) -> int:
        return {EXIT_USER_ERROR: 0, EXIT_STOPPED: 2, EXIT_DONE: 3}.get(codes[number], 1)

    process = min(codes, key=rank)
    return Ended(process, codes[process])


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signals a process and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def free_port() -> int:
    """A port of the loopback that nobody has at this moment; should it be taken meanwhile, the next attempt takes
    another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent(parent: int) -> Callable[[], None]:
    """For a child between fork and exec: the kernel kills it when the thread that started it ends, however that comes
    about (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def tie() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def log_file(logs: pathlib.Path, number: int) -> pathlib.Path:
    return logs / f"worker-{number}.log"


def open_log(logs: pathlib.Path, number: int, mode: Literal["rb", "ab"]) -> BinaryIO:
    try:
        logs.mkdir(parents=True, exist_ok=True)
        log_file(logs, number).touch()
        return open(log_file(logs, number), mode)
    except OSError as error:
        raise cannot_write(log_file(logs, number), error) from error


def show(log: BinaryIO) -> None:
    """Copies what was written since the last time to our own output."""
    if written := log.read():
        sys.stdout.buffer.write(written)
        sys.stdout.flush()


def tell_last_line(ended: Ended, logs: pathlib.Path, console: rich.console.Console) -> None:
    """The complaint of a process whose output is not shown."""
    if ended.code == EXIT_USER_ERROR and ended.process != 0:
        lines = log_file(logs, ended.process).read_text(errors="replace").splitlines()
        say(console, f"process {ended.process}: {lines[-1] if lines else 'it said nothing'}")
