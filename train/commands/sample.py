"""`toklab sample RUN`: draws text from a run."""

import dataclasses
import os
import pathlib
import sys
from typing import Annotated

import rich.console
import tyro
from etils import epath

from tokenizer_lab.errors import UserError, check_numbers
from tokenizer_lab.files import read_bytes
from train.commands.options import parse
from train.evaluate.generation import Draw
from train.exits import interruptible_import

_MAX_PROMPT_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw text from a trained run."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    prompt: str | None = None
    """The text to go on from, '' for the beginning of a document; with subwords, best ended where a word ends (see
    train/evaluate/sampling.py), or use --exact-bytes."""
    prompt_file: pathlib.Path | None = None
    """Take the text from this file, all of its bytes, or from standard input: -. A command line holds 128 KiB."""
    exact_bytes: bool = False
    """Draw byte by byte with exact probabilities, wherever the prompt ends; the other options are then of bytes (see
    docs/byte_probabilities.md)."""
    max_tokens: int = 200
    """Ids to draw at most."""
    draw: Annotated[Draw, tyro.conf.arg(name="")] = Draw(temperature=0.8, top_p=0.95)

    def __post_init__(self) -> None:
        check_numbers(self, "--")
        if (self.prompt is None) == (self.prompt_file is None):
            raise UserError("give the text to go on from as --prompt TEXT or --prompt-file FILE, one of the two")

    def read_prompt(self) -> str:
        """What is no UTF-8 is in it as Python has it of the shell. Raises UserError where there is no such file."""
        if self.prompt is not None:
            return self.prompt
        if self.prompt_file is None or str(self.prompt_file) == "-":
            return os.fsdecode(sys.stdin.buffer.read())
        return os.fsdecode(read_bytes(self.prompt_file, "prompt", _MAX_PROMPT_BYTES))


def run(arguments: list[str]) -> None:
    options, console = parse(SampleOptions, arguments, "sample"), rich.console.Console()
    with interruptible_import():
        from train.evaluate.sampling import sample_run

    prompt = options.read_prompt()
    with console.status("sampling"):
        drawn, told = sample_run(str(options.run), prompt, options.max_tokens, options.draw, options.exact_bytes)
    if told:
        print(f"toklab: {told}", file=sys.stderr)
    before, after = (b"\x1b[1m", b"\x1b[0m") if console.is_terminal else (b"", b"")  # the prompt in bold
    sys.stdout.buffer.write(before + os.fsencode(prompt) + after + drawn + b"\n")
    sys.stdout.flush()
