"""`toklab inspect ARTIFACT...`: what representations do to a text."""

import rich.console

from train.commands.options import parse
from train.commands.terminal import progress_bar
from train.console import say
from train.inspect.inspection import console_table, inspect
from train.inspect.options import InspectOptions


def run(arguments: list[str]) -> None:
    options, console = parse(InspectOptions, arguments, "inspect"), rich.console.Console()
    with progress_bar(console, "inspect", of_bytes=True) as update:
        inspection = inspect(options, update)
    say(console, inspection.about)
    console.print(console_table(inspection))
    say(console, f"{options.out / 'index.html'}")
