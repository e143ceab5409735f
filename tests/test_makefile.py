"""Which Pythons `make` takes, and what it says of the others. Nothing is installed: `make --dry-run` tells."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLDEST = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))


@pytest.fixture
def checkout(tmp_path) -> pathlib.Path:
    """A checkout with nothing installed, of the files that decide."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    return tmp_path


def fake_python(folder: pathlib.Path, version: str) -> str:
    """A program that says it is a Python of that version."""
    program = folder / f"python{version}"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    return str(program)


def make(checkout: pathlib.Path, goal: str, python: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", goal, f"PYTHON={python}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )


def supported() -> list[str]:
    return sorted(path.stem.removeprefix("python") for path in (ROOT / "constraints").glob("*.txt"))


@pytest.mark.parametrize("version", supported())
@pytest.mark.parametrize("goal", ["install", "test", "docs"])
def test_a_python_with_a_file_of_versions_gets_them_in_every_step(checkout, version, goal):
    made = make(checkout, goal, fake_python(checkout, version))
    installs = [line for line in made.stdout.splitlines() if "pip" in line]
    assert made.returncode == 0 and made.stderr == ""
    assert len(installs) == (1 if goal == "install" else 2)
    assert all(f"--constraint constraints/python{version}.txt" in line for line in installs)


@pytest.mark.parametrize("goal", ["install", "test", "docs"])
def test_a_newer_python_is_warned_of_once_and_installs_within_the_ranges(checkout, goal):
    made = make(checkout, goal, fake_python(checkout, "3.99"))
    assert made.returncode == 0
    assert len(made.stderr.splitlines()) == 1 and "3.99" in made.stderr and "constraints/" in made.stderr
    assert "pip" in made.stdout and "--constraint" not in made.stdout


@pytest.mark.parametrize("goal", ["install", "test", "docs", "constraints"])
@pytest.mark.parametrize("version", ["2.7", "3.9", f"{OLDEST[0]}.{OLDEST[1] - 1}"])
def test_an_older_python_is_refused_in_one_line(checkout, version, goal):
    made = make(checkout, goal, fake_python(checkout, version))
    assert made.returncode == 2 and made.stdout == ""
    assert len(made.stderr.splitlines()) == 1 and f"make {goal} PYTHON=" in made.stderr
    assert f"Python {version} is too old, it takes {OLDEST[0]}.{OLDEST[1]} or later" in made.stderr


@pytest.mark.parametrize("goal", ["install", "test", "docs", "constraints"])
def test_a_python_that_is_not_there_is_refused_in_one_line(checkout, goal):
    made = make(checkout, goal, "/no/such/python")
    assert made.returncode == 2 and made.stdout == ""
    assert len(made.stderr.splitlines()) == 1 and "/no/such/python does not run" in made.stderr


def test_a_python_that_is_gone_is_refused_where_one_is_installed_already(checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/installed").touch()
    made = make(checkout, "test", "/no/such/python")
    assert made.returncode == 2 and "/no/such/python does not run" in made.stderr and "pip" not in made.stdout


def test_versions_of_a_new_python_go_to_a_file_of_its_own(checkout):
    made = make(checkout, "constraints", fake_python(checkout, "3.99"))
    assert made.returncode == 0 and made.stderr == ""
    assert "> constraints/python3.99.txt" in made.stdout and "--constraint" not in made.stdout


def test_the_demo_ends_by_saying_where_toklab_is(checkout):
    last = make(checkout, "demo", sys.executable).stdout.splitlines()[-1]
    told = subprocess.run(last, shell=True, capture_output=True, text=True).stdout
    assert told == "toklab is .venv/bin/toklab; source .venv/bin/activate puts it on your PATH\n"


def test_this_python_itself_is_taken(checkout):
    made = make(checkout, "install", sys.executable)
    assert made.returncode == 0 and f"(Python {sys.version_info[0]}.{sys.version_info[1]}," in made.stdout


def test_files_of_versions_hold_pins_and_comments_alone():
    for version in supported():
        lines = (ROOT / f"constraints/python{version}.txt").read_text().splitlines()
        assert version in lines[0] and lines[0].startswith("# ")
        assert [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
