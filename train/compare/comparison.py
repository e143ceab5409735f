"""`toklab compare EXPERIMENT`: plans the runs of an experiment, does what is missing, and ends in one report.

    OUT/artifacts/KIND-HASH            fitted once for all arms with the same options
    OUT/runs/ARM-SIZE-sSEED-HASH/      run folders (`train/run/folder.py`); the hash is of what decides a run's numbers
    OUT/recipes/                       their resolved recipes, which `toklab train` takes
    OUT/trial/                         a few steps of one run, where nothing else tells how fast this machine is
    OUT/plan.json                      as the last command found it: every run, its arm, size, seed, folder and state
    OUT/report/                        of all runs that are done

This process plans and waits; fits, training and evaluation are processes of their own, so that it holds no device and
no model's memory. A run is known by its hash alone. So a change of an arm makes new runs of that arm and leaves all
others done, and what was cut off goes on by the same command.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
import tyro
from etils import epath

import tokenizer_lab
from data.held_out import fixed_subset
from data.rows import CausalRow
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote, read_json, write_json
from tokenizer_lab.representation import Representation
from train.compare.decision import Decision, Design
from train.compare.decision_report import write_decision
from train.compare.experiment import (
    Arm,
    Experiment,
    Measured,
    Run,
    Text,
    check,
    fit_of,
    load_experiment,
    open_text,
    resolve,
)
from train.exits import EXIT_STOPPED, EXIT_USER_ERROR
from train.hosts.processes import code_fingerprint
from train.optimizer import Budget, total_steps
from train.recipe import Recipe, refused_changes, to_json
from train.report.page import NOTHING, fixed, si
from train.run.folder import RunFolder
from train.setup import model_flops_per_token
from train.submit.job import Target, make_job
from train.submit.local import EXIT_DONE, Local, launch, newest_step
from train.summary import FINISHED

DONE, UNSCORED, CUT_OFF, MISSING = "done", "to evaluate", "cut off", "missing"
_SAMPLE_BYTES = 1 << 18  # of each corpus, on which bytes per position are measured
_TRIAL_STEPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Plan the runs of an experiment, do what is missing, and write one report."""

    experiment: tyro.conf.Positional[str]
    """A name in configs/, or a Python file."""
    out: epath.Path
    """Folder for artifacts, runs and report; the same command goes on there."""
    corpus: tuple[str, ...] = ()
    """Corpus stores that every arm is trained on; those of the arms' recipes if none are given."""
    plan_only: bool = False
    """Fit what is to be fitted, show the plan, and train nothing."""
    max_hours: float | None = None
    """Train nothing if all that is missing would take longer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes. None where only its end can tell."""

    parameters: int
    flops_per_byte: float
    steps: int | None
    num_bytes: float | None
    flops: float | None
    flops_left: float | None
    """Of training, from the newest checkpoint on, and of evaluations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run, and where it stands."""

    run: Run
    folder: RunFolder
    state: str
    step: int
    """Of its newest checkpoint; 0 where there is none."""
    cost: Cost
    seconds: float | None
    """That it will take, start-up and compiling left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Every run of an experiment.

    Attributes:
      runs: in the order in which they are done.
      clock: where the estimates of time come from.
      notes: what does not keep the experiment from running.
    """

    runs: list[PlannedRun]
    clock: str
    notes: list[str]

    @property
    def seconds(self) -> float | None:
        """All that is missing; None where that is not known."""
        seconds = [planned.seconds for planned in self.runs if planned.state != DONE]
        return None if None in seconds else sum(seconds)


def compare(options: CompareOptions, target: Target, console: rich.console.Console) -> int:
    """Runs `toklab compare`; returns its exit code.

    Raises:
      UserError: the experiment cannot be, which is said before anything runs; or runs of it have failed.
    """
    problems: list[str] = []
    experiment = load_experiment(options.experiment)
    problems += check(experiment)
    text = open_text(experiment, options.corpus, problems)
    refuse(problems)
    if not fit_all(experiment, text, options.out, console):
        return EXIT_STOPPED
    measured = {arm.name: measure(path_of(arm, text, options.out), text, arm.recipe) for arm in experiment.arms}
    runs = resolve(experiment, text, measured, problems)
    problems += other_runs_there(runs, options.out)
    refuse(problems)
    plan = make_plan(experiment, text, runs, measured, options.out)
    if not plan.clock and isinstance(target, Local) and any(planned.state != DONE for planned in plan.runs):
        if not try_out(plan, options.out, console):
            return EXIT_STOPPED
        plan = make_plan(experiment, text, runs, measured, options.out)
    show(experiment, plan, measured, console)
    write_json(options.out / "plan.json", describe(experiment, text, plan))
    refuse_longer(plan, options.max_hours)
    if options.plan_only:
        return EXIT_DONE
    design = Design(
        name=experiment.name,
        budget=experiment.sizes[0].budget.kind,
        arms=tuple(arm.name for arm in experiment.arms),
        sizes=tuple(size.name for size in experiment.sizes),
        num_seeds=len(experiment.seeds),
        places=(),
    )
    return run_all(plan, design, options.out, target, console)


