"""README, docs/ and docstrings say what works: commands, options, files, links and extras, as far as none computes."""

import argparse
import ast
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from typing import Any, get_args
from unittest import mock

import pytest
import tokenizers
import tyro

from tokenizer_lab.representation import KINDS
from train.commands import command_line
from train.experiment import Experiment
from train.plan.pod import Pod, on_pod
from train.recipe import Recipe
from train.submit import TARGETS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted(path for folder in ("benchmarks", "configs") for path in (ROOT / folder).glob("*.py"))
SOURCES = sorted(
    path
    for folder in ("configs", "train", "models", "data", "tokenizer_lab", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "fixtures" not in path.parts
)
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What stands for something of the reader's, with an example of it.
FILLED = {"RECIPE": "decoder_1b", "COMMAND": "train", "EXPERIMENT": "comparison_small", "NAME": "name", "N": "8"}
THEIRS = """ARTIFACT BUCKET CORPORA CORPUS DEV DIR EXPORT FILE FILE_OR_FOLDER FOLDER IMAGE NTREX OTHER_RUN PARTITION
    PATH PROJECT RUN SOURCE STEP TEXT TRAIN ZONE"""
FILLED |= {word: word.lower() for word in THEIRS.split()}
KIND = {"fit": "byte", "submit": "local"}
# Programs that are not ours, in commands that are.
OTHERS = set("cd chromium cosmic-ray cp cr-report done for head ln mkdir sha256sum source split tail xprof xz".split())


def blocks(page: pathlib.Path) -> list[tuple[str, str]]:
    """Of a page, what is behind the fence and what is between the fences."""
    return re.findall(r"^```(.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)


def inline(page: pathlib.Path) -> list[str]:
    """What stands between single backticks."""
    prose = re.sub(r"^```.*\n(?:.*\n)*?```$", "", page.read_text(), flags=re.MULTILINE)
    return [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose)]


def shell_text(source: pathlib.Path) -> str:
    """The commands of a page, which are its blocks without a language; or of a Python file, which are in docstrings."""
    if source.suffix == ".md":
        return "".join(text for info, text in blocks(source) if not info)
    nodes = (node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Module | ast.FunctionDef))
    docstrings = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    return "".join(
        f"{found}\n" for found in re.findall(r"^ *((?:toklab|python) (?:.*\\\n)*.*)$", docstrings, re.MULTILINE)
    )


def filled(text: str) -> str:
    """Commands with something in place of each placeholder, and what may be left out not left out."""
    text = re.sub(r"\[(--[^]]*)\]", r"\1", text).replace("...", "").replace("\\\n", " ")
    text = re.sub(r"\b(fit|submit)\b(.*)\bKIND\b", lambda found: f"{found[1]}{found[2]}{KIND[found[1]]}", text)
    return re.sub(r"\b[A-Z_]+\b(?!=)", lambda found: FILLED.get(found[0], found[0]), text)


def commands(text: str) -> list[list[str]]:
    """Each command as its words, without what is set for it or starts it."""
    found: list[list[str]] = []
    for line in filled(text).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        found.append([])
        for word in words:
            if word in ("&&", ";", "|"):
                found.append([])
            else:
                found[-1].append(word)
    without = [words[words.index("toklab") :] if "toklab" in words else words for words in found]
    return [list(_behind_variables(words)) for words in without if words and words != ["do"]]


def _behind_variables(words: list[str]) -> Iterator[str]:
    yield from words[next((number for number, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0) :]


class Parsed(BaseException):
    """What a command has understood, in place of doing it."""


@contextlib.contextmanager
def parsing_alone() -> Iterator[None]:
    """Programs of this process end with Parsed once they have parsed their options."""

    def ends(parse: Any) -> Any:
        def instead(*arguments: Any, **keywords: Any) -> Any:
            raise Parsed(parse(*arguments, **keywords))

        return instead

    with (
        mock.patch.object(tyro, "cli", ends(tyro.cli)),
        mock.patch.object(argparse.ArgumentParser, "parse_args", ends(argparse.ArgumentParser.parse_args)),
        mock.patch.dict(os.environ),
    ):
        yield


def parse_toklab(arguments: list[str], capsys: Any) -> Any:
    """The options of a command, None where it has shown help."""
    try:
        with parsing_alone():
            code = command_line.run(arguments)
    except Parsed as parsed:
        return parsed.args[0]
    except SystemExit as exit_:
        code = exit_.code
    assert not code, f"toklab {shlex.join(arguments)}\n{capsys.readouterr().err}"
    return None


def check_toklab(arguments: list[str], source: pathlib.Path, capsys: Any) -> None:
    """That a command is understood, and that its recipe goes with the chips."""
    if arguments[0] == "submit" and "--help" not in arguments:
        assert command_line.run([*arguments, "--dry-run"]) == 0, capsys.readouterr().err
        return
    options = parse_toklab(arguments, capsys)
    if arguments[0] == "plan":
        on_pod(options.recipe, Pod(options.options.topology, options.options.slices))
    if arguments[0] == "train" and options is not None:
        devices = options.recipe.mesh.replica * max(1, options.recipe.mesh.fsdp or 1) * options.recipe.mesh.tensor
        assert devices == 1 or f"{devices} devices" in source.read_text(), f"it needs {devices} devices"


def check_python(words: list[str], monkeypatch: Any) -> None:
    """That a script is there and takes the options, or that tests are there."""
    if words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words if word.startswith("tests"))
        return
    script = ROOT / words[0]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(script.parent)
    with parsing_alone(), pytest.raises(Parsed):
        runpy.run_path(str(script), run_name="__main__")


