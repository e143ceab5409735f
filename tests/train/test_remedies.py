"""Remedies that errors print: what they name exists, and where they are followed, the thing works."""

import ast
import dataclasses
import functools
import pathlib
import re
import shlex
import tomllib
import types
import typing

import numpy as np
import pytest
import rich.console

from data.encode_corpus import EncodeOptions
from data.engines import EngineOptions
from data.ingest import IngestOptions, ingest
from tokenizer_lab.equal_info import window_code
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import KINDS, fit_options
from train import loop, step
from train.commands.command_line import COMMANDS
from train.commands.eval import EvalOptions
from train.commands.options import parse, parse_with_recipe
from train.commands.plan import PlanOptions
from train.commands.sample import SampleOptions
from train.compare.comparison import CompareOptions
from train.evaluate.bits_per_byte import make_judge
from train.evaluate.finetune import FinetuneOptions
from train.evaluate.minimal_pairs import MinimalPairsOptions
from train.export.hugging_face import ExportOptions
from train.inspect.options import InspectOptions
from train.loop import train
from train.optimizer import Budget
from train.recipe import Recipe, amended, refused_changes, to_json
from train.report.report import ReportOptions
from train.resume import amend
from train.run.folder import RunFolder, read_lines
from train.setup import lay_out, set_up
from train.sharding import check_batch, make_mesh
from train.submit import TARGETS, target_class
from train.summary import FINISHED

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = [file for room in ("data", "models", "tokenizer_lab", "train") for file in sorted((ROOT / room).rglob("*.py"))]
COMMAND_OPTIONS = (
    EncodeOptions,
    EngineOptions,
    EvalOptions,
    ExportOptions,
    FinetuneOptions,
    IngestOptions,
    InspectOptions,
    MinimalPairsOptions,
    PlanOptions,
    ReportOptions,
    SampleOptions,
    CompareOptions,
)
BESIDE = {"--run-dir", "--profile", "--to", "--submit", "--corpus", "--out", "--help", "--job-name", "--dry-run"}
OF_OTHER_PROGRAMS = {"--recursive"}  # of gcloud storage cp


# ---- What messages name --------------------------------------------------------------------------


