"""Commands over the documents of a corpus, which run in this process or on Ray."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import rich.console
import tyro

from data.engines import EngineOptions
from train.commands.options import parse
from train.commands.terminal import progress_bar
from train.console import say


def run_on_engine(
    command: str,
    options_class: type,
    work: Callable[..., Any],
    arguments: list[str],
    default: EngineOptions = EngineOptions(),
) -> None:
    """Runs a command on the engine that its options name, and prints the result."""
    flat = tyro.conf.arg(name="")
    engine_field = ("engine", Annotated[EngineOptions, flat], dataclasses.field(default=default))
    both = dataclasses.make_dataclass(
        command.capitalize(), [("options", Annotated[options_class, flat]), engine_field], kw_only=True, frozen=True
    )
    both.__doc__ = options_class.__doc__
    parsed, console = parse(both, arguments, command), rich.console.Console()
    with parsed.engine.open() as engine, progress_bar(console, command, of_bytes=True) as update:
        result = work(parsed.options, update, engine)
    say(console, str(result))
