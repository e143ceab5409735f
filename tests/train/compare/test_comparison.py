"""`toklab compare`: only what is missing is done."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
import rich.console
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from train import loop
from train.commands import command_line
from train.compare import comparison, running, subprocesses
from train.compare.comparison import CompareOptions, compare
from train.compare.run_state import CUT_OFF, DONE, MISSING
from train.experiment import Experiment
from train.recipe import to_json
from train.run.document_hashes import read_hashes
from train.run.folder import RunFolder
from train.submit.local import Local

CONSOLE = rich.console.Console(quiet=True)


def test_all_problems_are_said_at_once_and_nothing_is_written(experiment, tmp_path, monkeypatch, change):
    bad = dataclasses.replace(change(experiment, 1, name="byte"), seeds=(1, 1))
    monkeypatch.setattr(comparison, "load_experiment", lambda name: bad)
    with pytest.raises(
        UserError, match=r"\(1\) 2 arms are named 'byte'.*\(2\) 2 seeds are named 1.*\(3\) nowhere is not a corpus"
    ):
        compare(
            CompareOptions(experiment="bad", out=epath.Path(tmp_path / "out"), corpus=("nowhere",)), Local(), CONSOLE
        )
    assert not (tmp_path / "out").exists()


class Here:
    """A place to run that is this process."""

    def __init__(self):
        self.trained = []

    def place(self, recipe):
        return recipe

    def submit(self, job, console) -> int:
        self.trained.append(job.recipe.name)
        return command_line.run(job.command())


@pytest.fixture
def in_this_process(monkeypatch, one_device):
    """Commands that `toklab compare` starts do not need a process of their own."""
    monkeypatch.setattr(subprocesses, "toklab", lambda words, logs, console: command_line.run(list(words)))


@pytest.fixture
def run_it(monkeypatch, in_this_process, tmp_path):
    """run_it(experiment, **options): the exit code, and the runs that were trained."""

    def run(experiment: Experiment, target=None, **options) -> tuple[int, list[str]]:
        monkeypatch.setattr(comparison, "load_experiment", lambda name: experiment)
        target = target or Here()
        return (
            compare(CompareOptions(experiment="tiny", out=epath.Path(tmp_path / "out"), **options), target, CONSOLE),
            target.trained,
        )

    return run


def states(out: pathlib.Path) -> list[tuple[str, str]]:
    return [(run["arm"], run["state"]) for run in json.loads((out / "plan.json").read_text())["runs"]]


def test_only_what_is_missing_is_run_and_the_report_proves_the_order(experiment, run_it, tmp_path, change):
    """Plan, a stop, the rest, nothing, a changed arm; then an arm that has read other documents."""
    out = tmp_path / "out"
    assert run_it(experiment, plan_only=True) == (0, [])
    assert states(out) == [("byte", MISSING), ("subword", MISSING)] * 2 and not (out / "runs").exists()
    with pytest.raises(UserError, match="nothing has been measured"):
        run_it(experiment, max_hours=1.0)

    stopping = Here()
    submit = stopping.submit
    stopping.submit = lambda job, console: (
        submit(job, console) if job.recipe.name == "byte-xs-s0" else stop_after_a_step(lambda: submit(job, console))
    )
    assert run_it(experiment, stopping) == (75, ["byte-xs-s0", "subword-xs-s0"])
    assert run_it(experiment) == (0, ["subword-xs-s0", "byte-xs-s1", "subword-xs-s1"])
    assert states(out)[:2] == [("byte", DONE), ("subword", CUT_OFF)], "as it was planned before the rest was run"
    assert run_it(experiment) == (0, []) and states(out) == [("byte", DONE), ("subword", DONE)] * 2

    report = json.loads((out / "report" / "report.json").read_text())
    assert (
        len(report["arms"]) == 4
        and len(report["order"]) == 2
        and all("have read the same documents" in line for line in report["order"])
    )
    hashes = [read_hashes(RunFolder(path).documents) for path in sorted((out / "runs").glob("*-s0-*"))]
    assert len(hashes) == 2 and hashes[0].keys() == set(range(8))

    slower = dataclasses.replace(
        experiment.arms[1].recipe,
        optimizer=dataclasses.replace(experiment.arms[1].recipe.optimizer, learning_rate=1e-3),
    )
    with pytest.raises(UserError, match="would take about .* more than --max-hours 1e-09"):
        run_it(change(experiment, 1, recipe=slower), max_hours=1e-9)
    assert states(out) == [("byte", DONE), ("subword", MISSING)] * 2, "the changed arm alone"

    path = next((out / "runs").glob("byte-xs-s0-*")) / "documents" / "00000.json"
    noted = json.loads(path.read_text())
    noted["3"] = dict.fromkeys(noted["3"], "0" * 16)
    path.write_text(json.dumps(noted))
    assert run_it(experiment) == (0, [])
    report = json.loads((out / "report" / "report.json").read_text())
    assert any(
        "have not read the same documents" in warning and "byte-xs-s0" in warning for warning in report["warnings"]
    )


def stop_after_a_step(train) -> int:
    """What a SIGTERM does while the first step is being looked at."""
    look_at, looked = loop.look_at, []

    def look_and_stop(*arguments):
        if not looked:
            os.kill(os.getpid(), signal.SIGTERM)
        looked.append(None)
        return look_at(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "look_at", look_and_stop)
        return train()


EXPERIMENT_FILE = """
from tokenizer_lab.byte import ByteFit
from tokenizer_lab.subword import SubwordFit
from train.experiment import Arm, Experiment, Size
from train.optimizer import Budget
from train.recipe import load_recipe

