"""`toklab eval RUN`: bits per byte of a run over all held-out text, and the other ways to evaluate."""

import dataclasses
import pathlib
from typing import Literal

import rich.console
import tyro
from etils import epath

from tokenizer_lab.errors import UserError, check_numbers
from train.commands.options import parse
from train.commands.terminal import progress_bar
from train.console import say
from train.exits import interruptible_import


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Score every held-out byte of a corpus with a trained run."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    corpus: epath.Path | None = None
    """Corpus store to score; the run's own if none is given."""
    batch_rows: int | None = None
    """Rows scored at a time; changes nothing but the memory it takes. By default those of the recipe's evaluations."""
    whole_corpus: bool = False
    """With --corpus: score all of its test documents, as of a published test set. By default those are left out that
    the run's own corpora do not hold out, of which it may have seen copies."""
    split: Literal["valid", "test"] = "test"
    """Which published split to score. What is tuned on is valid; what is reported is test."""
    stride: int | None = None
    """Score by a window as long as the run's rows that moves on by so many positions, so that every byte sees at least
    the rest of a row before it; a figure of its own, in RUN/eval_stride.json. By default pieces of that length do not
    see each other."""
    exact_bytes: bool = False
    """Score only some of the text, byte by byte with exact probabilities (see docs/byte_probabilities.md)."""
    max_bytes: int = 4096
    """With --exact-bytes: how much text; each byte costs about a forward pass over its context."""
    ensemble: tuple[epath.Path, ...] = ()
    """With --exact-bytes: other runs to score the same text with, and all of them as one by averaging the next byte's
    probabilities."""
    noise: bool = False
    """Then also score some text and pairs of lines with wrong characters in them (see docs/comparison.md)."""
    tasks: pathlib.Path | None = None
    """Run these tasks of EleutherAI's lm-evaluation-harness instead: a task's .yaml file, or a folder of them (see
    docs/export.md)."""

    def __post_init__(self) -> None:
        check_numbers(self, "--")
        if self.tasks is not None and (self.exact_bytes or self.ensemble):
            raise UserError("--tasks is one way to evaluate and --exact-bytes another; give one of them")
        if self.noise and (self.exact_bytes or self.tasks is not None):
            raise UserError(
                "--noise goes with the evaluation of all held-out text; leave out --exact-bytes and --tasks, or run"
                " them by themselves"
            )
        if self.ensemble and not self.exact_bytes:
            raise UserError("--ensemble averages next bytes; give --exact-bytes with it")
        if self.whole_corpus and (self.corpus is None or self.noise or self.exact_bytes):
            raise UserError("--whole-corpus goes with --corpus alone; leave out --noise and --exact-bytes")
        if self.split != "test" and (self.noise or self.exact_bytes or self.tasks):
            raise UserError("--split valid goes with --corpus alone; leave out --noise, --exact-bytes and --tasks")
        if self.stride and (self.noise or self.exact_bytes or self.tasks is not None):
            raise UserError("--stride is one way to evaluate; leave out --noise, --exact-bytes and --tasks")
        if self.corpus is not None and self.tasks is not None:
            raise UserError("--tasks bring their own text; give them or --corpus, not both")