def text_of(node: ast.expr) -> str:
    """A message as far as the source says it: what is filled in is {}."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(parts):
            return "".join(map(text_of, parts))
        case ast.BinOp(left, ast.Add(), right):
            return text_of(left) + text_of(right)
        case ast.FormattedValue(ast.IfExp(_, one, other)) | ast.IfExp(_, one, other):
            return f"{text_of(one)} {text_of(other)}"
    return "{}"


@functools.cache
def messages() -> list[tuple[str, str]]:
    """(where, message) of every UserError that the code raises, and of what helps against little memory."""
    found = []
    for file in CODE:
        tree = ast.parse(file.read_text())
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        raised = [call for call in calls if getattr(call.func, "id", "") == "UserError" and call.args]
        found += [(f"{file.relative_to(ROOT)}:{call.lineno}", text_of(call.args[0])) for call in raised]
        for function in ast.walk(tree):  # parts of a message that are put together before
            if isinstance(function, ast.FunctionDef) and any(call in raised for call in ast.walk(function)):
                put = (node.value for node in ast.walk(function) if isinstance(node, ast.Assign))
                found += [(f"{file.relative_to(ROOT)}:{value.lineno}", text_of(value)) for value in put]
        if file.name == "out_of_memory.py":
            texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
            found += [(f"{file.relative_to(ROOT)}:{node.lineno}", node.value) for node in texts]
    return found


def parts_of(hint: object) -> list[type]:
    """The config classes in a type, e.g. of a union."""
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [part for argument in typing.get_args(hint) for part in parts_of(argument)]


def fields_of(kind: type, prefix: str = "") -> set[str]:
    """Dotted names of the fields of a config and of its parts."""
    names = set()
    for name, hint in typing.get_type_hints(kind).items():
        if name in kind.__dataclass_fields__:
            names |= {prefix + name, *(x for part in parts_of(hint) for x in fields_of(part, f"{prefix}{name}."))}
    return names


@functools.cache
def options() -> set[str]:
    """Every option that a command takes."""
    kinds = [*COMMAND_OPTIONS, *map(fit_options, KINDS), *map(target_class, TARGETS), Recipe]
    names = {name for kind in kinds for name in fields_of(kind)}
    dashed = {name.replace("_", "-") for name in names}
    negated = {".".join([*name.split(".")[:-1], f"no-{name.split('.')[-1]}"]) for name in dashed}
    return {f"--{name}" for name in dashed | negated} | BESIDE


def named(pattern: str) -> list[tuple[str, str]]:
    """(where, what) of all that the messages name by a pattern, but for what is filled in."""
    return [(where, what) for where, message in messages() for what in re.findall(pattern, message)]


def test_messages_are_found():
    assert len(messages()) > 250 and len(named(r"--[a-z]")) > 60
    assert any("{}" in message for _, message in messages())


def test_every_option_that_a_message_names_exists():
    found = named(r"(?<![\w-])(--[a-z][a-z0-9.-]*[a-z0-9])(?![\w{.-]*\{)")
    assert [(where, option) for where, option in found if option not in options() | OF_OTHER_PROGRAMS] == []


def test_every_field_that_a_message_names_exists():
    sections = "|".join(field.name for field in dataclasses.fields(Recipe))
    found = named(rf"(?<![\w./-])((?:{sections})\.[a-z_0-9]+)(?![\w{{(])")
    assert len(found) > 30
    assert [(where, name) for where, name in found if name not in fields_of(Recipe)] == []


def test_every_command_and_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = named(r"(?<!that )\btoklab ([a-z]+)\b(?! than)")
    assert len(commands) > 10 and [pair for pair in commands if pair[1] not in COMMANDS] == []
    wanted = named(r"tokenizer-lab\[([a-z,-]+)\]")
    assert len(wanted) > 5 and [pair for pair in wanted if pair[1] not in extras] == []


# ---- What messages say to do ---------------------------------------------------------------------


def followed(message: str, arguments: list[str]) -> list[str]:
    """The arguments with the options that a message gives with a value."""
    advice = re.findall(r"(--[a-z][a-z0-9.-]*) (?:from )?'?(-?[\w.-]*\w)", message.rpartition("; ")[2])
    assert advice, message
    for name, value in advice:
        if name in arguments:
            arguments = [*arguments[: arguments.index(name)], *arguments[arguments.index(name) + 2 :]]
        arguments = [*arguments, name, value]
    return arguments


def complaint(work, *arguments) -> str:
    with pytest.raises(UserError) as error:
        work(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def follow_to_the_end(use, arguments: str) -> None:
    """What is refused is told, one thing after the other; with all of it followed, it works."""
    followed_arguments = followed(complaint(use, shlex.split(arguments)), shlex.split(arguments))
    for _ in range(3):
        try:
            return use(followed_arguments)
        except UserError as error:
            followed_arguments = followed(str(error), followed_arguments)
    use(followed_arguments)


@pytest.fixture
def parse_recipe(recipe, write_recipe):
    """parse_recipe(arguments): the recipe that `toklab train` would train."""
    path = write_recipe(recipe)
    fields = [("run_dir", str, dataclasses.field(default="run"))]
    return lambda arguments: parse_with_recipe("train", fields, "--run-dir RUN", [path, *arguments]).recipe


@pytest.mark.parametrize(
    "arguments",
    [
        "--budget.bytes 5",
        "--mesh.fsdp 16",
        "--data.batch-rows 12",
        "--evaluation.batch-rows 9",
        "--data.num-microbatches 3",
        "--model.embed-dim 36",
        "--model.num-kv-heads 1 --mesh.tensor 2 --mesh.fsdp 4",
    ],
)
def test_a_recipe_that_is_refused_is_taken_as_the_message_says(arguments, parse_recipe):
    def use(arguments):
        recipe = parse_recipe(arguments)
        mesh, data = make_mesh(recipe.mesh), recipe.data
        check_batch(mesh, data.batch_rows, data.sequence_length, data.num_microbatches)
        check_batch(mesh, recipe.evaluation.batch_rows, data.sequence_length, section="evaluation")
        if any("--model" in argument for argument in arguments):
            lay_out(recipe, 257, mesh)

    follow_to_the_end(use, arguments)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("subword", "--vocab-size 100"),
        ("subword", "--vocab-size 4096"),
        ("subword", "--vocab-size 300 --superword-transition 400"),
        ("equal_info", "--window-bits 17"),
        ("equal_info", "--window-bits 24"),
        ("equal_info", "--window-bits 16 --id-bits 32"),
    ],
)
def test_a_fit_that_is_refused_is_done_as_the_messages_say(kind, arguments, monkeypatch):
    monkeypatch.setattr(window_code, "available_bytes", lambda: 1 << 29)

    def use(arguments):
        options = parse(fit_options(kind), arguments, f"fit {kind}")
        if kind == "subword":
            options.fit([b"the of and to in a is that it was for on are as with his they at be this"] * 9, "")

    follow_to_the_end(use, arguments)


@pytest.mark.parametrize("arguments", ["--on-empty error", "--field content"])
def test_an_ingest_that_is_refused_is_done_as_the_messages_say(arguments, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one two"}\n{"text": ""}\n')

    def use(arguments):
        ingest(
            parse(IngestOptions, [str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "corpus"), *arguments], "ingest")
        )

    follow_to_the_end(use, arguments)


@pytest.mark.usefixtures("one_device", "new_programs")
def test_a_run_that_spikes_goes_on_as_the_message_says_and_notes_it(recipe, tmp_path, monkeypatch, change, capsys):
    monkeypatch.setattr(step, "_STEPS_BEFORE_SPIKES", 3)
    recipe = change(recipe, optimizer={"skip_above": 1e-6, "max_skipped_in_a_row": 4}, checkpoint={"every_steps": 2})
    use = lambda recipe: train(recipe, str(tmp_path / "run"), rich.console.Console(width=300), make_judge)
    message = complaint(use, recipe)
    assert "spiked" in message and "--optimizer.learning-rate" in message
    [number] = re.findall(r"with --optimizer.skip-above (\S+);", message)
    faster = change(recipe, optimizer={"learning_rate": 1e-3})
    assert "choose another --run-dir" in complaint(use, faster), "the other remedy is for another folder"
    assert use(change(recipe, optimizer={"skip_above": float(number)})) == FINISHED
    [line] = read_lines(RunFolder(tmp_path / "run").amendments)
    assert line == {"step": 6, "field": "optimizer.skip_above", "old": 1e-6, "new": float(number)}
    assert "from step 6 on: optimizer.skip_above 1e-06 -> 1000000000.0" in capsys.readouterr().out


@pytest.mark.usefixtures("one_device")
def test_a_raised_budget_says_what_it_does_to_the_rate_and_is_noted(recipe, tmp_path, change):
    before, after = (set_up(change(recipe, budget=Budget(steps=steps))) for steps in (4, 8))
    zero = np.zeros(2, np.int32)
    state = types.SimpleNamespace(step=np.int32(4), bytes_seen=zero, seconds=np.float32(0))
    run, console = RunFolder(tmp_path / "run"), rich.console.Console(width=300, record=True)
    loop.say_nothing_is_left(before, run, 4, console)
    assert "--budget.steps 8, which takes the learning rate from 0.001 to 0.00587" in console.export_text()
    for _ in range(2):  # the second time after a start that came to no checkpoint
        amend(run, after, state, before.identity["config"], console)
        assert "the learning rate goes from 0.001 to 0.00587 here" in console.export_text()
        assert read_lines(run.amendments) == [{"step": 4, "field": "budget.steps", "old": 4, "new": 8}]
    amend(run, after, state, after.identity["config"], console)
    assert console.export_text() == ""


def test_what_decides_the_numbers_may_not_be_amended(recipe, change):
    stored = to_json(recipe)
    amendable = change(recipe, optimizer={"skip_above": 3.0, "max_skipped_in_a_row": 5}, budget=Budget(bytes=7))
    assert refused_changes(stored, to_json(amendable)) == []
    assert set(amended(stored, to_json(amendable))) == {
        "optimizer.skip_above",
        "optimizer.max_skipped_in_a_row",
        "budget.steps",
        "budget.bytes",
    }
    other = to_json(change(recipe, optimizer={"learning_rate": 1e-3}))
    assert len(refused_changes(stored, other)) == 1 and amended(stored, other) == {}
