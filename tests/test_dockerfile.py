"""The Dockerfile: hadolint finds nothing, and what it names is there.

It cannot be built here, as base images come from a registry. Instead a wheel is built from just what it copies, its
paths, versions and extras are compared with the project's files, and its command with what `toklab submit` sends.
"""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from dockerfile_parse import DockerfileParser

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage; those before the first are of none."""
    lines = DockerfileParser(fileobj=(ROOT / "Dockerfile").open("rb")).structure
    steps = [(line["instruction"], line["value"]) for line in lines if line["instruction"] != "COMMENT"]
    starts = [number for number, (instruction, _) in enumerate(steps) if instruction == "FROM"]
    return [steps[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture(scope="module")
def defaults() -> dict[str, str]:
    """The build arguments, as they are if nobody gives them."""
    lines = DockerfileParser(fileobj=(ROOT / "Dockerfile").open("rb")).structure
    words = (line["value"].partition("=") for line in lines if line["instruction"] == "ARG")
    return {name: value for name, equals, value in words if equals}


def values(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in stage if name == instruction]


def copied(stage: list[tuple[str, str]]) -> list[str]:
    """What a stage takes from the checkout."""
    words = [value.split() for value in values(stage, "COPY") if not value.startswith("--from=")]
    return [source.rstrip("/") for *sources, _ in words for source in sources]


def tracked(path: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", path], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=pathlib.Path(sys.executable).parent)
    linted = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_what_is_copied_is_in_git_and_is_sent_to_the_builder(stages):
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert "*" in rules
    for source in copied(stages[0]):
        assert tracked(source), f"{source} is not in git"
        assert source in kept, f"{source} is not in .dockerignore"
    assert sorted(kept) == sorted(copied(stages[0]))
    assert copied(stages[1]) == []


def test_a_wheel_of_what_is_copied_holds_all_packages(stages, tmp_path):
    context, wheels = tmp_path / "context", tmp_path / "wheels"
    for file in (file for source in copied(stages[0]) for file in tracked(source)):
        (context / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, context / file)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*pip, "--wheel-dir", wheels, context], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    patterns = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    expected = [file for pattern in patterns for file in tracked(pattern.rstrip("*")) if file.endswith(".py")]
    assert expected and set(expected) <= set(names)


def test_every_supported_python_has_its_versions(stages, defaults):
    (install,) = [value for value in values(stages[0], "RUN") if "pip install" in value]
    words = shlex.split(install)
    constraints = words[words.index("--constraint") + 1]
    assert (ROOT / constraints.replace("${PYTHON}", defaults["PYTHON"])).is_file()
    assert all("python:${PYTHON}-" in value for stage in stages for value in values(stage, "FROM"))
    assert "PYTHON" in values(stages[0], "ARG"), "an argument before FROM is not seen in a stage that does not name it"


def test_the_extras_exist_and_are_pinned(stages, defaults):
    (install,) = [value for value in values(stages[0], "RUN") if "pip install" in value]
    assert shlex.split(install)[-1] == ".[${EXTRAS}]"
    extras = PYPROJECT["project"]["optional-dependencies"]
    pins = (ROOT / f"constraints/python{defaults['PYTHON']}.txt").read_text().lower().replace("_", "-")
    for extra in defaults["EXTRAS"].split(","):
        for requirement in extras[extra]:
            name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
            assert f"\n{name}==" in pins, f"{name} of [{extra}] has no version"
    offered = re.findall(r"--build-arg EXTRAS=(\S+)", (ROOT / "Dockerfile").read_text())
    assert offered and {extra for choice in offered for extra in choice.split(",")} <= set(extras)


def test_the_command_is_the_console_script_and_is_found(stages):
    final = stages[1]
    (command,) = values(final, "CMD")
    assert json.loads(command)[0] in PYPROJECT["project"]["scripts"]
    # A JobSet replaces an entry point; `docker run IMAGE toklab train ...` of a queued resource would come after it.
    assert values(final, "ENTRYPOINT") == []
    (environment,) = values(final, "ENV")
    (taken,) = [value.split() for value in values(final, "COPY")]
    path = dict(word.split("=", 1) for word in shlex.split(environment))["PATH"]
    assert taken[0] == "--from=build" and taken[1] == taken[2] and path.split(":")[0] == f"{taken[2]}/bin"
    assert f"python -m venv {taken[1]} " in " ".join(values(stages[0], "RUN"))
    assert values(stages[0], "FROM")[0].endswith(" AS build")


def test_the_user_is_not_root_and_has_a_home(stages, defaults):
    final = stages[1]
    (user,) = values(final, "USER")
    name = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], user)
    assert name not in ("root", "0")
    (made,) = [value.split() for value in values(final, "RUN") if value.startswith("useradd")]
    assert made[-1] == name and "--create-home" in made
    assert not {"RUN", "COPY"} & {instruction for instruction, _ in final[final.index(("USER", user)) :]}
    assert values(final, "WORKDIR") == [f"/home/{name}"]
