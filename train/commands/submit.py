"""`toklab submit RECIPE --to KIND`: trains on other machines, or in several processes here."""

from typing import Annotated

import rich.console
import tyro

from tokenizer_lab.errors import UserError
from train.commands.options import parse_with_recipe, take_option
from train.recipe import load_recipe
from train.submit import TARGETS, target_class
from train.submit.job import make_job


def run(arguments: list[str]) -> int:
    kind, arguments = take_option("--to", arguments)
    usage = f"--to {'|'.join(TARGETS)} --run-dir RUN"
    if kind is None and "--help" not in arguments and "-h" not in arguments:
        raise UserError(f"--to is missing: toklab submit RECIPE {usage} [--field value ...]")
    if kind is None:
        print(
            f"usage: toklab submit RECIPE {usage} [--field value ...]; toklab submit RECIPE --to KIND --help shows"
            " every field"
        )
        return 0
    target = target_class(kind)
    fields = [
        ("run_dir", str),
        ("job_name", str | None, None),
        ("dry_run", bool, False),
        ("target", Annotated[target, tyro.conf.arg(name="")]),
    ]
    parsed = parse_with_recipe("submit", fields, usage, arguments)
    if parsed is None:
        return 0
    job = make_job(
        arguments[0], load_recipe(arguments[0]), parsed.target.place(parsed.recipe), parsed.run_dir, parsed.job_name
    )
    if parsed.dry_run:
        print(parsed.target.render(job))
        return 0
    return parsed.target.submit(job, rich.console.Console())
