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
from collections.abc import Sequence

import rich.console
import tyro
from etils import epath

from tokenizer_lab.errors import UserError, check_numbers
from tokenizer_lab.files import write_json
from train.compare.artifacts import fit_all, measure, path_of
from train.compare.console_output import show
from train.compare.resolve import check, load_experiment, open_text, resolve
from train.compare.results import Design
from train.compare.run_plan import describe, make_plan, refuse_longer
from train.compare.run_state import DONE, other_runs_there
from train.compare.running import run_all, try_out
from train.exits import EXIT_STOPPED
from train.submit.job import Target
from train.submit.local import EXIT_DONE, Local


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

    def __post_init__(self) -> None:
        check_numbers(self, "--")


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
    assert text is not None, "`problems` says why there is none"
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
