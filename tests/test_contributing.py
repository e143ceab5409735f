"""CONTRIBUTING.md keeps its word: its worked examples are done in a copy of the source."""

import functools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (An? \w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
FOLDERS = ("tokenizer_lab", "models", "train", "data", "configs", "tests")


@pytest.fixture
def source(tmp_path, corpus, byte_artifact):
    """A copy of the source, with the small corpus and the byte artifact where the demo has its own."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "fixtures", "golden")
        shutil.copytree(ROOT / folder, tmp_path / "source" / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "source")
    shutil.copytree(corpus, tmp_path / "source" / "demo" / "corpus")
    shutil.copytree(byte_artifact, tmp_path / "source" / "demo" / "byte")
    return tmp_path / "source"


def test_there_is_an_example_for_each_part():
    assert list(SECTIONS) == ["A representation", "An objective", "A model", "A kernel"]


def test_the_changes_fit_the_source_and_its_contract_of_imports(source):
    for section in SECTIONS:
        follow(section, source, lambda line: None)
    for path in source.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=source, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_works_as_it_stands(section, source):
    follow(section, source, functools.partial(run, source=source))


@pytest.mark.slow
def test_the_types_of_the_examples_fit_those_of_the_source(source):
    for section in SECTIONS:
        follow(section, source, lambda line: None)
    command = [sys.executable, "-m", "mypy"]
    done = subprocess.run(command, cwd=source, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def follow(section, source, run_line):
    for info, block in re.findall(r"^```(.*?)\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL):
        if info.startswith("python file="):
            path = source / info.removeprefix("python file=")
            assert not path.exists(), f"{path} is no new file"
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
        elif info.startswith("python change="):
            change(source / info.removeprefix("python change="), block)
        else:
            assert info == "console", info
            for line in block.splitlines():
                run_line(line)


def change(path, block):
    """Does to a file what the lines that begin with + and - say."""
    lines = block.splitlines()
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[0] in marks) for marks in (" -", " +"))
    text = path.read_text()
    assert text.count(before) == 1, f"{path.name} does not have just once:\n{before}"
    path.write_text(text.replace(before, after))


def run(line, source):
    program, *arguments = shlex.split(line)
    module = {"toklab": "train.commands.cli", "pytest": "pytest"}[program]
    options = ["-q", "-p", "no:cacheprovider", "-n", "0"] if program == "pytest" else []
    environment = os.environ | {"PYTHONPATH": str(source)}
    command = [sys.executable, "-m", module, *arguments, *options]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert program != "pytest" or re.search(r"[1-9]\d* passed", done.stdout), done.stdout
