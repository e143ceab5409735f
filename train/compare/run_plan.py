"""The plan of an experiment: where every run stands, and what is left to do."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from data.rows import CausalRow
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import read_json
from train.compare.resolve import Measured, Run, Text
from train.compare.run_cost import Cost, cost_of
from train.compare.run_state import DONE, folder_of, state_of
from train.console import duration
from train.experiment import Experiment
from train.hosts.processes import code_fingerprint
from train.run.folder import RunFolder


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
    """Estimated, without start-up and compiling."""


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
        """Time for everything that is missing; None if unknown."""
        return known_sum([planned.seconds for planned in self.runs if planned.state != DONE])


def known_sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


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


def measured_rates(runs: Sequence[Run], out: epath.Path) -> dict[tuple[str, str], float]:
    """Training speed in FLOPs per second, by arm and size, where one has trained here."""
    rates: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for folder in (folder_of(run, out), RunFolder(out / "trial" / run.folder_name)):
            summary = read_json(folder.summary, "run's summary") if folder.summary.exists() else {}
            if summary.get("tokens_per_second"):
                rates.setdefault((run.arm, run.size), []).append(
                    summary["tokens_per_second"] * summary["flops_per_token"]["total"]
                )
    return {key: statistics.median(values) for key, values in rates.items()}


def notes_on_code(planned: Sequence[PlannedRun]) -> list[str]:
    """Names the runs that another version of the code began."""
    here = code_fingerprint()
    by_code: dict[str, list[str]] = {}
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


def refuse_longer(plan: Plan, max_hours: float | None) -> None:
    """Raises UserError if the plan takes longer than `max_hours`, or if its time is unknown."""
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
