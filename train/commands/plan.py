"""`toklab plan RECIPE`: what a training step takes on TPUs that are not there."""

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import rich.console
import tyro

from tokenizer_lab.errors import POSITIVE, Range, UserError, check_numbers
from train.commands.options import parse_with_recipe
from train.commands.terminal import progress_bar
from train.console import say
from train.plan.plan import make_plan
from train.plan.pod import Pod
from train.plan.representations import compare_by_arithmetic, compared, find_ids
from train.plan.search import search
from train.plan.tables import arithmetic_table, compared_table, plan_lines, search_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan is made for."""

    topology: str
    """Generation and shape of a slice of TPUs, e.g. v5p:8x8x16."""
    slices: int = 1
    """Slices of that shape, joined by the data center's network."""
    vocab_size: int | None = None
    """Ids of the representation, if it has no artifact yet."""
    bytes_per_id: float | None = None
    """Mean source bytes of an id, if it has no artifact yet."""
    search: bool = False
    """Try rows at a time x remat x mesh and rank what fits; the global batch stays."""
    compare_representations: bool = False
    """Compile the step for each kind of representation too, over rows of as much text."""
    json: pathlib.Path | None = None
    """Also write the results to this file."""
    hlo: pathlib.Path | None = None
    """Also write the compiled program's text to this file."""

    def __post_init__(self) -> None:
        check_numbers(self, "--", vocab_size=Range(least=2), bytes_per_id=POSITIVE)


def run(arguments: list[str]) -> int:
    field = ("options", Annotated[PlanOptions, tyro.conf.arg(name="")])
    parsed = parse_with_recipe("plan", [field], "--topology NAME [--slices N]", arguments)
    if parsed is None:
        return 0
    recipe, options, console = parsed.recipe, parsed.options, rich.console.Console()
    pod, ids = Pod(options.topology, options.slices), find_ids(recipe, options.vocab_size, options.bytes_per_id)
    result: dict[str, Any] = {"representations": compare_by_arithmetic(recipe, ids)}
    if options.search:
        with progress_bar(console, "search", of_bytes=False) as update:
            found = search(recipe, pod, ids, update)
        result["search"] = dataclasses.asdict(found)
        console.print(search_table(found))
    else:
        with console.status(f"compiling the training step for {pod}"):
            result["plan"] = make_plan(recipe, pod, ids, str(options.hlo) if options.hlo else None)
        for line in plan_lines(result["plan"]):
            say(console, line)
    console.print(arithmetic_table(result["representations"]))
    if options.compare_representations:
        result["compared"], pairs = [], list(compared(recipe, ids))
        with progress_bar(console, "representations", of_bytes=False) as update:
            for number, (other, other_ids) in enumerate(pairs):
                update(number, len(pairs))
                result["compared"].append(make_plan(other, pod, other_ids))
            update(len(pairs), len(pairs))
        console.print(compared_table(result["compared"]))
    if options.json:
        write_results(options.json, result)
    return 0


def write_results(path: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes results as JSON. Raises UserError if that fails."""
    try:
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from error