def run(arguments: list[str]) -> None:
    options, console = parse(EvalOptions, arguments, "eval"), rich.console.Console()
    if options.exact_bytes:
        return evaluate_exact_bytes(options, console)
    if options.tasks is not None:
        return evaluate_tasks(options, options.tasks, console)
    with interruptible_import():
        from train.evaluate.bits_per_byte import evaluate_run
        from train.run.logs import shown_figure

    with progress_bar(console, "eval", of_bytes=True) as update:
        corpus = str(options.corpus) if options.corpus else None
        result = evaluate_run(
            str(options.run),
            corpus,
            update,
            options.batch_rows,
            options.whole_corpus,
            options.split,
            options.stride or 0,
        )
    lines, by_window = [], f" by a window with stride {options.stride}" if options.stride else ""
    if "encoder" in result:
        figures = "  ".join(shown_figure(name, value, 4) for name, value in result["encoder"].items())
        lines.append(f"{figures}  {result['num_documents']:,} documents, {result['num_bytes']:,} bytes")
    for domain, numbers in [*result["by_domain"].items(), *([] if "encoder" in result else [("all", result)])]:
        low, high = numbers["interval_95"]
        lines.append(
            f"{domain:12} {numbers['bits_per_byte']:.4f} bits/byte{by_window}  95 % [{low:.4f}, {high:.4f}]  "
            f"{numbers['num_documents']:,} documents, {numbers['num_bytes']:,} bytes"
        )
    if (seen := result["num_documents_in_training"]) is None:
        lines.append(
            "not looked at: whether held-out documents are also among those trained on, as that text is not there any"
            " more, in an object store, or too large"
        )
    elif seen:
        lines.append(
            f"{seen:,} of the {result['num_documents']:,} held-out documents are also among those trained on, byte for"
            " byte"
        )
    if left_out := result["num_documents_left_out"]:
        lines.append(
            f"{left_out:,} test documents are left out: the run does not hold them out and may have seen copies;"
            " --whole-corpus scores them too"
        )
    if options.noise:
        lines += evaluate_noise(options, console)
    for line in lines:
        say(console, f"{options.run}  {line}")


def evaluate_noise(options: EvalOptions, console: rich.console.Console) -> list[str]:
    """Evaluates text with wrong characters. Returns a line for each rate of noise."""
    from train.evaluate.noise import evaluate_noise as score_noise

    with progress_bar(console, "noise", of_bytes=False) as update:
        result = score_noise(
            str(options.run), str(options.corpus) if options.corpus else None, update, options.batch_rows
        )
    lines = []
    for level in result["levels"]:
        bits = "" if level["bits_per_byte"] is None else f"{level['bits_per_byte']:.4f} bits/byte  "
        told = (
            ""
            if level["accuracy"] is None
            else f"{100 * level['accuracy']:.1f} % of {result['num_pairs']:,} pairs told apart"
        )
        lines.append(f"noise {100 * level['rate']:3.0f} %  {bits}{told}")
    return lines


def evaluate_exact_bytes(options: EvalOptions, console: rich.console.Console) -> None:
    with interruptible_import():
        from train.evaluate.byte_probabilities import evaluate_bytes

    with progress_bar(console, "eval", of_bytes=True) as update:
        result = evaluate_bytes(
            [str(run) for run in (options.run, *options.ensemble)],
            str(options.corpus) if options.corpus else None,
            options.max_bytes,
            update,
        )
    size = f"{result['num_documents']:,} documents, {result['num_bytes']:,} bytes"
    for run in result["runs"]:
        say(
            console,
            f"{run['run']}  {run['bits_per_byte']:.4f} bits/byte by exact bytes  {run['bits_per_byte_of_ids']:.4f} by"
            f" ids  {size}",
        )
    if options.ensemble:
        say(
            console,
            f"ensemble of {len(result['runs'])}  {result['ensemble_bits_per_byte']:.4f} bits/byte by exact bytes "
            f" {size}",
        )


def evaluate_tasks(options: EvalOptions, tasks: pathlib.Path, console: rich.console.Console) -> None:
    """Runs the tasks and prints each result on a line."""
    with interruptible_import():
        from train.evaluate.harness import evaluate_tasks as run_tasks

    with progress_bar(console, "eval", of_bytes=False) as update:
        result = run_tasks(str(options.run), tasks, update, options.batch_rows)
    for task, values in result["results"].items():
        for metric, value in values.items():
            say(console, f"{options.run}  {task:24} {metric:32} {value:.4f}")
    if result["num_cut"]:
        say(
            console,
            f"{options.run}  {result['num_cut']:,} of {result['num_requests']:,} requests have more ids than the"
            f" {result['trained_length']:,} that the run was trained on at a time, and were cut from the left",
        )
