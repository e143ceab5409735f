"""`toklab compare`: which runs an experiment stands for, what is said before any of them, and that only what is missing
is done."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import rich.console
from etils import epath

from data.store import Corpus
from models.encoder import EncoderConfig
from tokenizer_lab.byte import ByteFit
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from tokenizer_lab.subword import SubwordFit
from train import loop
from train.commands import command_line
from train.compare import comparison
from train.compare.comparison import CUT_OFF, DONE, MISSING, CompareOptions, compare
from train.compare.experiment import Arm, Experiment, Measured, Size, Text, check, fit_of, open_text, resolve
from train.objectives import Replaced
from train.optimizer import Budget
from train.recipe import to_json
from train.run.document_hashes import read_hashes
from train.run.folder import RunFolder
from train.submit.local import Local

CONSOLE = rich.console.Console(quiet=True)


@pytest.fixture
def experiment(make_recipe) -> Experiment:
    """Bytes and subwords, one size, two seeds."""
    recipe = make_recipe()
    return Experiment(
        name="tiny",
        arms=(
            Arm(name="byte", recipe=recipe, fit=ByteFit()),
            Arm(name="subword", recipe=recipe, fit=SubwordFit(vocab_size=280)),
        ),
        sizes=(Size(name="xs", budget=Budget(bytes=4000), model={"num_layers": 1}),),
        seeds=(0, 1),
        context_bytes=48,
    )


@pytest.fixture
def text(corpus) -> Text:
    return Text((str(corpus),), (Corpus.open(corpus),))


MEASURED = {
    "byte": Measured(path="a", fingerprint="b", vocab_size=257, costs={}, bytes_per_position=0.98),
    "subword": Measured(path="c", fingerprint="d", vocab_size=280, costs={"fit_flops": 1e9}, bytes_per_position=2.3),
}


def change(experiment: Experiment, number: int, **fields) -> Experiment:
    """The experiment with fields of one of its arms changed."""
    arms = list(experiment.arms)
    arms[number] = dataclasses.replace(arms[number], **fields)
    return dataclasses.replace(experiment, arms=tuple(arms))


def names_of(experiment: Experiment, text: Text, measured=MEASURED) -> list[str]:
    problems = []
    runs = resolve(experiment, text, measured, problems)
    assert not problems
    return [run.folder_name for run in runs]


# Which runs.


def test_every_arm_comes_once_before_any_comes_twice(experiment, text):
    assert [name.rpartition("-")[0] for name in names_of(experiment, text)] == [
        "byte-xs-s0",
        "subword-xs-s0",
        "byte-xs-s1",
        "subword-xs-s1",
    ]


def test_rows_hold_about_as_much_text_in_every_arm(experiment, text):
    lengths = {run.arm: run.recipe.data.sequence_length for run in resolve(experiment, text, MEASURED, [])}
    assert lengths == {"byte": 48, "subword": 24}  # 49.0 and 20.9 positions, to a multiple of 8
    own = resolve(dataclasses.replace(experiment, context_bytes=None), text, MEASURED, [])
    assert {run.recipe.data.sequence_length for run in own} == {32}
    assert {run.recipe.model.num_layers for run in own} == {1} and {run.recipe.budget for run in own} == {
        Budget(bytes=4000)
    }


@pytest.mark.parametrize("what", ["optimizer", "artifact", "logging"])
def test_a_changed_arm_makes_new_runs_of_that_arm_only(experiment, text, what):
    recipe, measured = experiment.arms[1].recipe, MEASURED
    if what == "artifact":
        measured = MEASURED | {"subword": dataclasses.replace(MEASURED["subword"], fingerprint="another")}
    else:
        field = {"optimizer": {"learning_rate": 1e-3}, "logging": {"every_steps": 7}}[what]
        recipe = dataclasses.replace(recipe, **{what: dataclasses.replace(getattr(recipe, what), **field)})
    before, after = names_of(experiment, text), names_of(change(experiment, 1, recipe=recipe), text, measured)
    differing = [old.split("-")[0] for old, new in zip(before, after, strict=True) if old != new]
    assert differing == ([] if what == "logging" else ["subword", "subword"])


def test_a_run_is_known_by_content_and_not_by_path(experiment, text, corpus, make_corpus, tmp_path):
    moved = Text((str(tmp_path / "moved"),), text.corpora)
    paths = {name: dataclasses.replace(of, path=f"elsewhere/{name}") for name, of in MEASURED.items()}
    assert names_of(experiment, text) == names_of(experiment, moved, paths)
    other = make_corpus(tmp_path / "other", seed=1)
    assert not set(names_of(experiment, text)) & set(names_of(experiment, Text((str(other),), (Corpus.open(other),))))


def test_arms_with_the_same_options_share_a_fit(experiment, text):
    byte, subword = experiment.arms
    assert fit_of(subword, text) == fit_of(dataclasses.replace(subword, name="again"), text)
    other = fit_of(dataclasses.replace(subword, fit=SubwordFit(vocab_size=290)), text)
    assert (
        other != fit_of(subword, text)
        and other.words == ("subword", "--vocab-size", "290")
        and fit_of(byte, text).words == ("byte",)
    )


# What is said before anything runs.


def test_a_good_experiment_has_nothing_said_against_it(experiment, corpus):
    problems = check(experiment)
    assert open_text(experiment, (), problems).paths == (str(corpus),) and problems == []


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda e: change(e, 1, name="byte"), "2 arms are named 'byte'; give each a name of its own"),
        (lambda e: change(e, 1, name="a/b"), "arm name 'a/b' is not a plain name"),
        (lambda e: dataclasses.replace(e, seeds=(1, 1)), "2 seeds are named 1"),
        (lambda e: dataclasses.replace(e, arms=()), "the experiment has no arms"),
        (lambda e: dataclasses.replace(e, context_bytes=0), "context_bytes is 0"),
        (
            lambda e: dataclasses.replace(e, sizes=(Size(name="s", budget=Budget(steps=5)),)),
            "the budgets are in steps (s); they must all be in FLOPs",
        ),
        (
            lambda e: dataclasses.replace(e, sizes=(*e.sizes, Size(name="l", budget=Budget(flops=1e9)))),
            "in bytes (xs), flops (l)",
        ),
        (
            lambda e: dataclasses.replace(e, sizes=(Size(name="s", budget=Budget(bytes=5), model={"depth": 3}),)),
            "arm byte: its model has no field 'depth', which size s sets",
        ),
        (
            lambda e: change(
                e,
                0,
                recipe=dataclasses.replace(
                    e.arms[0].recipe, data=dataclasses.replace(e.arms[0].recipe.data, batch_rows=16)
                ),
            ),
            "data.batch_rows differs (byte: 16, subword: 8), so that rows would not read the same documents",
        ),
        (
            lambda e: change(e, 0, fit=None, recipe=dataclasses.replace(e.arms[0].recipe, representation="nowhere")),
            "arm byte: nowhere/manifest.json does not exist",
        ),
        (lambda e: change(e, 0, fit="bytes"), "arm byte: its fit is a str"),
    ],
)
def test_what_is_wrong_with_an_experiment_is_said(experiment, make, said):
    problems = check(make(experiment))
    open_text(make(experiment), (), problems)
    assert any(said in problem for problem in problems), problems


def test_arms_of_other_corpora_are_told_apart_by_content(experiment, corpus, make_corpus, tmp_path):
    other, same = make_corpus(tmp_path / "other", seed=1), make_corpus(tmp_path / "same")
    read = lambda folder: dataclasses.replace(
        experiment.arms[1].recipe, data=dataclasses.replace(experiment.arms[1].recipe.data, corpora=(str(folder),))
    )
    problems = []
    assert open_text(change(experiment, 1, recipe=read(other)), (), problems) is None
    assert "the arms' corpora differ" in problems[0] and "give all arms the same ones, with --corpus" in problems[0]
    assert open_text(change(experiment, 1, recipe=read(same)), (), []) is not None
    assert open_text(change(experiment, 1, recipe=read(other)), (str(other),), []).paths == (str(other),)
    problems = []
    open_text(experiment, (str(corpus), str(other)), problems)
    assert "is to be fitted on 2 corpora, and a fit reads one" in problems[0]


def test_all_problems_are_said_at_once_and_nothing_is_written(experiment, tmp_path, monkeypatch):
    bad = dataclasses.replace(change(experiment, 1, name="byte"), seeds=(1, 1))
    monkeypatch.setattr(comparison, "load_experiment", lambda name: bad)
    with pytest.raises(
        UserError, match=r"\(1\) 2 arms are named 'byte'.*\(2\) 2 seeds are named 1.*\(3\) nowhere is not a corpus"
    ):
        compare(
            CompareOptions(experiment="bad", out=epath.Path(tmp_path / "out"), corpus=("nowhere",)), Local(), CONSOLE
        )
    assert not (tmp_path / "out").exists()


def test_a_budget_that_the_fit_has_spent_is_refused(experiment, text):
    problems = []
    resolve(
        dataclasses.replace(experiment, sizes=(Size(name="xs", budget=Budget(flops=1e9)),)), text, MEASURED, problems
    )
    assert (
        len(problems) == 1
        and "arm subword, size xs: its budget of 1e+09 FLOPs is no more than the 1e+09 that fitting" in problems[0]
    )


@pytest.mark.parametrize(
    "budget, steps, flops",
    [(Budget(bytes=4000), 11, 11 * 8 * 48), (Budget(flops=1e6), 3, 3 * 8 * 48), (Budget(seconds=20.0), 5, 5 * 8 * 48)],
)
def test_the_cost_of_a_run_is_that_of_its_budget(experiment, text, monkeypatch, budget, steps, flops):
    """At 1,000 FLOPs a position and 1e5 a second; the byte arm's step is of 8 x 48 positions and 376 bytes."""
    monkeypatch.setattr(comparison, "model_flops_per_token", lambda recipe, vocab_size: {"total": 1000.0})
    run = resolve(dataclasses.replace(experiment, sizes=(Size(name="s", budget=budget),)), text, MEASURED, [])[0]
    cost = comparison.cost_of(run.recipe, MEASURED["byte"], text, 0, MISSING, 1e5)
    assert (cost.steps, cost.flops) == (steps, flops * 1000.0) and cost.num_bytes == pytest.approx(
        steps * 376.3, rel=1e-3
    )
    held_out = text.corpora[0].documents("test").num_bytes
    evaluated = held_out + (steps // 6 + 1) * 500
    assert cost.flops_left == pytest.approx(flops * 1000 + evaluated / 0.98 * 1000 / 3)
    assert comparison.cost_of(run.recipe, MEASURED["byte"], text, steps, DONE, 1e5).flops_left == 0
    after_one = comparison.cost_of(run.recipe, MEASURED["byte"], text, 6, CUT_OFF, 1e5).flops_left
    assert after_one < cost.flops_left
    unknown = comparison.cost_of(run.recipe, MEASURED["byte"], text, 0, MISSING, None)
    assert (unknown.flops is None) == (budget.seconds is not None)


def test_runs_of_another_version_of_the_code_are_named(experiment, text, tmp_path, monkeypatch):
    runs = resolve(experiment, text, MEASURED, [])
    for run, code in zip(runs, ("ours", "theirs", "theirs")):
        path = comparison.folder_of(run, epath.Path(tmp_path)).job
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"code": code}))
    monkeypatch.setattr(comparison, "code_fingerprint", lambda: "ours")
    [note] = comparison.make_plan(experiment, text, runs, MEASURED, epath.Path(tmp_path)).notes
    assert note.startswith(
        "2 of 4 runs are of another version of the code (theirs, here ours): subword-xs-s0, byte-xs-s1; remove their"
        " folders"
    )


