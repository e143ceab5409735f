"""Several processes that train one model: what one asks for all do, what one cannot do ends all, and the numbers do not
know how many there are."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest
import rich.console

from train import loop
from train.evaluate.bits_per_byte import make_judge
from train.exits import EXIT_HUNG, EXIT_STOPPED, EXIT_USER_ERROR
from train.loop import train
from train.optimizer import Budget
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder, lock, read_lines
from train.summary import FINISHED, STOPPED

CONSOLE = rich.console.Console(quiet=True)


HEARTBEAT_SECONDS = 10


def quick(devices: int = 1) -> dict[str, str]:
    """The environment of a process that is to compile quickly."""
    return os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # this and the next as in conftest.py
        "XLA_FLAGS": os.environ["QUICK_XLA_FLAGS"],
    }


def start(
    recipe_file: str,
    run: pathlib.Path,
    num_processes: int,
    *options: str,
    different: dict[int, tuple[str, ...]] | None = None,
    devices: int = 1,
    environment=lambda number, port: {},
) -> list[subprocess.Popen]:
    """The processes of `toklab train`; `different` has options of some of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def process(number: int) -> subprocess.Popen:
        named = {
            "TOKLAB_COORDINATOR": f"127.0.0.1:{port}",
            "TOKLAB_NUM_PROCESSES": str(num_processes),
            "TOKLAB_PROCESS_ID": str(number),
        }
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "train.commands.cli",
                "train",
                recipe_file,
                "--run-dir",
                str(run),
                *options,
                *(different or {}).get(number, ()),
            ],
            env=quick(devices) | (environment(number, port) or named),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return [process(number) for number in range(num_processes)]


def start_launcher(recipe_file: str, run: pathlib.Path, num_processes: int, *options: str) -> subprocess.Popen:
    """`toklab submit --to local`."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "train.commands.cli",
            "submit",
            recipe_file,
            "--to",
            "local",
            "--run-dir",
            str(run),
            "--num-processes",
            str(num_processes),
            "--devices-per-process",
            "1",
            *options,
        ],
        env=quick(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def worker_of(launcher: subprocess.Popen, number: int) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(launcher.pid).children()
        if child.environ().get("TOKLAB_PROCESS_ID") == str(number)
    )


def wait_for_steps(run: pathlib.Path, processes: list[subprocess.Popen], num_steps: int) -> None:
    """Until the run has gone so many steps further than it has now."""
    target, deadline = last_step(run) + num_steps, time.monotonic() + 200
    while (
        last_step(run) < target and time.monotonic() < deadline and all(process.poll() is None for process in processes)
    ):
        time.sleep(0.01)


def last_step(run: pathlib.Path) -> int:
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if (run / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def ends(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and what was written to stderr but for what Gloo says of itself."""
    complaints = [process.communicate(timeout=240)[1] for process in processes]
    return [process.returncode for process in processes], [
        "".join(line for line in text.splitlines(True) if "[Gloo]" not in line) for text in complaints
    ]


@pytest.fixture
def assert_same_run(final_state, assert_same):
    """assert_same_run(recipe, run, other): bit-identical weights, optimizer and cursors, and the same losses on the
    way."""

    def compare(recipe, run, other) -> None:
        assert_same(final_state(recipe, run), final_state(recipe, other))
        figures = lambda run: [
            (line["step"], line["bytes_seen"], line["loss"], line["grad_norm"])
            for line in read_lines(RunFolder(run).metrics)
        ]
        assert figures(run) == figures(other)

    return compare


@pytest.fixture
def mixture(recipe, make_corpus, tmp_path):
    """The small recipe over a mixture of two corpora."""
    data = dataclasses.replace(
        recipe.data, corpora=(*recipe.data.corpora, str(make_corpus(tmp_path / "second", seed=1))), weights=(2.0, 1.0)
    )
    return dataclasses.replace(
        recipe,
        data=data,
        budget=Budget(steps=60),
        checkpoint=dataclasses.replace(recipe.checkpoint, every_steps=4),
        evaluation=dataclasses.replace(recipe.evaluation, every_steps=40),
        deadlines=dataclasses.replace(recipe.deadlines, heartbeat_seconds=HEARTBEAT_SECONDS),
    )


def use_devices(monkeypatch, count: int) -> None:
    """This process has so many devices."""
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:count])
    monkeypatch.setattr(jax, "device_count", lambda *_: count)


