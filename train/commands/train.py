"""`toklab train RECIPE`: trains a recipe, or goes on where the run folder has a checkpoint."""

import dataclasses
import sys

import rich.console
from etils import epath

from train.commands.options import parse_with_recipe
from train.commands.terminal import STOPPED_AND_SAVED, show_config
from train.evaluate.bits_per_byte import make_judge
from train.exits import EXIT_STOPPED
from train.hosts import processes
from train.hosts.watchdog import Watchdog
from train.loop import train as run_training
from train.recipe import to_json
from train.run.profiles import StepRange
from train.summary import STOPPED


def run(arguments: list[str]) -> int:
    fields = [("run_dir", epath.Path), ("profile", str | None, dataclasses.field(default=None))]
    options = parse_with_recipe("train", fields, "--run-dir RUN", arguments)
    if options is None:
        return 0
    profile = StepRange.parse(options.profile) if options.profile is not None else None
    with Watchdog(options.recipe.deadlines) as watchdog, processes.joined(options.recipe.deadlines) as cluster:
        console = rich.console.Console(quiet=not processes.is_first())
        show_config(to_json(options.recipe) | {"cluster": cluster}, console)
        outcome = run_training(options.recipe, str(options.run_dir), console, make_judge, watchdog, profile)
    if outcome == STOPPED:
        if processes.is_first():
            print(STOPPED_AND_SAVED, file=sys.stderr)
        return EXIT_STOPPED
    return 0
