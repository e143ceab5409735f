"""Options of the commands, made from config dataclasses; a complaint about them is one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from tokenizer_lab.errors import UserError, reason


def parse(options: Any, arguments: Sequence[str], command: str, **keywords: Any) -> Any:
    """`tyro.cli`, with its error box turned into a UserError of one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=arguments, prog=f"toklab {command}", **keywords)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        lines = [line.strip(" │╭╮╰╯─") for line in complaint.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line and not re.fullmatch(r"[-─]+", line))
        raise UserError(reason(text).replace("Perhaps you meant:", "did you mean")) from None


def parse_with_recipe(command: str, fields: Sequence[Any], usage: str, arguments: list[str]) -> Any:
    """Parses the options of a command on a recipe; every field of the recipe is an option. None if only help was shown.

    Args:
      command: its name.
      fields: of `dataclasses.make_dataclass`, what the command takes besides.
      usage: how those are given.
      arguments: the recipe and all options.
    """
    from train.recipe import Recipe, load_recipe

    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in ("-h", "--help"):
            raise UserError(f"the recipe comes first: toklab {command} RECIPE {usage} [--field value ...]")
        print(
            f"usage: toklab {command} RECIPE {usage} [--field value ...]; toklab {command} RECIPE --help shows every"
            " field"
        )
        return None
    name, *arguments = arguments
    recipe = load_recipe(name)
    options = dataclasses.make_dataclass(
        command.capitalize(),
        [*fields, ("recipe", Annotated[Recipe, tyro.conf.arg(name="")], dataclasses.field(default=recipe))],
        kw_only=True,
        frozen=True,
    )
    options.__doc__ = f"{command.capitalize()} the recipe {name}."
    # The kinds of model and objective are the recipe's; options change their fields.
    return parse(options, arguments, f"{command} {name}", config=(tyro.conf.AvoidSubcommands,))


def take_option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Takes out one option, which decides what the others are. Returns its value and the other arguments."""
    for number, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}="), [*arguments[:number], *arguments[number + 1 :]]
        if word == name:
            if number + 1 == len(arguments):
                raise UserError(f"{name} is given without a value")
            return arguments[number + 1], [*arguments[:number], *arguments[number + 2 :]]
    return None, arguments