def test_a_folder_that_holds_another_run_is_named(experiment, text, tmp_path):
    runs = resolve(experiment, text, MEASURED, [])
    for run, budget in zip(runs, (Budget(bytes=4000), Budget(bytes=3000))):
        write_json(
            comparison.folder_of(run, epath.Path(tmp_path)).config,
            to_json(dataclasses.replace(run.recipe, budget=budget)),
        )
    [problem] = comparison.other_runs_there(runs, epath.Path(tmp_path))
    assert "subword-xs-s0" in problem and "holds another run than the experiment's (budget:" in problem


def test_an_arm_without_bits_per_byte_is_told_of(experiment, text, tmp_path):
    model = EncoderConfig(
        num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=48, compute_dtype="float32"
    )
    replaced = dataclasses.replace(experiment.arms[1].recipe, model=model, objective=Replaced(generator_share=0.5))
    experiment = change(experiment, 1, recipe=replaced)
    [note] = comparison.make_plan(
        experiment, text, resolve(experiment, text, MEASURED, []), MEASURED, epath.Path(tmp_path)
    ).notes
    assert "arm subword: objective 'replaced' has no bits per byte" in note


# Doing it.


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
    monkeypatch.setattr(comparison, "toklab", lambda words, logs, console: command_line.run(list(words)))


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


def test_only_what_is_missing_is_run_and_the_report_proves_the_order(experiment, run_it, tmp_path):
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
from train.compare.experiment import Arm, Experiment, Size
from train.optimizer import Budget
from train.recipe import load_recipe

def experiment():
    recipe = load_recipe({path!r})
    arms = (Arm(name="byte", recipe=recipe, fit=ByteFit()),
            Arm(name="subword", recipe=recipe, fit=SubwordFit(vocab_size=280)))
    return Experiment(name="tiny", arms=arms,
                      sizes=(Size(name="xs", budget=Budget({budget})),), seeds=(0,), context_bytes=48)
"""


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
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
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