def refuse(problems: Sequence[str]) -> None:
    """Raises UserError with all problems, if there are any."""
    if problems:
        listed = (
            problems[0]
            if len(problems) == 1
            else "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
        )
        raise UserError(f"the experiment cannot be run as it is: {listed}")


def toklab(words: Sequence[str], logs: epath.Path, console: rich.console.Console) -> int:
    """Runs a command of `toklab` in a process of its own and shows what it says; returns its exit code. Raises
    UserError where it fails."""
    logs = epath.Path("toklab-logs") / logs.name if is_remote(logs) else logs
    return launch([sys.executable, "-m", "train.commands.cli", *words], Local(max_restarts=0), logs, lambda: 0, console)


# ---- Artifacts -----------------------------------------------------------------------------------


def path_of(arm: Arm, text: Text, out: epath.Path) -> str:
    """The folder of an arm's artifact."""
    return arm.recipe.representation if arm.fit is None else str(out / "artifacts" / fit_of(arm, text).folder_name)


def fit_all(experiment: Experiment, text: Text, out: epath.Path, console: rich.console.Console) -> bool:
    """Fits the artifacts that are missing; whether no signal stopped that. Raises UserError where one cannot be
    fitted."""
    for fit in dict.fromkeys(fit_of(arm, text) for arm in experiment.arms if arm.fit is not None):
        folder = out / "artifacts" / fit.folder_name
        if (folder / "manifest.json").exists():
            continue
        code = toklab(
            ["fit", *fit.words, "--corpus", text.paths[0], "--out", str(folder)],
            out / "logs" / fit.folder_name,
            console,
        )
        if code == EXIT_STOPPED:
            return False
        if code != EXIT_DONE:
            raise UserError(f"{folder} could not be fitted, for the reason above; mend that, or change the arm")
    return True


def measure(path: str, text: Text, recipe: Recipe) -> Measured:
    """An artifact, and how much text its ids hold: in a fixed sample of each corpus, weighted as rows draw from
    them."""
    representation = tokenizer_lab.load(path)
    weights = recipe.data.weights or (1.0,) * len(text.corpora)
    num_bytes, num_positions = np.average(
        [_mean_sizes(representation, corpus) for corpus in text.corpora], axis=0, weights=weights
    )
    return Measured(
        path=path,
        fingerprint=representation.fingerprint,
        vocab_size=representation.vocab_size,
        costs=representation.costs,
        bytes_per_position=float(num_bytes / num_positions),
    )


def _mean_sizes(representation: Representation, corpus: Corpus) -> tuple[float, float]:
    """Bytes and positions of a document, on average; its end is a position too."""
    sample = fixed_subset(corpus.documents("train"), _SAMPLE_BYTES)
    encoded = representation.encode_many(sample)
    return statistics.fmean(map(len, sample)), statistics.fmean(len(ids) + 1 for ids, _ in encoded)


# ---- The plan ------------------------------------------------------------------------------------


def folder_of(run: Run, out: epath.Path) -> RunFolder:
    return RunFolder(out / "runs" / run.folder_name)


def other_runs_there(runs: Sequence[Run], out: epath.Path) -> list[str]:
    """Folders that hold another run than their name says: somebody has trained in them otherwise."""
    problems = []
    for run in runs:
        folder, wanted = folder_of(run, out), to_json(run.recipe)
        if not folder.config.exists():
            continue
        stored = read_json(folder.config, "run's config")
        differing = refused_changes(stored, wanted)
        if stored.get("budget") != wanted["budget"]:
            differing.append(f"budget: {stored.get('budget')} -> {wanted['budget']}")
        if differing:
            problems.append(
                f"{folder.path} holds another run than the experiment's ({'; '.join(differing)}); remove or rename the"
                " folder"
            )
    return problems


