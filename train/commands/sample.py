"""`toklab sample RUN`: draws text from a run."""

import dataclasses
import os
import sys
from typing import Annotated

import rich.console
import tyro
from etils import epath

from tokenizer_lab.errors import check_numbers
from train.commands.options import parse
from train.evaluate.generation import Draw
from train.exits import interruptible_import


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw text from a trained run."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    prompt: str
    """The text to go on from, '' for the beginning of a document; with subwords, best ended where a word ends (see
    train/evaluate/sampling.py), or use --exact-bytes."""
    exact_bytes: bool = False
    """Draw byte by byte with exact probabilities, wherever the prompt ends; the other options are then of bytes (see
    docs/byte_probabilities.md)."""
    max_tokens: int = 200
    """Ids to draw at most."""
    draw: Annotated[Draw, tyro.conf.arg(name="")] = Draw(temperature=0.8, top_p=0.95)

    def __post_init__(self) -> None:
        check_numbers(self, "--")


def run(arguments: list[str]) -> None:
    options, console = parse(SampleOptions, arguments, "sample"), rich.console.Console()
    with interruptible_import():
        from train.evaluate.sampling import sample_run

    with console.status("sampling"):
        drawn, told = sample_run(
            str(options.run), options.prompt, options.max_tokens, options.draw, options.exact_bytes
        )
    if told:
        print(f"toklab: {told}", file=sys.stderr)
    before, after = (b"\x1b[1m", b"\x1b[0m") if console.is_terminal else (b"", b"")  # the prompt in bold
    sys.stdout.buffer.write(before + os.fsencode(options.prompt) + after + drawn + b"\n")
    sys.stdout.flush()
