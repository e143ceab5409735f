"""`toklab compare EXPERIMENT`: plans the runs of an experiment, does what is missing, writes one report."""

import dataclasses
from typing import Annotated, Any

import jax
import rich.console
import tyro

from train.commands.options import parse, take_option
from train.compare.comparison import CompareOptions, compare
from train.submit import target_class


def run(arguments: list[str]) -> int:
    jax.config.update("jax_platforms", "cpu")  # the runs are other processes, which need the accelerators
    kind, arguments = take_option("--submit", arguments)
    target: Any = Annotated[target_class(kind or "local", "--submit"), tyro.conf.arg(name="")]
    command = dataclasses.make_dataclass(
        "Compare",
        [("options", Annotated[CompareOptions, tyro.conf.arg(name="")]), ("target", target)],
        kw_only=True,
        frozen=True,
    )
    command.__doc__ = (
        f"{CompareOptions.__doc__}\n\nRuns go to --submit KIND, a place of `toklab submit`, whose options are options"
        " here; by default to processes on this machine."
    )
    parsed = parse(command, arguments, "compare")
    return compare(parsed.options, parsed.target, rich.console.Console())
