"""Runs what is missing, one run after the other: trial, training, evaluation; then writes the report."""

import dataclasses

import rich.console
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from train.compare import subprocesses
from train.compare.console_output import show_decision
from train.compare.decision_report import write_decision
from train.compare.results import Design
from train.compare.run_plan import Plan, PlannedRun
from train.compare.run_state import DONE, UNSCORED, state_of
from train.console import say
from train.exits import EXIT_STOPPED, EXIT_USER_ERROR
from train.optimizer import Budget
from train.recipe import Recipe, read_recipe, to_json
from train.submit.job import Target, make_job
from train.submit.local import EXIT_DONE

_TRIAL_STEPS = 8


def try_out(plan: Plan, out: epath.Path, console: rich.console.Console) -> bool:
    """Trains the first missing run for a few steps, to measure this machine's speed. Returns False if a signal stopped
    it."""
    run = next(planned.run for planned in plan.runs if planned.state != DONE)
    say(console, f"{_TRIAL_STEPS} steps of {run.recipe.name}, to estimate the time")
    trial = dataclasses.replace(
        run.recipe,
        budget=Budget(steps=_TRIAL_STEPS),
        evaluation=dataclasses.replace(run.recipe.evaluation, max_bytes=1),
    )
    path = write_recipe(trial, out / "recipes" / f"trial-{run.folder_name}.json")
    code = subprocesses.toklab(
        ["train", path, "--run-dir", str(out / "trial" / run.folder_name)], out / "logs" / "trial", console
    )
    if code not in (EXIT_DONE, EXIT_STOPPED):
        raise UserError(f"the trial of {run.recipe.name} failed, for the reason above; mend that, nothing else was run")
    return code == EXIT_DONE


def run_all(plan: Plan, design: Design, out: epath.Path, target: Target, console: rich.console.Console) -> int:
    """Runs what is missing, one run after the other, and writes the report. Returns the exit code. Raises UserError
    with the names of the runs that failed."""
    failed, done = [], []
    for number, planned in enumerate(plan.runs, 1):
        if planned.state != DONE:
            say(console, f"run {number} of {len(plan.runs)}: {planned.run.recipe.name} ({planned.state})")
            code = do(planned, out, target, console)
            if code == EXIT_STOPPED:
                say(console, "stopped; what was trained is saved, the same command goes on from there")
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
        say(console, str(report.index))
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.runs)} runs failed, for the reasons above: {', '.join(failed)}; mend that and"
            f" run the same command again; the report is of the {len(done)} that are done"
        )
    if missing := len(plan.runs) - len(done):
        say(
            console,
            f"{missing} runs are handed over and not done yet; the same command, later, evaluates and reports them",
        )
    return EXIT_DONE


def do(planned: PlannedRun, out: epath.Path, target: Target, console: rich.console.Console) -> int:
    """Starts or resumes a run and evaluates it. Returns the exit code of the last command."""
    recipe, folder = planned.run.recipe, planned.folder
    try:
        if planned.state != UNSCORED:
            path = write_recipe(recipe, out / "recipes" / f"{planned.run.folder_name}.json")
            if code := target.submit(make_job(path, recipe, target.place(recipe), str(folder.path)), console):
                return code
        if state_of(folder)[0] != UNSCORED:  # it was handed over to others, who are at it
            return EXIT_DONE
        corpora, before = recipe.data.corpora, read_recipe(folder).data.corpora
        moved = ["--corpus", corpora[0]] if corpora != before and len(corpora) == 1 else []
        return subprocesses.toklab(["eval", str(folder.path), "--noise", *moved], folder.logs / "eval", console)
    except UserError as error:
        say(console, f"{recipe.name}: {error}")
        return EXIT_USER_ERROR


def write_recipe(recipe: Recipe, path: epath.Path) -> str:
    """Writes a resolved recipe for `toklab train`. Returns its path."""
    write_json(path, to_json(recipe))
    return str(path)