def check_make(words: list[str]) -> None:
    variables, goals = ([word for word in words if ("=" in word) == is_variable] for is_variable in (True, False))
    assert {word.partition("=")[0] for word in variables} <= {"PYTHON", "TESTS"}
    command = ["make", "--dry-run", *goals, f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def check_extras(text: str) -> None:
    """That extras are named, and named in the one way that works wherever tokenizer-lab is installed."""
    assert not re.findall(r"""['"`]\.\[[\w,-]+\]""", text), "name it 'tokenizer-lab[EXTRA]'"
    for extras in re.findall(r"tokenizer-lab\[([\w,-]+)\]", text):
        assert set(extras.split(",")) <= EXTRAS.keys() | {"NAME"}


@pytest.mark.parametrize("source", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_commands_are_understood(source, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for program, *words in commands(shell_text(source)):
        if program == "toklab":
            check_toklab(words, source, capsys)
        elif program == "python":
            check_python(words, monkeypatch)
        elif program == "make":
            check_make(words)
        else:
            assert program == "pip" or program in OTHERS, program


def test_there_are_commands_to_check():
    found = {path: len(commands(shell_text(path))) for path in [*PAGES, *SCRIPTS]}
    assert [page for page in PAGES if not found[page]] == [ROOT / "docs" / "README.md"]
    assert found[ROOT / "configs" / "comparison_small.py"] == 6 and sum(found.values()) > 120


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_blocks_of_commands_are_bash(page):
    script = filled("".join(text for info, text in blocks(page) if not info))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def options_of(command: str, capsys: Any) -> set[str]:
    """A command's options, of all kinds that it has, as its help shows them."""
    kinds = {"fit": [[kind] for kind in KINDS], "submit": [["demo_byte", "--to", kind] for kind in TARGETS]}
    kinds |= {name: [["demo_byte"], ["electra_small"]] for name in ("train", "plan")}
    for kind in kinds.get(command, [[]]):
        parse_toklab([command, *kind, "--help"], capsys)
    taken_out = {"submit": {"--to"}, "compare": {"--submit"}}.get(command, set())
    return set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out)) | {"--help"} | taken_out


def test_options_named_in_prose_are_there(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # so that none is broken
    options = {command: options_of(command, capsys) for command in command_line.COMMANDS}
    known = set().union(*options.values(), {"--field"})
    for page in PAGES:
        for code in inline(page):
            words = [word for word in code.split() if re.match(r"--[a-z]", word) and "xla" not in word]
            command = next(iter(code.removeprefix("toklab ").split()), "")
            if code.startswith("toklab "):
                assert command in options or command in ("COMMAND", "--help"), f"{page.name}: {code}"
            if code.startswith(("--", "toklab ")) or command in options:
                assert set(words) <= options.get(command, known) | {"--field"}, f"{page.name}: {code}"


def fields_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Names of a config's fields, dotted, of all members of its unions."""
    for member in get_args(kind) if isinstance(kind, types.UnionType) else [kind]:
        if dataclasses.is_dataclass(member):
            for field in dataclasses.fields(member):
                yield f"{prefix}{field.name}"
                yield from fields_of(field.type, f"{prefix}{field.name}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_fields_named_in_prose_are_there(page):
    known = set(fields_of(Recipe))
    sections = "|".join({name.partition(".")[0] for name in known if "." in name})
    for code in inline(page):
        if found := re.fullmatch(rf"((?:{sections})\.[a-z_]+)(?: .*)?", code):
            assert found[1] in known or found[1].endswith((".py", ".json", ".jsonl", ".safetensors")), code


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_named_in_prose_are_there(page):
    folders = "benchmarks|configs|constraints|data|docs|models|tests|tokenizer_lab|train"
    named = {code for code in inline(page) if re.fullmatch(rf"(?:{folders})/[\w./-]*", code)}
    assert [path for path in named if not (ROOT / path).exists() and "squared_relu" not in path] == []


def anchors(page: pathlib.Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*\n(?:.*\n)*?```$", "", page.read_text(), flags=re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)$", text, re.MULTILINE)
    for target in targets:
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            assert (found := page.parent / path if path else page).exists(), target
            assert not anchor or anchor in anchors(found), target
    used = set(re.findall(r"\]\[([^]]+)\]", text))
    assert used == set(re.findall(r"^\[([^]]+)\]: ", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_of_the_docs_runs(page):
    for text in (text for info, text in blocks(page) if info == "python"):
        names: dict[str, Any] = {}
        exec(compile(text, page.name, "exec"), names)
        if "experiment" in names:
            assert isinstance(names["experiment"](), Experiment)


def test_extras_are_named_in_one_way():
    for path in [*PAGES, *SCRIPTS, *SOURCES]:
        if path != pathlib.Path(__file__).resolve():
            check_extras(path.read_text())


def test_the_makefile_s_commands_are_understood(capsys):
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)/", "").replace("$$arm", "byte")
    lines = re.findall(r"(?:^\t@|^\t  )(toklab .*?)(?: && \\| \|\| exit .*)?$", makefile, re.MULTILINE)
    assert len(lines) >= 8
    for words in commands("\n".join(lines)):
        parse_toklab(words[1:], capsys)


# ---- The same commands, done: what takes long by its nature is done on a tiny text by a tiny model

DONE = ["README", "byte_probabilities", "commands", "electra", "equal_info", "export", "metrics", "subword"]
ELSEWHERE = {"--tasks", "dir/corpus", "ntrex", "submit", "plan"}  # needs what is not here, or is tried above
TINY_MODEL = "--model.num-layers 1 --model.embed-dim 32 --model.num-heads 2 --model.num-kv-heads 2 --model.mlp-dim 48"
TINY_RUN = f"--budget.flops None --budget.steps 2 --data.batch-rows 8 --data.sequence-length 32 {TINY_MODEL}"
SHORTER = {"train": TINY_RUN, "sample": "--max-tokens 4", "finetune": "--num-epochs 1 --num-seeds 1"}


COMPRESSOR = """
import dataclasses
from configs import demo_compressor
from models.decoder import DecoderConfig
from train.optimizer import Budget

def recipe():
    recipe = demo_compressor.recipe()
    data = dataclasses.replace(recipe.data, batch_rows=8, sequence_length=32)
    model = DecoderConfig(num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
    return dataclasses.replace(recipe, data=data, model=model, budget=Budget(steps=2))
"""


def write_texts(folder: pathlib.Path) -> None:
    """What the pages' commands read and do not make."""
    import zstandard

    words = "it was on the as a and of is they at be this from I have".split()
    texts = [" ".join(random.Random(number).choices(words, k=60)) for number in range(40)]
    for name in ("books", "parts", "blimp/data"):
        (folder / name).mkdir(parents=True)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "books/1.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (folder / "parts/1.txt").write_text("\n\n".join(texts))
    (folder / "text").write_text("\n".join(texts))
    pairs = [{"sentence_good": "it was on", "sentence_bad": "on was it", "UID": "order"}] * 2
    (folder / "blimp/data/order.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for name in ("train.tsv", "dev.tsv"):
        rows = "".join(f"{text[:20]} {number}\t{number % 2}\n" for number, text in enumerate(texts))
        (folder / name).write_text(f"sentence\tlabel\n{rows}")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet))
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", DONE)
def test_commands_work(name, tmp_path, monkeypatch, capsys, corpus, byte_artifact, one_device):
    write_texts(tmp_path)
    for place in ("corpus", "demo/corpus"):
        shutil.copytree(corpus, tmp_path / place)
    for place in ("artifact", "demo/byte"):
        shutil.copytree(byte_artifact, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    page = next(page for page in PAGES if page.stem == name)
    for run in ("run", "other_run", "runs/causal"):
        do(["train", "demo_byte", "--run-dir", run, *TINY_RUN.split()], capsys)
        do(["eval", run], capsys)
    for program, *words in commands(shell_text(page)):
        if program == "toklab" and not ELSEWHERE & set(words) and "--help" not in words:
            do([word.replace("decoder_1b", "demo_byte") for word in words], capsys)


def do(words: list[str], capsys: Any) -> None:
    """Runs a command, shorter, where nothing of what it makes is there yet."""
    made = [words[words.index(option) + 1] for option in ("--out", "--run-dir") if option in words]
    for path in made:
        shutil.rmtree(path, ignore_errors=True)
    smaller = re.sub(r"--mesh\.fsdp \d+", "", shlex.join(words))  # the text has few words, and there is one device
    smaller = re.sub(r"--vocab-size \d+", f"--vocab-size {257 if 'character' in words else 270}", smaller)
    smaller = re.sub(r"--superword-transition \d+", "--superword-transition 265", smaller)
    more = SHORTER.get(words[0], "").split()
    if words[:2] == ["fit", "equal_info"] and "--lm" not in words:
        pathlib.Path("compressor.py").write_text(COMPRESSOR)
        more += ["--lm-recipe", "compressor.py"]
    code = command_line.run([*shlex.split(smaller), *more])
    assert code == 0, f"toklab {shlex.join(words)}\n{capsys.readouterr().err}"
