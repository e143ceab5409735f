"""What a run says while it goes: a progress bar or plain lines, metrics.jsonl, TensorBoard, Weights & Biases."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import rich.console
import rich.progress
from etils import epath

from tokenizer_lab.errors import check_numbers
from tokenizer_lab.files import cannot_write, is_remote, write_bytes
from train.console import say
from train.hosts.hardware import model_flops_utilization
from train.run.folder import RunFolder
from train.run.trackers import HELD_OUT, Tracker, tensorboard, weights_and_biases

Figures = Callable[[dict[str, float], int], dict[str, float | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is written down while training."""

    every_steps: int = 10
    tensorboard: bool = True
    wandb_project: str | None = None
    """Also log to this Weights & Biases project (pip install 'tokenizer-lab[wandb]')."""

    def __post_init__(self) -> None:
        check_numbers(self, "logging.")


class Stopwatch:
    """Seconds of wall time by what they were spent on, by a clock that nobody can set."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @property
    def total_seconds(self) -> float:
        """Since it was made, whatever on."""
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class NoLog:
    """What the processes beside the first one log."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def paused(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def step(self, numbers: dict[str, Any], data_seconds: float) -> None:
        pass

    def write_pending(self) -> None:
        pass

    def evaluation(self, line: dict[str, Any]) -> None:
        pass


class _LineFile:
    """A file that grows by a line at a time. An object cannot grow: in an object store it is written anew, with all
    lines so far."""

    def __init__(self, path: epath.Path):
        self._path, self._file, self._lines = path, None, ""
        if not is_remote(path):
            self._file = open(path, "a")
        elif path.exists():
            self._lines = path.read_text()

    def write(self, line: str) -> None:
        """Raises UserError if it cannot."""
        if self._file is None:
            self._lines += line
            write_bytes(self._path, self._lines.encode())
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written has been told of by `write`
                self._file.close()


class RunLog:
    """Adds steps up between log lines and writes the lines everywhere.

    Args:
      run: the run's folder.
      options: how often, and where else.
      config: the resolved recipe as JSON, for Weights & Biases.
      figures: of the objective, (sums over steps, source bytes) -> what they stand for.
      console: where lines and bar go.
      first_step: where this process goes on from.
    """

    def __init__(
        self,
        run: RunFolder,
        options: LoggingConfig,
        config: dict[str, Any],
        figures: Figures,
        console: rich.console.Console,
        first_step: int,
    ):
        self._every, self._console, self._name, self._figures = options.every_steps, console, config["name"], figures
        self._run, self._options, self._config, self._first_step = run, options, config, first_step
        self._files: dict[str, _LineFile] = {}
        self._trackers: list[Tracker] = []
        self._opened = contextlib.ExitStack()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[figures]}", markup=False),
            rich.progress.TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self._task = self._bar.add_task(f"train {self._name}", total=1.0, figures="")
        self._pending: list[dict[str, Any]] = []
        self._since = time.perf_counter()
        self._data_seconds = self._logged_data_seconds = 0.0

    def __enter__(self) -> "RunLog":
        with contextlib.ExitStack() as stack:  # whatever fails, what was opened before is closed
            self._open(stack)
            self._opened = stack.pop_all()
        return self

    def _open(self, stack: contextlib.ExitStack) -> None:
        run = self._run
        try:
            for name, path in (("metrics", run.metrics), ("evaluations", run.evaluations)):
                self._files[name] = stack.enter_context(contextlib.closing(_LineFile(path)))
            if self._options.tensorboard:
                self._trackers.append(stack.enter_context(tensorboard(run, self._first_step)))
        except OSError as error:
            raise cannot_write(run.path, error) from error
        if project := self._options.wandb_project:
            self._trackers.append(stack.enter_context(weights_and_biases(run, project, self._config)))
        if self._console.is_terminal:
            stack.enter_context(self._bar)

    def __exit__(self, *raised: Any) -> None:
        self._opened.__exit__(*raised)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what is done inside (an evaluation) out of the rates."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def step(self, numbers: dict[str, Any], data_seconds: float) -> None:
        """One step's numbers on the host: those of `train/step.py` and the totals so far.

        Args:
          numbers: the step's.
          data_seconds: time spent waiting for data since the run's loop began.
        """
        self._pending.append(numbers)
        self._data_seconds = data_seconds
        self._bar.update(self._task, completed=numbers["share"])
        if len(self._pending) >= self._every:
            self.write_pending()

    def write_pending(self) -> None:
        """Writes one line for the steps since the last one."""
        if not self._pending:
            return
        steps, seconds = self._pending, max(1e-9, time.perf_counter() - self._since)
        last, num_bytes = steps[-1], sum(step["num_bytes"] for step in steps)
        figures = self._figures({name: sum(step["sums"][name] for step in steps) for name in last["sums"]}, num_bytes)
        flops_per_second = last["model_flops"] * len(steps) / seconds
        line = {
            **{
                name: last[name]
                for name in (
                    "step",
                    "bytes_seen",
                    "tokens_seen",
                    "flops",
                    "learning_rate",
                    "grad_norm",
                    "skipped_steps",
                )
            },
            "loss": sum(step["loss"] for step in steps) / len(steps),
            **figures,
            "bytes_per_second": num_bytes / seconds,
            "tokens_per_second": sum(step["tokens"] for step in steps) / seconds,
            "step_seconds": seconds / len(steps),
            "data_wait_seconds": (self._data_seconds - self._logged_data_seconds) / len(steps),
            "mfu": model_flops_utilization(flops_per_second, jax.devices()),
        }
        line = {name: value if value is None or math.isfinite(value) else None for name, value in line.items()}
        self._write("metrics", line)
        first = next(iter(figures))
        shown = f"step {line['step']}  {shown_figure(first, line[first], 3)}  {line['bytes_per_second'] / 1e3:.1f} kB/s"
        self._bar.update(self._task, figures=shown)
        if not self._console.is_terminal:
            say(
                self._console,
                f"{self._name}  {last['share']:6.1%}  {shown}  loss {_figure(line['loss'], '.4f')}  "
                f"lr {line['learning_rate']:.2e}  {line['step_seconds']:.3f} s/step",
            )
        self._pending, self._since, self._logged_data_seconds = [], time.perf_counter(), self._data_seconds

    def evaluation(self, line: dict[str, Any]) -> None:
        """One evaluation while training, as it goes into eval.jsonl."""
        self._write("evaluations", line, prefix=HELD_OUT)
        figures = [
            shown_figure(name, value, 4)
            for name, value in line.items()
            if name not in ("step", "bytes_seen", "flops", "num_bytes")
        ]
        say(
            self._console,
            f"{self._name}  step {line['step']}  held-out {'  '.join(figures)} over {line['num_bytes']:,} bytes",
        )

    def _write(self, name: str, line: dict[str, Any], prefix: str = "") -> None:
        self._files[name].write(json.dumps(line) + "\n")
        numbers = {prefix + key: value for key, value in line.items() if key != "step" and value is not None}
        for track in self._trackers:
            track(line["step"], numbers)


def shown_figure(name: str, value: float | None, digits: int) -> str:
    """A figure of an objective, with its name or unit."""
    return (
        f"{_figure(value, f'.{digits}f')} bits/byte"
        if name == "bits_per_byte"
        else f"{name.replace('_', ' ')} {_figure(value, f'.{digits}f')}"
    )


def _figure(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
