"""What `toklab compare` prints: its plan, and the decision."""

from collections.abc import Mapping

import rich.console

from train.compare.in_words import supported
from train.compare.resolve import Measured
from train.compare.results import Decision
from train.compare.run_plan import Plan, known_sum
from train.compare.run_state import CUT_OFF, DONE, MISSING, UNSCORED
from train.console import NamedRows, duration, say
from train.experiment import Experiment
from train.report.page import NOTHING, fixed, si


def show(experiment: Experiment, plan: Plan, measured: Mapping[str, Measured], console: rich.console.Console) -> None:
    """Prints the plan: a line for each arm of a size, then the sums."""
    console.print(plan_table(experiment, plan, measured))
    for line in (_sums(experiment, plan), *(f"note: {note}" for note in plan.notes)):
        say(console, line)


def plan_table(experiment: Experiment, plan: Plan, measured: Mapping[str, Measured]) -> NamedRows:
    titles = ("vocab", "bytes/\nid", "row", "params", "FLOPs/\nbyte", "steps", "bytes\nseen", "time")
    table = NamedRows("arm", *titles, words="runs")
    for size in experiment.sizes:
        table.add_row(size.name, style="bold")
        for arm in experiment.arms:
            of_arm = [planned for planned in plan.runs if (planned.run.arm, planned.run.size) == (arm.name, size.name)]
            first, of = of_arm[0], measured[arm.name]
            cost = first.cost
            seconds = known_sum([planned.seconds for planned in of_arm])
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
                NOTHING if seconds is None else duration(seconds),
                ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)),
            )
        table.add_section()
    return table


def _sums(experiment: Experiment, plan: Plan) -> str:
    """The whole experiment in a line: how many runs, and what is to be done."""
    states = [planned.state for planned in plan.runs]
    left = [planned.cost.flops_left for planned in plan.runs if planned.state != DONE]
    flops_left = known_sum(left)
    counted = ", ".join(
        f"{states.count(state)} {state}" for state in (DONE, UNSCORED, CUT_OFF, MISSING) if state in states
    )
    time = "time not known" if plan.seconds is None else f"about {duration(plan.seconds)}, by {plan.clock}"
    flops = "FLOPs not known" if flops_left is None else f"{flops_left:.3g} FLOPs"
    to_do = f"to do: {flops}, {time}" if left else "nothing to do"
    context = (
        f"rows of about {experiment.context_bytes:,} bytes"
        if experiment.context_bytes
        else "rows as long as the recipes say"
    )
    return f"{experiment.name}: {len(states)} runs: {counted}; {context}; {to_do}"


def show_decision(decision: Decision, console: rich.console.Console) -> None:
    """Prints the arms of each size, best first, and what the numbers support."""
    if decision.rankings:
        console.print(decision_table(decision))
    for line in supported(decision):
        say(console, f"- {line}")


def decision_table(decision: Decision) -> NamedRows:
    titles = (
        "bits/\nbyte",
        "95 %,\nseeds",
        "behind\nthe best",
        "clear",
        "bytes/\nid",
        "FLOPs/B,\ngenerated",
        "bytes\nseen",
    )
    table = NamedRows("arm", *titles)
    for ranking in reversed(decision.rankings):
        table.add_row(ranking.size, style="bold")
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
    return table
