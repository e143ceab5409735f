"""The commands of `toklab`: options from the config dataclasses, one line for every error.

What takes seconds to import (jax) is imported by the commands that need it.

Exit codes: 0 done, 2 the person can mend it (one line on stderr), 75 stopped by a signal, what was trained is saved
(start it again), 76 another host was lost, or something took longer than its deadline (start it again), 130
interrupted.
"""

import contextlib
import dataclasses
import io
import json
import logging
import pathlib
import re
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import rich.console
import rich.progress
import tyro
from etils import epath

from tokenizer_lab.errors import UserError
from train.exits import EXIT_BUG, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR, interruptible_import


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Score every held-out byte of a corpus with a trained run."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    corpus: epath.Path | None = None
    """Corpus store to score; the run's own if none is given."""
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

    def __post_init__(self):
        if self.tasks is not None and (self.exact_bytes or self.ensemble):
            raise UserError("--tasks is one way to evaluate and --exact-bytes another; give one of them")
        if self.noise and (self.exact_bytes or self.tasks is not None):
            raise UserError(
                "--noise goes with the evaluation of all held-out text; leave out --exact-bytes and --tasks, or run"
                " them by themselves"
            )
        if self.ensemble and not self.exact_bytes:
            raise UserError("--ensemble averages next bytes; give --exact-bytes with it")
        if self.corpus is not None and self.tasks is not None:
            raise UserError("--tasks bring their own text; give them or --corpus, not both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Draw text from a trained run."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    prompt: str
    """The text to go on from; with subwords, best ended where a word ends (see train/evaluate/sampling.py), or use
    --exact-bytes."""
    exact_bytes: bool = False
    """Draw byte by byte with exact probabilities, wherever the prompt ends; the other options are then of bytes (see
    docs/byte_probabilities.md)."""
    max_tokens: int = 200
    """Ids to draw at most."""
    temperature: float = 0.8
    """0 takes the likeliest id."""
    top_k: int = 0
    """Only the k likeliest ids; 0 for all."""
    top_p: float = 0.95
    """Only the likeliest ids that together hold this probability."""
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan is made for."""

    topology: str
    """Generation and shape of a slice of TPUs, e.g. v5p:8x8x16."""
    slices: int = 1
    """Slices of that shape, joined by the data center's network."""
    vocab_size: int | None = None
    """Ids of the representation, if it has no artifact yet."""
    bytes_per_id: float | None = None
    """Mean source bytes of an id, if it has no artifact yet."""
    search: bool = False
    """Try rows at a time x remat x mesh and rank what fits; the global batch stays."""
    compare_representations: bool = False
    """Compile the step for each kind of representation too, over rows of as much text."""
    json: pathlib.Path | None = None
    """Also write the results to this file."""
    hlo: pathlib.Path | None = None
    """Also write the compiled program's text to this file."""


def run(arguments: Sequence[str]) -> int:
    """Runs `toklab` with the arguments behind its name; returns the exit code."""
    silence_libraries()
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(usage())
            return 0
        if arguments[0] not in COMMANDS:
            with interruptible_import():
                from train.recipe import nearest

            raise UserError(
                f"no command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}; there are {', '.join(COMMANDS)}"
            )
        return COMMANDS[arguments[0]](list(arguments[1:])) or 0
    except UserError as error:
        print(f"toklab: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("toklab: interrupted; what was committed before is whole", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_INTERRUPTED
    except Exception:  # ours: everything that can be seen of it
        traceback.print_exc()
        return EXIT_BUG


def usage() -> str:
    lines = ["usage: toklab COMMAND ...", ""]
    lines += [f"  {name:8} {command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "toklab COMMAND --help shows a command's options."])


def parse(options: Any, arguments: Sequence[str], command: str, **keywords: Any) -> Any:
    """`tyro.cli` whose complaint, a box of several lines, becomes one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=arguments, prog=f"toklab {command}", **keywords)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        lines = [line.strip(" │╭╮╰╯─") for line in complaint.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line and not re.fullmatch(r"[-─]+", line))
        raise UserError(text.replace("Perhaps you meant:", "did you mean")) from None


def ingest(arguments: list[str]) -> None:
    """text, jsonl or parquet -> a corpus store"""
    with interruptible_import():
        from data.ingest import IngestOptions, ingest as run_ingest

    run_on_engine("ingest", IngestOptions, run_ingest, arguments)


def encode(arguments: list[str]) -> None:
    """write down the ids of a corpus's documents, for runs that would encode them again and again"""
    with interruptible_import():
        from data.encode_corpus import EncodeOptions, encode_corpus

    run_on_engine("encode", EncodeOptions, encode_corpus, arguments)


def run_on_engine(command: str, options_class: type, work: Callable[..., Any], arguments: list[str]) -> None:
    """Does the work of a command on the engine that its options name, and prints what comes out."""
    from data.engines import EngineOptions

    flat = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass(
        command.capitalize(),
        [("options", Annotated[options_class, flat]), ("engine", Annotated[EngineOptions, flat])],
        kw_only=True,
        frozen=True,
    )
    both.__doc__ = options_class.__doc__
    parsed, console = parse(both, arguments, command), rich.console.Console()
    with parsed.engine.open() as engine, progress_bar(console, command, of_bytes=True) as update:
        result = work(parsed.options, update, engine)
    console.print(str(result), soft_wrap=True)


def fit(arguments: list[str]) -> int:
    """learn a representation's artifact from a corpus"""
    with interruptible_import():
        from data.store import Corpus
        from tokenizer_lab.representation import KINDS, fit_options
        from train.recipe import nearest

    if not arguments or arguments[0] not in KINDS:
        given = arguments[0] if arguments else ""
        if given in ("-h", "--help"):
            print(f"usage: toklab fit KIND --corpus CORPUS --out ARTIFACT ...; the kinds are {', '.join(KINDS)}")
            return 0
        raise UserError(
            f"no representation {given!r}{nearest(given, KINDS)}; toklab fit takes one of {', '.join(KINDS)}"
        )
    kind, *arguments = arguments
    command = dataclasses.make_dataclass(
        "Fit",
        [
            ("corpus", epath.Path),
            ("out", epath.Path),
            ("options", Annotated[fit_options(kind), tyro.conf.arg(name="")]),
        ],
        kw_only=True,
        frozen=True,
    )
    command.__doc__ = f"Fit a {kind} representation on a corpus's train split."
    options, console = parse(command, arguments, f"fit {kind}"), rich.console.Console()
    corpus = Corpus.open(options.corpus)
    documents = corpus.documents("train")
    if not hasattr(options.options, "lm"):
        with progress_bar(console, f"fit {kind}", of_bytes=True) as update:
            representation = options.options.fit(counted(documents, documents.num_bytes, update), corpus.content_hash)
    else:
        if (byte_lm := byte_language_model(options, console)) is None:
            return EXIT_STOPPED
        with progress_bar(console, f"fit {kind}", of_bytes=False) as update:
            representation = options.options.fit(counted(documents), corpus.content_hash, *byte_lm, update)
    representation.save(options.out)
    measured = "".join(f", {name} {value:.4g}" for name, value in representation.statistics.items())
    console.print(
        f"{options.out}: {kind}, {representation.vocab_size:,} ids{measured}, fingerprint"
        f" {representation.fingerprint[:12]}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def byte_language_model(options: Any, console: rich.console.Console) -> Any:
    """The compressor of `toklab fit`'s options and the FLOPs it took, trained first if need be; None where a signal
    stopped that."""
    with interruptible_import():
        from train.export.compressor import load_byte_lm, train_byte_lm

    run_dir = options.options.lm
    if run_dir is None:
        run_dir = options.out.with_name(f"{options.out.name}-lm")
        console.print(f"training the byte language model into {run_dir}", soft_wrap=True)
        if not train_byte_lm(options.options.lm_recipe, options.corpus, run_dir, console):
            print(
                "toklab: stopped by a signal; the state is saved, the same command goes on from there", file=sys.stderr
            )
            return None
    return load_byte_lm(run_dir)


def train(arguments: list[str]) -> int:
    """train a recipe; goes on by itself where the run folder has a checkpoint"""
    with interruptible_import():
        from train.evaluate.bits_per_byte import make_judge
        from train.hosts import processes
        from train.hosts.watchdog import Watchdog
        from train.loop import train as run_training
        from train.recipe import to_json
        from train.run.profiles import StepRange
        from train.summary import STOPPED

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
            print(
                "toklab: stopped by a signal; the state is saved, the same command goes on from there", file=sys.stderr
            )
        return EXIT_STOPPED
    return 0


def parse_with_recipe(command: str, fields: Sequence[Any], usage: str, arguments: list[str]) -> Any:
    """Options of a command on a recipe, whose every field is one too; None where only help was asked for.

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


def plan(arguments: list[str]) -> int:
    """what a recipe's training step takes on TPUs: memory, FLOPs, collectives, time"""
    with interruptible_import():
        from train.plan.plan import make_plan
        from train.plan.pod import Pod
        from train.plan.representations import compare_by_arithmetic, compared, find_ids
        from train.plan.search import search
        from train.plan.tables import arithmetic_table, compared_table, plan_lines, search_table

    field = ("options", Annotated[PlanOptions, tyro.conf.arg(name="")])
    parsed = parse_with_recipe("plan", [field], "--topology NAME [--slices N]", arguments)
    if parsed is None:
        return 0
    recipe, options, console = parsed.recipe, parsed.options, rich.console.Console()
    pod, ids = Pod(options.topology, options.slices), find_ids(recipe, options.vocab_size, options.bytes_per_id)
    result: dict[str, Any] = {"representations": compare_by_arithmetic(recipe, ids)}
    if options.search:
        with progress_bar(console, "search", of_bytes=False) as update:
            found = search(recipe, pod, ids, update)
        result["search"] = dataclasses.asdict(found)
        console.print(search_table(found))
    else:
        with console.status(f"compiling the training step for {pod}"):
            result["plan"] = make_plan(recipe, pod, ids, str(options.hlo) if options.hlo else None)
        for line in plan_lines(result["plan"]):
            console.print(line, soft_wrap=True, highlight=False)
    console.print(arithmetic_table(result["representations"]))
    if options.compare_representations:
        result["compared"], pairs = [], list(compared(recipe, ids))
        with progress_bar(console, "representations", of_bytes=False) as update:
            for number, (other, other_ids) in enumerate(pairs):
                update(number, len(pairs))
                result["compared"].append(make_plan(other, pod, other_ids))
            update(len(pairs), len(pairs))
        console.print(compared_table(result["compared"]))
    if options.json:
        write_results(options.json, result)
    return 0


def submit(arguments: list[str]) -> int:
    """train a recipe on other machines, or in several processes here, restarted as needed"""
    with interruptible_import():
        from train.recipe import load_recipe
        from train.submit import TARGETS, target_class
        from train.submit.job import make_job

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


def compare(arguments: list[str]) -> int:
    """an experiment: plans its runs, does what is missing, ends in one report"""
    with interruptible_import():
        import jax

        jax.config.update(
            "jax_platforms", "cpu"
        )  # the runs are processes of their own, which shall find the accelerators free
        from train.compare.comparison import CompareOptions, compare as run_comparison
        from train.submit import target_class

    kind, arguments = take_option("--submit", arguments)
    target = Annotated[target_class(kind or "local", "--submit"), tyro.conf.arg(name="")]
    command = dataclasses.make_dataclass(
        "Compare",
        [("options", Annotated[CompareOptions, tyro.conf.arg(name="")]), ("target", target)],
        kw_only=True,
        frozen=True,
    )
    command.__doc__ = (
        f"{CompareOptions.__doc__}\n\nRuns go to --submit KIND, a place of `toklab submit`, whose options are options"
        " here; by default to processes on this machine."
    )
    parsed = parse(command, arguments, "compare")
    return run_comparison(parsed.options, parsed.target, rich.console.Console())


def take_option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of an option that decides which others there are, and the arguments without it."""
    for number, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}="), [*arguments[:number], *arguments[number + 1 :]]
        if word == name:
            if number + 1 == len(arguments):
                raise UserError(f"{name} is given without a value")
            return arguments[number + 1], [*arguments[:number], *arguments[number + 2 :]]
    return None, arguments


def write_results(path: pathlib.Path, result: dict[str, Any]) -> None:
    """A command's results as JSON. Raises UserError where they cannot be written."""
    try:
        path.write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another file") from error


def evaluate(arguments: list[str]) -> None:
    """bits per byte of a run over all held-out text"""
    options, console = parse(EvalOptions, arguments, "eval"), rich.console.Console()
    if options.exact_bytes:
        return evaluate_exact_bytes(options, console)
    if options.tasks is not None:
        return evaluate_tasks(options, console)
    with interruptible_import():
        from train.evaluate.bits_per_byte import evaluate_run
        from train.run.logs import shown_figure

    with progress_bar(console, "eval", of_bytes=True) as update:
        result = evaluate_run(str(options.run), str(options.corpus) if options.corpus else None, update)
    lines = []
    if "encoder" in result:
        figures = "  ".join(shown_figure(name, value, 4) for name, value in result["encoder"].items())
        lines.append(f"{figures}  {result['num_documents']:,} documents, {result['num_bytes']:,} bytes")
    for domain, numbers in [*result["by_domain"].items(), *([] if "encoder" in result else [("all", result)])]:
        low, high = numbers["interval_95"]
        lines.append(
            f"{domain:12} {numbers['bits_per_byte']:.4f} bits/byte  95 % [{low:.4f}, {high:.4f}]  "
            f"{numbers['num_documents']:,} documents, {numbers['num_bytes']:,} bytes"
        )
    if seen := result["num_documents_in_training"]:
        lines.append(
            f"{seen:,} of the {result['num_documents']:,} held-out documents are also among those trained on, byte for"
            " byte"
        )
    if options.noise:
        lines += evaluate_noise(options, console)
    for line in lines:
        console.print(f"{options.run}  {line}", soft_wrap=True, highlight=False)


def evaluate_noise(options: EvalOptions, console: rich.console.Console) -> list[str]:
    """A line for each rate of noise."""
    from train.evaluate.noise import evaluate_noise as score_noise

    with progress_bar(console, "noise", of_bytes=False) as update:
        result = score_noise(str(options.run), str(options.corpus) if options.corpus else None, update)
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
        console.print(
            f"{run['run']}  {run['bits_per_byte']:.4f} bits/byte by exact bytes  {run['bits_per_byte_of_ids']:.4f} by"
            f" ids  {size}",
            soft_wrap=True,
            highlight=False,
        )
    if options.ensemble:
        console.print(
            f"ensemble of {len(result['runs'])}  {result['ensemble_bits_per_byte']:.4f} bits/byte by exact bytes "
            f" {size}",
            soft_wrap=True,
            highlight=False,
        )


def evaluate_tasks(options: EvalOptions, console: rich.console.Console) -> None:
    """The harness's results, a line each."""
    with interruptible_import():
        from train.evaluate.harness import evaluate_tasks as run_tasks

    with progress_bar(console, "eval", of_bytes=False) as update:
        result = run_tasks(str(options.run), options.tasks, update)
    for task, values in result["results"].items():
        for metric, value in values.items():
            console.print(f"{options.run}  {task:24} {metric:32} {value:.4f}", soft_wrap=True, highlight=False)


def sample(arguments: list[str]) -> None:
    """text from a run"""
    options, console = parse(SampleOptions, arguments, "sample"), rich.console.Console()
    with interruptible_import():
        from train.evaluate.sampling import sample_run

    with console.status("sampling"):
        text = sample_run(
            str(options.run),
            options.prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            exact_bytes=options.exact_bytes,
        )
    console.print(options.prompt, style="bold", end="", markup=False, highlight=False, soft_wrap=True)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def finetune(arguments: list[str]) -> None:
    """a run with a new head, on a task of labelled sentences or pairs"""
    with interruptible_import():
        from train.evaluate.finetune import FinetuneOptions, finetune as run_finetuning

    options, console = parse(FinetuneOptions, arguments, "finetune"), rich.console.Console()
    with progress_bar(console, "finetune", of_bytes=False) as update:
        result = run_finetuning(options, update)
    for metric, values in result["metrics"].items():
        console.print(
            f"{options.run}  {result['task']:12} {metric:10} median {values['median']:.4f}  [{values['low']:.4f},"
            f" {values['high']:.4f}]  {len(values['values'])} seeds, {result['num_dev']:,} examples",
            soft_wrap=True,
            highlight=False,
        )


def blimp(arguments: list[str]) -> None:
    """how often a run prefers the better sentence of a minimal pair"""
    with interruptible_import():
        from train.evaluate.minimal_pairs import MinimalPairsOptions, score_minimal_pairs

    options, console = parse(MinimalPairsOptions, arguments, "blimp"), rich.console.Console()
    with progress_bar(console, "blimp", of_bytes=False) as update:
        result = score_minimal_pairs(options, update)
    for paradigm, share in result["by_paradigm"].items():
        console.print(f"{options.run}  {paradigm:56} {share:.3f}", soft_wrap=True, highlight=False)
    console.print(
        f"{options.run}  {'all':56} {result['accuracy']:.3f}  {result['num_pairs']:,} pairs, by {result['score']}",
        soft_wrap=True,
        highlight=False,
    )


def export(arguments: list[str]) -> None:
    """a run as a folder that Hugging Face transformers loads"""
    with interruptible_import():
        from train.export.hugging_face import ExportOptions, export_run

    options, console = parse(ExportOptions, arguments, "export"), rich.console.Console()
    with console.status("exporting"):
        result = export_run(options)
    for folder, architecture in result.architectures.items():
        console.print(f"{options.out / folder}  {architecture}", soft_wrap=True, highlight=False)
    if result.checked is not None:
        same, total = result.checked
        console.print(
            f"{options.out}  the tokenizer gives the same ids for {same:,} of {total:,} documents of the corpus"
            + ("" if same == total else "; in the others it changes text, which is spelled in bytes here"),
            soft_wrap=True,
            highlight=False,
        )
    if result.needs_code:
        console.print(
            f"{options.out}  its tokenizer is a Python file in the folder: AutoTokenizer.from_pretrained(...,"
            " trust_remote_code=True)",
            soft_wrap=True,
            highlight=False,
        )


def report(arguments: list[str]) -> None:
    """many runs -> one page, CSV and JSON"""
    with interruptible_import():
        from train.report.report import ReportOptions, console_table, write_report

    options, console = parse(ReportOptions, arguments, "report"), rich.console.Console()
    result = write_report(options.runs, options.out)
    console.print(console_table(result))
    console.print(f"{options.out / 'index.html'}", soft_wrap=True)


def inspect(arguments: list[str]) -> None:
    """what representations do to a text: metrics, and the text cut into tokens"""
    with interruptible_import():
        from train.inspect.inspection import InspectOptions, console_table, inspect as run_inspection

    options, console = parse(InspectOptions, arguments, "inspect"), rich.console.Console()
    with progress_bar(console, "inspect", of_bytes=True) as update:
        inspection = run_inspection(options, update)
    console.print(inspection.about, soft_wrap=True, highlight=False, markup=False)
    console.print(console_table(inspection))
    console.print(f"{options.out / 'index.html'}", soft_wrap=True)


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "ingest": ingest,
    "fit": fit,
    "encode": encode,
    "train": train,
    "plan": plan,
    "submit": submit,
    "eval": evaluate,
    "sample": sample,
    "finetune": finetune,
    "blimp": blimp,
    "report": report,
    "compare": compare,
    "inspect": inspect,
    "export": export,
}


@contextlib.contextmanager
def progress_bar(console: rich.console.Console, what: str, *, of_bytes: bool):
    """A bar that is drawn on a terminal; yields `update(done, total)`."""
    columns = [
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
    ]
    columns += [rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()] if of_bytes else []
    with rich.progress.Progress(
        *columns, rich.progress.TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def counted(documents: Any, total_bytes: int = 0, update: Callable[[int, int], None] = lambda done, total: None) -> Any:
    """The documents one by one, telling `update` how many bytes have gone by."""
    done = 0
    for number in range(len(documents)):
        document = documents[number]
        yield document
        done += len(document)
        update(done, total_bytes)


def show_config(config: dict[str, Any], console: rich.console.Console) -> None:
    """The resolved config, a line a section."""
    for name, value in config.items():
        if isinstance(value, dict):
            value = "  ".join(f"{field}={'' if part is None else part}" for field, part in value.items())
        console.print(f"[bold]{name:14}[/bold] ", end="", highlight=False)
        console.print(value, markup=False, highlight=False, soft_wrap=True)


def silence_libraries() -> None:
    """What goes wrong reaches a person as our one line; the tracebacks that libraries log or print from their threads
    do not."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda _: None
    sys.excepthook = lambda *_: None  # native code prints through it; what reaches `run` is shown there