def make_plan(
    experiment: Experiment, text: Text, runs: Sequence[Run], measured: Mapping[str, Measured], out: epath.Path
) -> Plan:
    """Where every run stands, and what is left to do."""
    rates = measured_rates(runs, out)
    typical = statistics.median(rates.values()) if rates else None
    planned, notes = [], []
    for run in runs:
        folder = folder_of(run, out)
        state, step = state_of(folder)
        rate = rates.get((run.arm, run.size), typical)
        cost = cost_of(run.recipe, measured[run.arm], text, step, state, rate)
        seconds = None if rate is None or cost.flops_left is None else cost.flops_left / rate
        planned.append(PlannedRun(run=run, folder=folder, state=state, step=step, cost=cost, seconds=seconds))
    notes += notes_on_code(planned)
    notes += [
        f"arm {arm.name}: objective {arm.recipe.objective.kind!r} has no bits per byte; the report has it among the"
        " encoders, not in the ranking"
        for arm in experiment.arms
        if arm.recipe.objective.layout is not CausalRow
    ]
    own = len({(run.arm, run.size) for run in runs} & rates.keys())
    clock = (
        f"the speed of {own} of {len({(run.arm, run.size) for run in runs})} arms x sizes, measured in {out}; of the"
        " others, their median in FLOPs"
        if own
        else ""
    )
    return Plan(runs=planned, clock=clock, notes=notes)


def state_of(folder: RunFolder) -> tuple[str, int]:
    """How far a run has come, and the step of its newest checkpoint."""
    if not folder.config.exists():
        return MISSING, 0
    summary = read_json(folder.summary, "run's summary") if folder.summary.exists() else {}
    if summary.get("state") != FINISHED:
        return CUT_OFF, max(0, newest_step(str(folder.path)))
    scored = (
        folder.evaluation.exists() and read_json(folder.evaluation, "run's evaluation").get("step") == summary["steps"]
    )
    return DONE if scored else UNSCORED, summary["steps"]


def measured_rates(runs: Sequence[Run], out: epath.Path) -> dict[tuple[str, str], float]:
    """FLOPs a second of training, of each arm and size that has trained here."""
    rates: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for folder in (folder_of(run, out), RunFolder(out / "trial" / run.folder_name)):
            summary = read_json(folder.summary, "run's summary") if folder.summary.exists() else {}
            if summary.get("tokens_per_second"):
                rates.setdefault((run.arm, run.size), []).append(
                    summary["tokens_per_second"] * summary["flops_per_token"]["total"]
                )
    return {key: statistics.median(values) for key, values in rates.items()}


