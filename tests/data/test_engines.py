"""Engines: one outcome, in one order, whoever does the work; and what goes wrong there is one line here."""

import concurrent.futures
import importlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from data import process_engine
from data.corpus_writer import Sizes
from data.encode_corpus import EncodeOptions, encode_corpus
from data.engines import EngineOptions
from data.ingest import IngestOptions, ingest
from data.local_engine import LocalEngine
from data.process_engine import ProcessEngine
from data.ray_engine import ITEMS_AHEAD, RESULTS_AHEAD
from tokenizer_lab.errors import UserError
from train.commands import command_line


def test_local_results_come_in_order_and_only_when_asked_for():
    asked: list[int] = []

    def count(item):
        asked.append(item)
        yield from [item] * item

    results = LocalEngine().stream(count, [2, 0, 1])
    assert asked == [] and next(results) == 2 and asked == [2]
    assert list(results) == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "spark"], "invalid choice 'spark'.*local.*ray"),
        (
            ["--engine", "local", "--ray-address", "head:6379"],
            "--ray-address head:6379 is for --engine ray, and the engine is local",
        ),
        (["--engine", "local", "--workers", "2"], "--workers 2 is for --engine processes.* and the engine is local"),
        (["--engine", "processes", "--workers", "0"], "--workers is 0; it must be at least 1"),
    ],
)
@pytest.mark.parametrize(
    "command", [["ingest", "in"], ["encode", "byte", "--corpus", "corpus"]], ids=lambda command: command[0]
)
def test_options_that_make_no_sense(capsys, tmp_path, command, options, message):
    assert command_line.run([*command, "--out", str(tmp_path / "out"), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_ray_client_is_refused():
    with pytest.raises(
        UserError, match="ray://head:10001 is an address for Ray Client.*on a machine of the cluster, with HOST:PORT"
    ):
        EngineOptions(engine="ray", ray_address="ray://head:10001").open().__enter__()


@pytest.mark.parametrize("engine", [LocalEngine(), ProcessEngine(2)])
def test_devices_are_for_ray(engine):
    with pytest.raises(UserError, match="1 GPU, 4 TPU for each .*needs --engine ray"):
        next(engine.stream(iter, [[]], {"TPU": 4, "GPU": 1}))


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs Ray, which is not installed: pip install 'tokenizer-lab\\[ray\\]'"):
        EngineOptions(engine="ray").open().__enter__()


# Processes of this machine.

WORK = """
import os, pathlib, time
from tokenizer_lab.errors import UserError

def count(item):
    for number in range(item % 4):
        yield item, number

def wait_for_go(item):
    num_results, folder = item
    while num_results == 0 and not (folder / "go").exists():
        time.sleep(0.01)
    for number in range(num_results):
        (folder / f"{num_results}-{number}").touch()
        yield number

def die(item):
    folder, times = item
    yield "first"
    if times > len(list(folder.glob("died-*"))):
        (folder / f"died-{os.getpid()}").touch()
        os.kill(os.getpid(), 9)
    yield "last"

def fail(item):
    yield item
    if item == 2:
        time.sleep(0.2)
    if item >= 2:
        raise UserError(f"{item} in {os.path.basename(os.getcwd())} cannot be done")

def divide(item):
    yield 1 // item
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Functions that other processes can import."""
    (tmp_path / "engine_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("engine_work")
    del sys.modules["engine_work"]


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if any("spawn_main" in word for word in child.cmdline())]


def test_results_of_processes_come_in_order(work):
    assert list(ProcessEngine(2).stream(work.count, range(30))) == list(LocalEngine().stream(work.count, range(30)))
    assert not workers(), "processes are left behind"


def test_processes_are_not_far_ahead_of_the_order(work, tmp_path):
    """While the first item takes its time."""
    results = ProcessEngine(2).stream(
        work.wait_for_go, [(0, tmp_path), *((50 + number, tmp_path) for number in range(20))]
    )
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, results)
        try:
            wait_until(lambda: len(list(tmp_path.glob("50-*"))) > process_engine.RESULTS_AHEAD)
            time.sleep(0.3)
            made = len(list(tmp_path.glob("*-*")))
        finally:
            (tmp_path / "go").touch()
        num_results = 1 + len([first.result(), *results][1:])
    # A message of some bytes waits in the pipe, which is bounded too: by 64 KiB on Linux.
    assert made <= 50 and num_results == sum(range(50, 70))


def test_a_process_that_dies_is_replaced_and_its_results_come_once(work, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    items = [(tmp_path / "other", 0), (tmp_path, 2), (tmp_path / "other", 0)]
    assert list(ProcessEngine(2).stream(work.die, items)) == ["first", "last"] * 3
    assert len(list(tmp_path.glob("died-*"))) == 2
    monkeypatch.setattr(process_engine, "_MAX_RESTARTS", 1)
    with pytest.raises(UserError, match=r"a worker died 2 times at the same work \(signal SIGKILL\)") as caught:
        list(ProcessEngine(2).stream(work.die, [(tmp_path, 9), (tmp_path / "other", 0)]))
    assert "\n" not in str(caught.value)
    assert not workers()


def test_the_error_of_the_first_item_that_has_one_is_told(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = []
    with pytest.raises(UserError, match=f"2 in {tmp_path.name} cannot be done"):
        for result in ProcessEngine(3).stream(work.fail, range(5)):
            results.append(result)
    assert results == [0, 1, 2]
    with pytest.raises(RuntimeError, match="in a worker:(.|\n)*ZeroDivisionError"):
        list(ProcessEngine(2).stream(work.divide, [1, 0]))


def test_processes_do_what_this_process_does(everything, tmp_path, byte_artifact, monkeypatch):
    (tmp_path / "in").mkdir()
    write_sources(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    sizes = Sizes(task=100_000, run=100_000, merge=10_000, shard=500_000)
    for name, engine in {"local": LocalEngine(), "processes": ProcessEngine(2)}.items():
        ingest(IngestOptions(sources=("in",), out=tmp_path / name, on_empty="skip"), engine=engine, sizes=sizes)
        options = EncodeOptions(artifact=byte_artifact, corpus=tmp_path / name, out=tmp_path / f"{name}-ids")
        encode_corpus(options, engine=engine, shard_bytes=300_000)
    for suffix in ("", "-ids"):
        assert everything(tmp_path / f"local{suffix}") == everything(tmp_path / f"processes{suffix}")


# With Ray: one cluster of real processes on the loopback for all of these tests.


@pytest.fixture(scope="module")
def ray_engine():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tokenizer-lab[ray]'")
    before, others = ray_variables(), psutil.Process().children(recursive=True)  # such as the tracker of resources
    opened = EngineOptions(engine="ray").open()
    try:
        engine = opened.__enter__()
    except UserError as error:
        if "timed out during startup" in str(error):
            pytest.skip("Ray gives itself 30 seconds to start, and this machine is too busy for that")
        raise
    yield engine
    children = [child for child in psutil.Process().children(recursive=True) if child not in others]
    opened.__exit__(None, None, None)
    _, alive = psutil.wait_procs(children, timeout=120)
    assert children and not alive, "Ray has left processes behind"
    assert ray_variables() == before


def ray_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def write_sources(folder: pathlib.Path) -> None:
    """Files of many portions and of one, an empty record, and one that is damaged."""
    random_ = random.Random(0)
    for number, count in enumerate([1500, 1, 40, 700]):
        lines = [json.dumps({"text": f"{random_.random()} " * random_.randint(0, 100)}) for _ in range(count)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    (folder / "4.txt").write_text(random_.randbytes(1_250_000).hex())


def test_ray_does_what_this_process_does(everything, ray_engine, tmp_path, monkeypatch, capfd, byte_artifact):
    """One test, so that with several processes of pytest only one of them starts a cluster."""
    (tmp_path / "in").mkdir()
    write_sources(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    stores, calls, lines = {}, {}, {}
    for name, engine in {"local": LocalEngine(), "ray": ray_engine}.items():
        calls[name] = []
        options = IngestOptions(sources=("in",), out=tmp_path / name, on_empty="skip")
        ingest(options, lambda *call: calls[name].append(call), engine, Sizes(task=100_000))
        options = EncodeOptions(artifact=byte_artifact, corpus=tmp_path / name, out=tmp_path / f"{name}-ids")
        encode_corpus(options, engine=engine, shard_bytes=300_000)
        stores[name] = everything(tmp_path / name), everything(tmp_path / f"{name}-ids")
    assert stores["local"] == stores["ray"] and len(stores["ray"][1]) > 10
    assert calls["local"] == calls["ray"] and len(calls["ray"]) > 6

    (tmp_path / "in" / "2.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    (tmp_path / "in" / "3.jsonl").write_text("so is this one, but it comes later")
    for name, engine in {"local": LocalEngine(), "ray": ray_engine}.items():
        with pytest.raises(UserError) as caught:
            ingest(IngestOptions(sources=("in",), out=tmp_path / "none", on_empty="skip"), engine=engine)
        lines[name] = str(caught.value)
        assert not (tmp_path / "none").exists()
    assert (
        lines["local"]
        == lines["ray"]
        == "in/2.jsonl, record 2: field 'text' is of type int, not text; there are no other fields:"
        " mend the file or leave it out"
    )
    assert capfd.readouterr() == ("", "")

    check_results_ahead(ray_engine, tmp_path / "ahead")
    with pytest.raises(UserError, match="the Ray cluster has no 1 GPU for a worker; it has [0-9]+ CPU"):
        next(ray_engine.stream(iter, [[]], {"GPU": 1}))


def check_results_ahead(ray_engine, folder: pathlib.Path) -> None:
    """While the first item takes its time, no more items are begun, and of none more results made, than may wait."""
    import ray

    folder.mkdir()
    num_results = [1, 50, *[2] * 7]

    def work(item):
        while item == 0 and not (folder / "go").exists():
            time.sleep(0.01)
        for number in range(num_results[item]):
            (folder / f"{item}-{number}").touch()
            yield item, number

    results = ray_engine.stream(work, range(9), {"CPU": ray.cluster_resources()["CPU"] / 3 - 0.01})  # three workers
    last_begun = 3 * ITEMS_AHEAD - 1
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, results)
        try:
            wait_until(lambda: (folder / f"{last_begun}-0").exists() and (folder / "1-0").exists())
            time.sleep(0.5)
            made = [len(list(folder.glob(f"{item}-*"))) for item in range(9)]
        finally:
            (folder / "go").touch()
        assert [first.result(), *results] == [
            (item, number) for item in range(9) for number in range(num_results[item])
        ]
    assert made[1] <= RESULTS_AHEAD + 1 and not any(made[last_begun + 1 :]), made


def wait_until(condition) -> None:
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_that_is_lost_for_good_is_one_line(ray_engine, monkeypatch):
    monkeypatch.setattr("data.ray_engine._MAX_RESTARTS", 0)
    with pytest.raises(UserError, match="Ray could not go on: ActorDiedError.*start again") as caught:
        next(ray_engine.stream(lambda item: os._exit(1), [0]))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(ray_engine, tmp_path):
    def die_once(item):
        for number in range(9):
            if number == 5 and item == 1 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            yield item, number

    assert list(ray_engine.stream(die_once, range(4))) == [(item, number) for item in range(4) for number in range(9)]
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_our_own_faults_are_not_told_as_a_persons(ray_engine):
    with pytest.raises(ZeroDivisionError):
        next(ray_engine.stream(lambda item: iter([1 // item]), [0]))


HOLD_A_CLUSTER = """
import os, sys
import ray
from data.engines import EngineOptions
with EngineOptions(engine="ray").open():
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_cluster_that_is_there_is_joined_and_one_that_is_killed_leaves_nothing(everything, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "in").mkdir()
    write_sources(tmp_path / "in")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_A_CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        address, token = holder.stdout.readline().split()
        processes = psutil.Process(holder.pid).children(recursive=True)
        assert processes
        environment = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        command = [
            sys.executable,
            "-m",
            "train.commands.cli",
            "ingest",
            str(tmp_path / "in"),
            "--on-empty",
            "skip",
            "--engine",
            "ray",
        ]
        ran = subprocess.run(
            [*command, "--out", str(tmp_path / "corpus")], env=environment, capture_output=True, text=True
        )
        assert (ran.returncode, ran.stderr) == (0, "") and "corpus: added" in ran.stdout
        holder.send_signal(signal.SIGKILL)
    ingest(IngestOptions(sources=(str(tmp_path / "in"),), out=tmp_path / "local", on_empty="skip"))
    assert everything(tmp_path / "corpus") == everything(tmp_path / "local")
    _, alive = psutil.wait_procs(processes, timeout=120)  # Ray's agents look now and then
    assert not alive, "Ray has left processes behind"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_in_the_middle(tmp_path, number, code):
    pytest.importorskip("ray")
    (tmp_path / "large.jsonl").write_bytes(b'{"text": "%s"}\n' % (b"text " * 100) * 400_000)
    command = [
        sys.executable,
        "-m",
        "train.commands.cli",
        "ingest",
        str(tmp_path / "large.jsonl"),
        "--engine",
        "ray",
        "--out",
        str(tmp_path / "corpus"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "corpus").glob(".partial/*/*.run")):
            time.sleep(0.1)
            assert process.poll() is None
        processes = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        [line] = process.stderr.read().splitlines()
    assert process.returncode == code and line.startswith("toklab: ")
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    _, alive = psutil.wait_procs(processes, timeout=120)  # Ray's agents look now and then
    assert not alive, "Ray has left processes behind"
