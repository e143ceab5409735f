"""The launcher on this machine: small processes that end in every way there is, and none that outlives it."""

import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train.submit import local
from train.submit.job import make_job
from train.submit.local import Local, launch, newest_step, verdict

WORKER = """
import os, pathlib, signal, sys, time
number = int(os.environ.get("TOKLAB_PROCESS_ID", 0))
here = pathlib.Path({folder!r})
started = here / f"started-{{number}}"
attempt = len(started.read_text().split()) if started.exists() else 0
with open(started, "a") as file:
    file.write(f"{{os.getpid()}} ")
def others_have_started():
    files = [here / f"started-{{n}}" for n in range({num_processes})]
    while any(len(p.read_text().split()) <= attempt if p.exists() else True for p in files):
        time.sleep(0.01)
others_have_started()
print(f"worker {{number}} attempt {{attempt}}", flush=True)
{body}
"""


@pytest.fixture
def run(tmp_path):
    """run(body, **options): the exit code of two processes that run a body with `number` and `attempt`, and what they
    left in the folder."""

    def launch_body(body: str, progress=lambda: 0, **options) -> int:
        given = Local(**{"num_processes": 2, "grace_seconds": 20.0} | options)
        return launch(
            worker(tmp_path, body, given.num_processes), given, tmp_path / "logs", progress, rich.console.Console()
        )

    return launch_body


def worker(folder: pathlib.Path, body: str, num_processes: int = 2) -> list[str]:
    return [sys.executable, "-S", "-c", WORKER.format(folder=str(folder), body=body, num_processes=num_processes)]


def process_ids(folder: pathlib.Path, number: int) -> list[int]:
    started = folder / f"started-{number}"
    return [int(word) for word in started.read_text().split()] if started.exists() else []


