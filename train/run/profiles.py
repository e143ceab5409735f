"""Traces of a few steps, for xprof: `toklab train ... --profile 100:105`, then `xprof --logdir RUN/profile`."""

import dataclasses
import re
import tempfile
from typing import Any

import jax
import rich.console
from etils import epath

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import copy_folder
from train.console import say


@dataclasses.dataclass(frozen=True)
class StepRange:
    """Steps from `first` up to, but not including, `end`."""

    first: int
    end: int

    @classmethod
    def parse(cls, text: str) -> "StepRange":
        """Of "100:105". Raises UserError."""
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
        if not match or not int(match[1]) < int(match[2]):
            raise UserError(
                f"--profile {text!r} is no range of steps; give the first and the one to stop before, e.g. 100:105 for"
                " five steps"
            )
        return cls(int(match[1]), int(match[2]))

    def check(self, num_steps: int | None) -> None:
        """Raises UserError where the budget ends before."""
        if num_steps is not None and self.end > num_steps:
            raise UserError(
                f"--profile {self.first}:{self.end} goes past the {num_steps} steps of the budget; choose steps up to"
                f" {num_steps}"
            )


class Profiler:
    """Traces the steps of a range into a folder; what is there of them when training ends early too."""

    def __init__(self, steps: StepRange | None, folder: epath.Path, console: rich.console.Console):
        self._steps, self._folder, self._console, self._traced = steps, folder, console, False
        self._tracing: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()
        if self._steps and not self._traced:
            say(
                self._console, f"no trace: this process did not take steps {self._steps.first} to {self._steps.end - 1}"
            )

    def reach(self, step: int, state: Any) -> None:
        """Before a step is launched; waits for the ones before only where the trace begins and ends."""
        if self._steps is None or step not in (self._steps.first, self._steps.end):
            return
        jax.block_until_ready(state)
        self._stop()
        if step == self._steps.first:
            self._tracing = tempfile.TemporaryDirectory()  # the profiler itself knows no object stores
            jax.profiler.start_trace(self._tracing.name)

    def _stop(self) -> None:
        if self._steps is None or self._tracing is None:
            return
        jax.profiler.stop_trace()
        with self._tracing as folder:
            copy_folder(epath.Path(folder), self._folder)
        self._tracing, self._traced = None, True
        say(
            self._console,
            f"{self._folder}: a trace of steps {self._steps.first} to {self._steps.end - 1}; 'xprof --logdir"
            f" {self._folder}' shows it",
        )