@pytest.fixture
def two_devices(monkeypatch):
    """As the fixture `one_device`. The sum of two devices' gradients is the same wherever they are."""
    use_devices(monkeypatch, 2)


@pytest.mark.usefixtures("two_devices")
def test_one_and_two_processes_in_turn_stopped_and_killed_end_bit_identical_to_one_undisturbed(
    mixture, write_recipe, tmp_path, assert_same_run
):
    assert train(mixture, tmp_path / "straight", CONSOLE, make_judge) == FINISHED
    run, recipe_file = tmp_path / "run", write_recipe(mixture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop.StopSignal,
            "received",
            property(lambda self: last_step(run) >= 3, lambda self, value: None),
            raising=False,
        )
        assert train(mixture, run, CONSOLE, make_judge) == STOPPED

    launcher = start_launcher(recipe_file, run, 2)
    wait_for_steps(run, [launcher], 6)
    worker_of(launcher, 1).kill()
    wait_for_steps(run, [launcher], 6)
    worker_of(launcher, 1).terminate()
    said = list(itertools.takewhile(lambda line: "exited with 75; starting all again" not in line, launcher.stdout))
    launcher.terminate()
    _, complaints = launcher.communicate(timeout=240)
    assert launcher.returncode == EXIT_STOPPED, (said, complaints)
    assert "process 1 was ended by SIGKILL; starting all again (restart 1 of 3 at most)\n" in said, (said, complaints)
    assert "".join(said).count("stopped by a signal; the state is saved") == 1, (said, complaints)
    assert Checkpoints(RunFolder(run).checkpoints).latest_step() == last_step(run), (
        "all of them at the same step, the last that was taken"
    )

    assert train(mixture, run, CONSOLE, make_judge) == FINISHED
    assert_same_run(mixture, tmp_path / "straight", run)


def test_a_host_with_another_config_is_named_once_and_ends_all(recipe, write_recipe, tmp_path):
    codes, complaints = ends(start(write_recipe(recipe), tmp_path / "run", 2, different={1: ("--seed", "3")}))
    assert codes == [EXIT_USER_ERROR] * 2
    assert complaints == [
        (
            "toklab: host 1: seed is 3 here and 0 on host 0; every host must run the same code and config on the same"
            " data\n"
        ),
        "",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, expected",
    [
        ("devices", "host 1: the number of its devices is 2 here and 1 on host 0"),
        ("a corpus that one host has not", "host 1: nowhere is not a corpus"),
        ("another corpus", "host 1: corpus_content_hashes is "),
        ("a batch that no host can split", "a batch of 7 rows cannot be split into 2 devices"),
        ("a folder that is taken", "host 0: another process is training in "),
    ],
)
def test_what_one_host_cannot_do_is_told_once_and_ends_all(case, expected, recipe, write_recipe, make_corpus, tmp_path):
    run, recipe_file = tmp_path / "run", write_recipe(recipe)
    match case:
        case "devices":
            processes = start(
                recipe_file,
                run,
                2,
                environment=lambda number, port: {
                    "TOKLAB_COORDINATOR": f"127.0.0.1:{port}",
                    "TOKLAB_NUM_PROCESSES": "2",
                    "TOKLAB_PROCESS_ID": str(number),
                    "JAX_NUM_CPU_DEVICES": str(1 + number),
                },
            )
        case "a corpus that one host has not":
            processes = start(recipe_file, run, 2, different={1: ("--data.corpora", "nowhere")})
        case "another corpus":
            processes = start(
                recipe_file, run, 2, different={1: ("--data.corpora", str(make_corpus(tmp_path / "other", seed=3)))}
            )
        case "a batch that no host can split":
            processes = start(recipe_file, run, 2, "--data.batch-rows", "7")
        case "a folder that is taken":
            with lock(run):
                processes = start(recipe_file, run, 2)
                codes, complaints = ends(processes)
    codes, complaints = (codes, complaints) if "taken" in case else ends(processes)
    assert codes == [EXIT_USER_ERROR] * 2, complaints
    assert "".join(complaints).count("\n") == 1 and expected in complaints[0], complaints


@pytest.mark.slow
@pytest.mark.parametrize("host, how", [(0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)])
def test_a_host_that_dies_or_freezes_is_noticed(host, how, mixture, write_recipe, tmp_path):
    processes = start(write_recipe(mixture), tmp_path / "run", 2)
    wait_for_steps(tmp_path / "run", processes, 3)
    processes[host].send_signal(how)
    [code], [complaint] = ends([processes[1 - host]])
    processes[host].kill()
    processes[host].communicate()
    assert code in (EXIT_HUNG, -signal.SIGABRT)
    assert "toklab: host" in complaint or "most recent call first" in complaint, (
        "either our line, or the stacks of all threads when JAX aborts"
    )


