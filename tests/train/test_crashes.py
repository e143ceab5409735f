"""Runs whose process is killed or whose disk is full: what was committed is whole, and the same command goes on."""

import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train import exits
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.optimizer import Budget
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder, read_lines
from train.summary import FINISHED

CONSOLE = rich.console.Console(quiet=True)


def quick() -> dict[str, str]:
    """The environment of a process that is to compile quickly, as in conftest.py."""
    return {"XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"], "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(recipe_file: str, run: pathlib.Path, *overrides: str) -> list[str]:
    """The command line that trains a recipe."""
    return [sys.executable, "-m", "train.commands.cli", "train", recipe_file, "--run-dir", str(run), *overrides]


def run_command(arguments: list[str], **keywords) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, env=os.environ | quick(), capture_output=True, text=True, timeout=300, **keywords)


def train_and_kill(arguments: list[str], run: pathlib.Path, num_steps: int, delay_seconds: float, how: int) -> int:
    """Trains until the log is `num_steps` further than before, waits, then sends a signal; returns the exit code."""
    metrics = run / "metrics.jsonl"
    target = last_step(metrics) + num_steps
    process = subprocess.Popen(arguments, env=os.environ | quick(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and num_steps and last_step(metrics) < target:
        time.sleep(0.005)
    time.sleep(delay_seconds)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=120)
    assert b"Traceback" not in stderr, stderr.decode()
    return process.returncode


def last_step(metrics: pathlib.Path) -> int:
    """The step of the last whole line of a log that is being written; 0 before the first."""
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.fixture
def crash_and_compare(final_state, assert_same):
    """crash_and_compare(recipe, recipe_file, tmp_path, crashes): kills a run by (steps, seconds, signal) each, lets it
    finish, and compares it to an undisturbed one."""

    def crash_and_compare(recipe, recipe_file: str, tmp_path, crashes: list[tuple[int, float, int]]) -> None:
        arguments = command(recipe_file, tmp_path / "crashed")
        codes = [train_and_kill(arguments, tmp_path / "crashed", *crash) for crash in crashes]
        for (num_steps, _, how), code in zip(crashes, codes):
            # Before Python runs our first line a signal does what it does to every process; later, but before the loop,
            # 130.
            early = () if num_steps else (-how, exits.EXIT_INTERRUPTED)
            assert code in (-how if how == signal.SIGKILL else exits.EXIT_STOPPED, 0, *early), codes
        finished = run_command(arguments)
        assert finished.returncode == 0, finished.stderr
        assert run_command(command(recipe_file, tmp_path / "straight")).returncode == 0
        assert_same(final_state(recipe, tmp_path / "straight"), final_state(recipe, tmp_path / "crashed"))
        straight, crashed = (read_lines(RunFolder(tmp_path / run).metrics) for run in ("straight", "crashed"))
        assert [(line["step"], line["loss"], line["bytes_seen"]) for line in straight] == [
            (line["step"], line["loss"], line["bytes_seen"]) for line in crashed
        ]

    return crash_and_compare


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_process_that_is_killed_and_started_again_ends_bit_identical(
    recipe, write_recipe, tmp_path, change, crash_and_compare
):
    recipe = change(recipe, budget=Budget(steps=60), checkpoint={"every_steps": 7})
    crash_and_compare(recipe, write_recipe(recipe), tmp_path, [(17, 0.0, signal.SIGKILL)])


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_many_kills_at_random_moments(recipe, write_recipe, tmp_path, change, crash_and_compare):
    """Twenty rounds, kills during saves, evaluations and start-up among them."""
    random_ = random.Random(0)
    recipe = change(recipe, budget=Budget(steps=600), checkpoint={"every_steps": 3}, evaluation={"every_steps": 10})
    moments = [
        (random_.randrange(1, 40), random_.uniform(0, 0.1)) if i % 4 else (0, random_.uniform(0, 8)) for i in range(20)
    ]
    crash_and_compare(
        recipe,
        write_recipe(recipe),
        tmp_path,
        [(*moment, random_.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])) for moment in moments],
    )


@pytest.mark.parametrize("moment", ["train.commands.command_line", "configs"])
def test_a_signal_before_training_has_begun_asks_for_another_start(moment):
    program = f"""if 1:
        import os, signal, sys
        from train.commands import cli
        class Terminate:  # when the module is looked for
            def find_spec(self, name, *_):
                if name == {moment!r}:
                    os.kill(os.getpid(), signal.SIGTERM)
        sys.meta_path.insert(0, Terminate())
        sys.argv = ["toklab", "train", "demo_byte", "--run-dir", "nowhere"]
        cli.main()"""
    stopped = run_command([sys.executable, "-c", program])
    assert (stopped.returncode, stopped.stderr.count("\n")) == (exits.EXIT_STOPPED, 1), stopped.stderr
    assert "the same command starts again" in stopped.stderr


LIMIT_FILE_SIZE = (
    "import resource, sys, os; resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes})); os.execv(sys.argv[1],"
    " sys.argv[1:])"
)


@pytest.mark.usefixtures("one_device")
def test_no_disk_space_during_a_save_is_said_and_the_checkpoint_before_stays_whole(
    recipe, write_recipe, tmp_path, change, final_state, assert_same
):
    recipe, longer = change(recipe, budget=Budget(steps=5)), change(recipe, budget=Budget(steps=40))
    assert train(recipe, tmp_path / "run", CONSOLE, make_judge) == FINISHED
    before = final_state(recipe, tmp_path / "run")
    arguments = command(write_recipe(longer), tmp_path / "run")
    full = run_command([sys.executable, "-c", LIMIT_FILE_SIZE.format(bytes=6000), *arguments])
    assert full.returncode == 2, (full.returncode, full.stdout, full.stderr)
    assert "toklab: saving a checkpoint in " in full.stderr or "toklab: cannot write " in full.stderr, full.stderr
    assert "/train/" not in full.stderr, (
        f"a traceback of ours (tensorstore prints some of its own from its threads): {full.stderr}"
    )
    assert_same(before, final_state(recipe, tmp_path / "run"))
    assert train(longer, tmp_path / "run", CONSOLE, make_judge) == FINISHED


@pytest.mark.usefixtures("one_device")
def test_a_save_that_fails_in_the_background_ends_the_run_before_the_next_one(recipe, tmp_path, change):
    recipe = change(
        recipe,
        budget=Budget(steps=2000),
        checkpoint={"every_steps": 300},
        evaluation={"every_steps": 5000},
        logging={"every_steps": 50},
    )
    before, save = resource.getrlimit(resource.RLIMIT_FSIZE), Checkpoints.save

    def save_onto_a_full_disk(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        save(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_onto_a_full_disk)
        try:
            with pytest.raises(UserError, match="saving a checkpoint in .* failed"):
                train(recipe, tmp_path / "run", CONSOLE, make_judge)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 300 <= read_lines(RunFolder(tmp_path / "run").metrics)[-1]["step"] < 600