def cost_of(recipe: Recipe, measured: Measured, text: Text, step: int, state: str, rate: float | None) -> Cost:
    """What a run takes in all and from a step on; `rate` is FLOPs a second, where that is known."""
    per_position = model_flops_per_token(recipe, measured.vocab_size)["total"]
    encode_flops, fit_flops = (measured.costs.get(name, 0.0) for name in ("encode_flops_per_id", "fit_flops"))
    positions, budget = recipe.data.batch_rows * recipe.data.sequence_length, recipe.budget
    per_step, bytes_per_step = (per_position + encode_flops) * positions, measured.bytes_per_position * positions
    if budget.bytes is not None:
        steps = math.ceil(budget.bytes / bytes_per_step)
    elif budget.seconds is not None:
        steps = None if rate is None else max(1, round(budget.seconds * rate / per_step))
    else:
        steps = total_steps(dataclasses.replace(budget, flops=budget.flops - fit_flops), per_step)
    left = None
    if steps is not None:
        held_out = sum(corpus.documents("test").num_bytes for corpus in text.corpora)
        evaluations = (max(0, steps - step) // recipe.evaluation.every_steps + 1) * recipe.evaluation.max_bytes
        scored_bytes = {DONE: 0, UNSCORED: held_out}.get(state, held_out + evaluations)
        scoring = scored_bytes / measured.bytes_per_position * per_position / 3  # forward only
        left = scoring + (max(0, steps - step) * per_step if state in (CUT_OFF, MISSING) else 0.0)
    return Cost(
        parameters=recipe.objective.count_parameters(recipe.model, measured.vocab_size)["total"],
        flops_per_byte=(per_position + encode_flops) / measured.bytes_per_position,
        steps=steps,
        num_bytes=None if steps is None else steps * bytes_per_step,
        flops=None if steps is None else fit_flops + steps * per_step,
        flops_left=left,
    )


def notes_on_code(planned: Sequence[PlannedRun]) -> list[str]:
    """Which runs were begun by another version of the code than this one."""
    here, by_code = code_fingerprint(), {}
    for run in planned:
        if run.folder.job.exists():
            by_code.setdefault(str(read_json(run.folder.job, "job").get("code")), []).append(run.run.recipe.name)
    return [
        f"{len(names)} of {len(planned)} runs are of another version of the code ({code[:12]}, here {here[:12]}):"
        f" {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}; remove their folders to run"
        " them again"
        for code, names in by_code.items()
        if code != here
    ]


def try_out(plan: Plan, out: epath.Path, console: rich.console.Console) -> bool:
    """A few steps of the first run that is missing, to learn how fast this machine is; whether no signal stopped
    that."""
    run = next(planned.run for planned in plan.runs if planned.state != DONE)
    console.print(f"{_TRIAL_STEPS} steps of {run.recipe.name}, to estimate the time", soft_wrap=True)
    trial = dataclasses.replace(
        run.recipe,
        budget=Budget(steps=_TRIAL_STEPS),
        evaluation=dataclasses.replace(run.recipe.evaluation, max_bytes=1),
    )
    path = write_recipe(trial, out / "recipes" / f"trial-{run.folder_name}.json")
    code = toklab(["train", path, "--run-dir", str(out / "trial" / run.folder_name)], out / "logs" / "trial", console)
    if code not in (EXIT_DONE, EXIT_STOPPED):
        raise UserError(f"the trial of {run.recipe.name} failed, for the reason above; mend that, nothing else was run")
    return code == EXIT_DONE


def write_recipe(recipe: Recipe, path: epath.Path) -> str:
    """Writes a resolved recipe where `toklab train` finds it; the path."""
    write_json(path, to_json(recipe))
    return str(path)


def refuse_longer(plan: Plan, max_hours: float | None) -> None:
    """Raises UserError where the plan takes longer than that, or nobody knows."""
    if max_hours is None or all(planned.state == DONE for planned in plan.runs):
        return
    if plan.seconds is None:
        raise UserError(
            f"--max-hours {max_hours:g} is given and nothing has been measured of how long the runs take; leave it out,"
            " or run one first"
        )
    if plan.seconds > 3600 * max_hours:
        raise UserError(
            f"what is missing would take about {duration(plan.seconds)}, more than --max-hours {max_hours:g}; raise it,"
            " or take away arms, seeds, sizes or budget"
        )


def show(experiment: Experiment, plan: Plan, measured: Mapping[str, Measured], console: rich.console.Console) -> None:
    """Prints the plan: a line for each arm of a size, then the sums."""
    table = _console_table(
        "arm", "vocab", "bytes/\nid", "row", "params", "FLOPs/\nbyte", "steps", "bytes\nseen", "time"
    )
    table.add_column("runs", overflow="fold")
    for size in experiment.sizes:
        table.add_row(rich.text.Text(size.name, style="bold"))
        for arm in experiment.arms:
            of_arm = [planned for planned in plan.runs if (planned.run.arm, planned.run.size) == (arm.name, size.name)]
            first, of = of_arm[0], measured[arm.name]
            cost = first.cost
            seconds = [planned.seconds for planned in of_arm]
            states = [
                planned.state + (f" at step {planned.step:,}" if planned.state == CUT_OFF else "") for planned in of_arm
            ]
            table.add_row(
                arm.name,
                f"{of.vocab_size:,}",
                f"{of.bytes_per_position:.2f}",
                f"{first.run.recipe.data.sequence_length:,}",
                si(cost.parameters),
                si(cost.flops_per_byte),
                fixed(cost.steps),
                si(cost.num_bytes, "B"),
                NOTHING if None in seconds else duration(sum(seconds)),
                ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
            )
        table.add_section()
    console.print(table)
    states = [planned.state for planned in plan.runs]
    left = [planned.cost.flops_left for planned in plan.runs if planned.state != DONE]
    counted = ", ".join(
        f"{states.count(state)} {state}" for state in (DONE, UNSCORED, CUT_OFF, MISSING) if state in states
    )
    time = "time not known" if plan.seconds is None else f"about {duration(plan.seconds)}, by {plan.clock}"
    flops = "FLOPs not known" if None in left else f"{sum(left):.3g} FLOPs"
    to_do = f"to do: {flops}, {time}" if left else "nothing to do"
    context = (
        f"rows of about {experiment.context_bytes:,} bytes"
        if experiment.context_bytes
        else "rows as long as the recipes say"
    )
    for line in (
        f"{experiment.name}: {len(states)} runs: {counted}; {context}; {to_do}",
        *(f"note: {note}" for note in plan.notes),
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def show_decision(decision: Decision, console: rich.console.Console) -> None:
    """Prints the arms of each size, best first, and what the numbers support."""
    table = _console_table(
        "arm",
        "bits/\nbyte",
        "95 %,\nseeds",
        "behind\nthe best",
        "clear",
        "bytes/\nid",
        "FLOPs/B,\ngenerated",
        "bytes\nseen",
    )
    for ranking in reversed(decision.rankings):
        table.add_row(rich.text.Text(ranking.size, style="bold"))
        for cell in ranking.cells:
            behind = ranking.behind.get(cell.arm)
            table.add_row(
                cell.arm,
                fixed(cell.mean, 3),
                NOTHING if cell.interval is None else "–".join(fixed(end, 3) for end in cell.interval),
                fixed(behind.bits, 3) if behind else "",
                ("yes" if behind.clear else "no") if behind else "",
                fixed(cell.average("bytes_per_id"), 2),
                si(cell.average("generate_flops_per_byte")),
                si(cell.average("bytes_seen"), "B"),
            )
        table.add_section()
    if decision.rankings:
        console.print(table)
    for line in decision.supported:
        console.print(f"- {line}", highlight=False, markup=False)


def _console_table(first: str, *titles: str) -> rich.table.Table:
    """A table for 80 columns: names on the left, numbers on the right."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def duration(seconds: float) -> str:
    """`5400 -> "1.5 h"`."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def describe(experiment: Experiment, text: Text, plan: Plan) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "name": experiment.name,
        "context_bytes": experiment.context_bytes,
        "corpora": [corpus.content_hash for corpus in text.corpora],
        "arms": [arm.name for arm in experiment.arms],
        "sizes": [size.name for size in experiment.sizes],
        "seeds": list(experiment.seeds),
        "code": code_fingerprint(),
        "notes": plan.notes,
        "runs": [
            {
                "arm": planned.run.arm,
                "size": planned.run.size,
                "seed": planned.run.seed,
                "folder": f"runs/{planned.run.folder_name}",
                "state": planned.state,
                "step": planned.step,
                **dataclasses.asdict(planned.cost),
            }
            for planned in plan.runs
        ],
    }


# ---- The runs ------------------------------------------------------------------------------------


def run_all(plan: Plan, design: Design, out: epath.Path, target: Target, console: rich.console.Console) -> int:
    """Does what is missing, one run after the other, and writes the report on `design`; the exit code. Raises UserError
    naming runs that failed."""
    failed, done = [], []
    for number, planned in enumerate(plan.runs, 1):
        if planned.state != DONE:
            console.print(
                f"run {number} of {len(plan.runs)}: {planned.run.recipe.name} ({planned.state})",
                soft_wrap=True,
                highlight=False,
            )
            code = do(planned, out, target, console)
            if code == EXIT_STOPPED:
                console.print("stopped; what was trained is saved, the same command goes on from there", soft_wrap=True)
                return EXIT_STOPPED
            if code != EXIT_DONE:
                failed.append(planned.run.recipe.name)
        if state_of(planned.folder)[0] == DONE:
            done.append(planned)
    if done:
        places = tuple((planned.run.arm, planned.run.size, planned.run.seed) for planned in done)
        report, decision = write_decision(
            [planned.folder.path for planned in done], out / "report", dataclasses.replace(design, places=places)
        )
        show_decision(decision, console)
        console.print(str(report.index), soft_wrap=True)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.runs)} runs failed, for the reasons above: {', '.join(failed)}; mend that and"
            f" run the same command again; the report is of the {len(done)} that are done"
        )
    if missing := len(plan.runs) - len(done):
        console.print(
            f"{missing} runs are handed over and not done yet; the same command, later, evaluates and reports them",
            soft_wrap=True,
        )
    return EXIT_DONE


def do(planned: PlannedRun, out: epath.Path, target: Target, console: rich.console.Console) -> int:
    """Trains and evaluates a run, or goes on with it; the exit code of what ended it."""
    recipe, folder = planned.run.recipe, planned.folder
    try:
        if planned.state != UNSCORED:
            path = write_recipe(recipe, out / "recipes" / f"{planned.run.folder_name}.json")
            if code := target.submit(make_job(path, recipe, target.place(recipe), str(folder.path)), console):
                return code
        if state_of(folder)[0] != UNSCORED:  # it was handed over to others, who are at it
            return EXIT_DONE
        return toklab(["eval", str(folder.path), "--noise"], folder.logs / "eval", console)
    except UserError as error:
        console.print(f"{recipe.name}: {error}", soft_wrap=True, markup=False)
        return EXIT_USER_ERROR