def lives(process_id: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_first_process_is_shown_and_all_are_logged(run, tmp_path, capsysbinary):
    assert run("") == 0
    assert capsysbinary.readouterr().out == b"worker 0 attempt 0\n"
    assert (tmp_path / "logs" / "worker-1.log").read_text() == "worker 1 attempt 0\n"


def test_processes_know_each_other_and_their_devices(tmp_path, capsysbinary):
    body = (
        "print([os.environ.get(name) for name in ('TOKLAB_NUM_PROCESSES', 'JAX_NUM_CPU_DEVICES')],"
        " os.environ['TOKLAB_COORDINATOR'].split(':')[0])"
    )
    options = Local(num_processes=2, devices_per_process=4)
    assert launch(worker(tmp_path, body), options, tmp_path / "logs", lambda: 0, rich.console.Console()) == 0
    assert b"['2', '4'] 127.0.0.1" in capsysbinary.readouterr().out
    assert "TOKLAB_COORDINATOR" not in Local(num_processes=1).environment(0, 1)


def test_a_failure_starts_all_again(run, tmp_path):
    assert (
        run("if number == 1 and attempt == 0: os.kill(os.getpid(), signal.SIGKILL)\nif attempt == 0: time.sleep(600)")
        == 0
    )
    assert [len(process_ids(tmp_path, number)) for number in range(2)] == [2, 2]


def test_restarts_are_used_up(run, tmp_path):
    with pytest.raises(UserError, match=r"process 1 has exited with 7 and 2 restarts are used up; .*worker-1.log"):
        run("sys.exit(7) if number == 1 else time.sleep(600)", max_restarts=2)
    assert len(process_ids(tmp_path, 0)) == 3


def test_what_a_person_must_mend_is_not_tried_again(run, tmp_path, capsys):
    assert run("if number == 1: print('toklab: the batch is odd') or sys.exit(2)\ntime.sleep(600)") == 2
    assert "process 1: toklab: the batch is odd" in capsys.readouterr().out
    assert len(process_ids(tmp_path, 0)) == 1


def test_of_several_ends_the_one_that_tells_most_decides():
    """The codes in the order in which the processes ended."""
    for codes, process in (
        ({0: 9, 1: 2}, 1),
        ({1: 75, 0: 0}, 1),
        ({1: -9, 0: -15}, 1),
        ({0: 75, 1: 3, 2: -9}, 1),
        ({0: 0, 1: 0}, 0),
    ):
        assert verdict(codes).process == process


def test_a_stop_with_progress_is_no_restart_and_one_without_is(run, tmp_path):
    steps = iter(range(100))
    assert run("sys.exit(75 if attempt < 3 else 0)", progress=lambda: next(steps), max_restarts=0) == 0
    with pytest.raises(UserError, match="has exited with 75 and 1 restarts are used up"):
        run("sys.exit(75)", max_restarts=1)
    assert len(process_ids(tmp_path, 0)) == 4 + 2


def test_one_that_has_stopped_leaves_the_others_time_to_save(run, tmp_path):
    """A signal would cut the saving short."""
    body = f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
if number == 0:
    time.sleep(0.5)
    pathlib.Path({str(tmp_path / "saved")!r}).touch()
sys.exit(75 if attempt == 0 else 0)"""
    steps = iter(range(100))
    assert run(body, progress=lambda: next(steps), max_restarts=0) == 0
    assert (tmp_path / "saved").exists()


def test_one_that_ignores_signals_is_killed(run, tmp_path):
    body = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(sys.exit(5) if number == 1 else time.sleep(600)) if attempt =="
        " 0 else None"
    )
    assert run(body, grace_seconds=0.3) == 0
    assert not lives(process_ids(tmp_path, 0)[0])


def test_what_a_process_has_started_ends_with_it(run, tmp_path):
    body = f"""
import subprocess
if number == 0 and attempt == 0:
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
    sys.exit(5)"""
    assert run(body) == 0
    wait_until(lambda: not lives(int((tmp_path / "child").read_text())))


def test_a_taken_port_costs_a_restart_and_not_the_job(run, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], local.free_port()])
        monkeypatch.setattr(local, "free_port", lambda: next(ports))
        body = (
            "import socket\nif number == 0: socket.create_server(('127.0.0.1',"
            " int(os.environ['TOKLAB_COORDINATOR'].split(':')[1])), reuse_port=False)"
        )
        assert run(body, max_restarts=1) == 0
    assert len(process_ids(tmp_path, 0)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_and_nothing_is_started_again(run, tmp_path, capsysbinary, number):
    body = f"""
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(here / f"ready-{{number}}").touch()
while number == 1 and not (here / "ready-0").exists():
    time.sleep(0.01)
if number == 1:
    os.kill(os.getppid(), {int(number)})
time.sleep(600)"""
    assert run(body) == 75
    assert capsysbinary.readouterr().out.count(b"saved") == 1
    assert (tmp_path / "logs" / "worker-1.log").read_text().endswith("saved\n")
    assert len(process_ids(tmp_path, 0)) == 1


PROGRAM = """
import pathlib, sys
import rich.console
from train.submit.local import Local, launch
launch({command!r}, Local(num_processes=2), pathlib.Path({logs!r}), lambda: 0, rich.console.Console())
"""


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / f'ready-{number}').touch()\ntime.sleep(600)"
    launcher = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(command=worker(tmp_path, body), logs=str(tmp_path / "logs"))]
    )
    wait_until(
        lambda: launcher.poll() is not None or all((tmp_path / f"ready-{number}").exists() for number in range(2))
    )
    assert launcher.poll() is None and all(lives(process_ids(tmp_path, number)[0]) for number in range(2))
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(lives(process_ids(tmp_path, number)[0]) for number in range(2)))


def test_steps_are_read_from_the_folders_of_checkpoints(tmp_path):
    assert newest_step(str(tmp_path)) == -1
    for name in ("5", "10", "15.orbax-checkpoint-tmp", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(str(tmp_path)) == 10


def test_two_launchers_do_not_share_a_run(recipe, tmp_path):
    job = make_job("tiny", recipe, recipe, str(tmp_path / "run"))
    with local.lock(local.logs_folder(job)):
        with pytest.raises(UserError, match="another process is training in"):
            Local().submit(job, rich.console.Console())
    assert not (tmp_path / "run" / "job.json").exists()


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"num_processes": 0}, "--num-processes is 0"),
        ({"devices_per_process": 0}, "--devices-per-process is 0"),
        ({"max_restarts": -1}, "--max-restarts is -1"),
        ({"grace_seconds": float("nan")}, "--grace-seconds is nan"),
    ],
)
def test_impossible_numbers_are_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        Local(**options)
