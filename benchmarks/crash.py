"""Processes that train together, killed and frozen at random moments: do they notice, and do they come to the same
model?

    python benchmarks/crash.py [--rounds 50] [--num-processes 2] [--seed 0]

In each round all processes are started; at a random moment of the start, of a step or of a save, one of them gets a
SIGKILL or a SIGSTOP. The others must end by themselves before the deadline, and the next round goes on from the newest
checkpoint. A run that has come to its end is compared with an undisturbed one of as many processes: weights, optimizer
and cursors of the data bit for bit, and every step's loss and bytes, so that no document was missed or read twice. Then
the next run begins. Exits with 1 if anything was not as it should be.
"""

import dataclasses
import os
import pathlib
import pydoc_data.topics
import random
import signal
import subprocess
import sys
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import rich.console
import tyro

from train.exits import EXIT_HUNG
from train.recipe import load_recipe
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder, read_lines
from train.setup import set_up
from train.submit.local import Local, free_port, newest_step

HEARTBEAT_SECONDS, START_SECONDS = 10, 90
MARGIN_SECONDS = 20  # for a machine that has other things to do
MOMENTS = ("start", "step", "save")
RECIPE = """
from models.decoder import DecoderConfig
from train.optimizer import Budget
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, LoggingConfig, Recipe
from train.sharding import MeshConfig
from train.hosts.watchdog import Deadlines


def recipe() -> Recipe:
    return Recipe(
        name="crash", representation={folder!r} + "/byte", budget=Budget(steps={steps}),
        data=DataConfig(corpora=({folder!r} + "/corpus0", {folder!r} + "/corpus1"), weights=(2.0, 1.0),
                        batch_rows=12, sequence_length=64),
        model=DecoderConfig(num_layers=2, embed_dim=48, num_heads=2, num_kv_heads=2, head_dim=24, mlp_dim=96,
                            compute_dtype="float32", remat="none"),
        mesh=MeshConfig(replica=-1, fsdp=1), logging=LoggingConfig(every_steps=1, tensorboard=False),
        checkpoint=CheckpointConfig(every_steps=4),
        evaluation=EvaluationConfig(every_steps=25, max_bytes=4096, batch_rows=12),
        deadlines=Deadlines(start_seconds={start}, heartbeat_seconds={heartbeat}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Kills and freezes processes that train together."""

    rounds: int = 50
    num_processes: int = 2
    steps: int = 80
    """Of a run."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Crash:
    """What was done in a round, and what came of it."""

    moment: str
    how: str
    victim: int
    steps: tuple[int, int]
    """Of the newest checkpoint when the processes were started, and steps taken when the signal was sent."""
    codes: list[int | None]
    """Of the others; None if one had to be killed."""
    seconds: float
    """Until the last of the others had ended."""
    within_seconds: float

    @property
    def good(self) -> bool:
        return set(self.codes) <= {EXIT_HUNG, -signal.SIGABRT}


def main(options: Options) -> None:
    console, random_ = rich.console.Console(highlight=False, soft_wrap=True), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, options)
        began = time.monotonic()
        undisturbed = start(folder, "undisturbed", options.num_processes)
        wait_until(lambda: taken(folder / "undisturbed"), undisturbed)
        start_seconds = time.monotonic() - began
        assert [process.wait() for process in undisturbed] == [0] * options.num_processes, log_tail(
            folder, "undisturbed"
        )
        wanted, crashes, failures, number = outcome(folder, "undisturbed"), [], [], 0
        console.print(
            f"undisturbed: {options.num_processes} processes, {options.steps} steps, {start_seconds:.0f} s to the first"
        )
        while len(crashes) < options.rounds:
            run = f"run{number}"
            crash = crash_once(folder, run, options.num_processes, random_, start_seconds)
            if crash is not None:
                crashes.append(crash)
                console.print(
                    f"{len(crashes):3} {run} {crash.moment:5} {crash.how} host {crash.victim}  checkpoint"
                    f" {crash.steps[0]:3}, step {crash.steps[1]:3}  others {crash.codes} after {crash.seconds:5.1f} s"
                    f" of {crash.within_seconds:.0f}  {'' if crash.good else 'NOT GOOD'}"
                )
                failures += [] if crash.good else [log_tail(folder, run)]
            elif (got := outcome(folder, run)) == wanted:
                console.print(f"    {run} has come to its end: bit-identical")
                number += 1
            else:
                failures.append(f"{run} differs in {[part for part in wanted if wanted[part] != got.get(part)]}")
                number += 1
        if (
            start_and_finish(folder, f"run{number}", options.num_processes)
            and outcome(folder, f"run{number}") == wanted
        ):
            console.print(f"    run{number} has come to its end: bit-identical")
        else:
            failures.append(f"run{number} did not come to the same end: {log_tail(folder, f'run{number}')}")
    for moment in MOMENTS:
        of_it = [crash for crash in crashes if crash.moment == moment]
        console.print(
            f"{moment:5}: {len(of_it)} crashes, noticed within"
            f" {max((crash.seconds for crash in of_it), default=0):.1f} s"
        )
    console.print("\n".join(failures) or f"{len(crashes)} crashes, all as they should be")
    sys.exit(bool(failures))


def prepare(folder: pathlib.Path, options: Options) -> None:
    """Two corpora of different texts, the representation and the recipe."""
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    for number in range(2):
        (folder / f"text{number}").mkdir()
        for which, text in enumerate(texts[number::2]):
            (folder / f"text{number}" / f"{which:03}.txt").write_text(text[:4000])
        toklab(folder, "ingest", f"text{number}", "--out", f"corpus{number}", "--domain", f"topics{number}")
    toklab(folder, "fit", "byte", "--corpus", "corpus0", "--out", "byte")
    (folder / "recipe.py").write_text(
        RECIPE.format(folder=str(folder), steps=options.steps, start=float(START_SECONDS), heartbeat=HEARTBEAT_SECONDS)
    )


def toklab(folder: pathlib.Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "train.commands.cli", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )


def start(folder: pathlib.Path, run: str, num_processes: int) -> list[subprocess.Popen]:
    port, processes, place = free_port(), [], Local(num_processes=num_processes, devices_per_process=1)
    for number in range(num_processes):
        with open(folder / f"{run}-{number}.log", "a") as log:
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "train.commands.cli",
                        "train",
                        str(folder / "recipe.py"),
                        "--run-dir",
                        str(folder / run),
                    ],
                    env=os.environ | place.environment(number, port),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def crash_once(
    folder: pathlib.Path, run: str, num_processes: int, random_: random.Random, start_seconds: float
) -> Crash | None:
    """Starts the processes and disturbs one of them; None if they had come to the end of the run by then."""
    path, moment, how, victim = (
        folder / run,
        random_.choice(MOMENTS),
        random_.choice([signal.SIGKILL, signal.SIGSTOP]),
        random_.randrange(num_processes),
    )
    delay_seconds = random_.uniform(0, {"start": start_seconds, "step": 0.2, "save": 0.02}[moment])
    checkpoint = max(0, newest_step(str(path)))
    processes = start(folder, run, num_processes)
    if moment != "start":
        wait_for_writes(path / "metrics.jsonl", random_.randrange(2, 12), processes)
    if moment == "save":
        wait_until(lambda: any((path / "checkpoints").glob("*tmp*")), processes)
    time.sleep(delay_seconds)
    processes[victim].send_signal(how)
    began, others = time.monotonic(), [process for process in processes if process is not processes[victim]]
    within_seconds = (START_SECONDS if moment == "start" else HEARTBEAT_SECONDS) + MARGIN_SECONDS
    while any(process.poll() is None for process in others) and time.monotonic() < began + within_seconds:
        time.sleep(0.05)
    seconds, codes = time.monotonic() - began, [process.poll() for process in others]
    for process in processes:
        process.kill()
        process.wait()
    return (
        None
        if set(codes) == {0}
        else Crash(moment, how.name, victim, (checkpoint, taken(path)), codes, seconds, within_seconds)
    )


def wait_for_writes(path: pathlib.Path, count: int, processes: list[subprocess.Popen]) -> None:
    """Until a file has been changed so often."""
    last_write = lambda: path.stat().st_mtime_ns if path.exists() else 0
    for _ in range(count):
        before = last_write()
        wait_until(lambda: last_write() != before, processes)


def start_and_finish(folder: pathlib.Path, run: str, num_processes: int) -> bool:
    return [process.wait() for process in start(folder, run, num_processes)] == [0] * num_processes


def wait_until(condition, processes: list[subprocess.Popen]) -> None:
    while not condition() and all(process.poll() is None for process in processes):
        time.sleep(0.005)


def taken(path: pathlib.Path) -> int:
    """Steps in a run's log."""
    lines = read_lines(RunFolder(path).metrics)
    return lines[-1]["step"] if lines else 0


def outcome(folder: pathlib.Path, run: str) -> dict[str, bytes]:
    """All that must be the same: every array of the last checkpoint, and the numbers of every step."""
    setup, checkpoints = (
        set_up(load_recipe(str(folder / "recipe.py"))),
        Checkpoints(RunFolder(folder / run).checkpoints),
    )
    state = checkpoints.restore(checkpoints.latest_step(), setup.program.shapes, setup.program.shardings)
    checkpoints.close()
    arrays = {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    lines = [
        (line["step"], line["bytes_seen"], line["loss"], line["grad_norm"])
        for line in read_lines(RunFolder(folder / run).metrics)
    ]
    return arrays | {"steps": repr(lines).encode()}


def log_tail(folder: pathlib.Path, run: str) -> str:
    return "\n".join(
        f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(folder.glob(f"{run}-*.log"))
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