def experiment():
    recipe = load_recipe({path!r})
    arms = (Arm(name="byte", recipe=recipe, fit=ByteFit()),
            Arm(name="subword", recipe=recipe, fit=SubwordFit(vocab_size=280)))
    return Experiment(name="tiny", arms=arms,
                      sizes=(Size(name="xs", budget=Budget({budget})),), seeds=(0,), context_bytes=48)
"""


def test_a_run_whose_corpus_has_moved_since_is_evaluated_where_it_is_now(recipe, tmp_path, monkeypatch):
    folder, called = RunFolder(tmp_path / "run"), []
    on = lambda *corpora: dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corpora=corpora))
    write_json(folder.config, to_json(on("before")))
    write_json(folder.summary, {"state": "finished", "steps": 12})
    monkeypatch.setattr(running.subprocesses, "toklab", lambda arguments, *_: called.append(arguments) or 0)
    for corpus in ("now", "before"):
        run = types.SimpleNamespace(recipe=on(corpus))
        planned = types.SimpleNamespace(run=run, folder=folder, state=running.UNSCORED)
        assert running.do(planned, tmp_path, None, None) == 0
    assert [arguments[3:] for arguments in called] == [["--corpus", "now"], []]


@pytest.mark.slow
def test_the_command_trains_in_processes_of_their_own_and_stops_when_told(recipe, tmp_path):
    write_json(tmp_path / "recipe.json", to_json(recipe))
    (tmp_path / "tiny.py").write_text(EXPERIMENT_FILE.format(path=str(tmp_path / "recipe.json"), budget="bytes=60_000"))
    command = [
        sys.executable,
        "-m",
        "train.commands.cli",
        "compare",
        str(tmp_path / "tiny.py"),
        "--out",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as in conftest.py
    with subprocess.Popen(command, env=environment) as stopped:
        runs = tmp_path / "out" / "runs"
        while not list(runs.glob("byte-*/metrics.jsonl")):
            assert stopped.poll() is None
            time.sleep(0.1)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait() == 75
    planned = subprocess.run([*command, "--plan-only"], env=environment, capture_output=True, text=True)
    assert planned.returncode == 0 and "2 runs: 1 cut off, 1 missing" in planned.stdout, planned
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "going on from step" in done.stdout, done
    assert len(list(runs.iterdir())) == 2 and (tmp_path / "out" / "report" / "index.html").exists()