@pytest.mark.slow
def test_a_host_that_hangs_is_noticed_by_the_deadline_of_a_step_with_all_stacks(mixture, write_recipe, tmp_path):
    processes = start(
        write_recipe(mixture),
        tmp_path / "run",
        2,
        "--deadlines.step-seconds",
        "5",
        "--deadlines.heartbeat-seconds",
        "1000",
    )
    wait_for_steps(tmp_path / "run", processes, 3)
    processes[1].send_signal(signal.SIGSTOP)
    [code], [complaint] = ends([processes[0]])
    processes[1].kill()
    processes[1].communicate()
    assert (
        code == EXIT_HUNG
        and "toklab: step has taken longer than 5 s" in complaint
        and 'train/loop.py", line' in complaint
    )


@pytest.mark.slow
def test_a_host_that_never_comes_and_a_port_that_is_taken_are_noticed(recipe, write_recipe, tmp_path):
    recipe_file = write_recipe(recipe)
    [first, second] = start(recipe_file, tmp_path / "run", 2, "--deadlines.start-seconds", "20")
    second.kill()
    [code, _], [complaint, _] = ends([first, second])
    assert code == EXIT_HUNG and "toklab: start has taken longer than 20 s" in complaint
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        named = lambda number, port: {
            "TOKLAB_COORDINATOR": f"127.0.0.1:{taken.getsockname()[1]}",
            "TOKLAB_NUM_PROCESSES": "2",
            "TOKLAB_PROCESS_ID": str(number),
        }
        codes, complaints = ends(
            start(recipe_file, tmp_path / "run", 2, "--deadlines.start-seconds", "20", environment=named)
        )
    assert (
        codes == [EXIT_HUNG, EXIT_HUNG]
        and "toklab: cannot join the processes named by TOKLAB_COORDINATOR" in complaints[0]
    ), complaints


@pytest.mark.slow
def test_processes_of_a_slurm_step_find_each_other(recipe, write_recipe, tmp_path):
    job = str(os.getpid())  # the port comes from it
    named = lambda number, port: {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }
    codes, complaints = ends(start(write_recipe(recipe), tmp_path / "run", 2, environment=named))
    assert codes == [0, 0], complaints
    assert last_step(tmp_path / "run") == 12


@pytest.mark.slow
def test_another_number_of_hosts_at_every_resume_sees_the_same_documents(
    mixture, write_recipe, tmp_path, monkeypatch, final_state
):
    """1 -> 2 -> 4 -> 1 processes over other meshes, against one process: the same bytes at every step, the same cursors
    at the end."""
    recipe_file, run = write_recipe(mixture), tmp_path / "run"
    for num_processes, options in [(1, ()), (2, ("--mesh.tensor", "2")), (4, ("--mesh.replica", "2")), (1, ())]:
        processes = (
            start(recipe_file, run, num_processes, *options, devices=4 // num_processes)
            if num_processes > 1
            else start(
                recipe_file, run, 1, *options, devices=4, environment=lambda number, port: {"TOKLAB_NUM_PROCESSES": "1"}
            )
        )
        if run.exists() and num_processes == 1:
            assert ends(processes)[0] == [0]
            break
        wait_for_steps(run, processes, 10)
        processes[-1].send_signal(signal.SIGTERM)
        codes, complaints = ends(processes)
        assert codes == [EXIT_STOPPED] * num_processes, complaints
    use_devices(monkeypatch, 1)
    assert train(mixture, tmp_path / "straight", CONSOLE, make_judge) == FINISHED
    straight, moved = (read_lines(RunFolder(folder).metrics) for folder in (tmp_path / "straight", run))
    assert [(line["step"], line["bytes_seen"]) for line in straight] == [
        (line["step"], line["bytes_seen"]) for line in moved
    ]
    np.testing.assert_allclose([line["loss"] for line in moved], [line["loss"] for line in straight], rtol=1e-4)
    name = next(name for name in final_state(mixture, run) if "cursors" in name)
    np.testing.assert_array_equal(final_state(mixture, run)[name], final_state(mixture, tmp_path / "straight")[name])
    assert len(read_lines(RunFolder(run).evaluations)) == len(
        read_lines(RunFolder(tmp_path / "straight").evaluations)
    ), "once, by one host"
