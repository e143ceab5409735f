"""What is installed without a checkout: the wheel's files, and `make demo` from the wheel alone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [pattern.rstrip("*") for pattern in PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]


def tracked() -> list[str]:
    """The files of the checkout that are in git."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def clean_checkout(folder: pathlib.Path) -> pathlib.Path:
    """A copy: building leaves files beside the sources, and would take what an earlier build has left."""
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def build_wheel(checkout: pathlib.Path, folder: pathlib.Path, *options: str) -> pathlib.Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", folder, checkout]
    built = subprocess.run(pip, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.iterdir()
    return wheel


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = clean_checkout(folder / "checkout")
    return zipfile.ZipFile(build_wheel(checkout, folder / "wheels", "--no-build-isolation", "--no-index"))


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(contents):
    held = {name for name in contents.namelist() if ".dist-info/" not in name}
    expected = {name for name in tracked() if name.split("/")[0] in PACKAGES}
    assert {f"{package}/py.typed" for package in PACKAGES} <= expected
    assert {pathlib.PurePath(name).suffix for name in expected} >= {".py", ".typed", ".html", ".css", ".js", ".sh"}
    assert expected - held == set(), "not in the wheel; package-data in pyproject.toml says what is"
    assert held - expected == set(), "in the wheel, but not of a package"


def test_the_wheel_names_its_licence_and_its_command(contents):
    names = [name for name in contents.namelist() if ".dist-info/" in name]
    about = {pathlib.PurePath(name).name: contents.read(name).decode() for name in names}
    assert "\nLicense-Expression: Apache-2.0\n" in about["METADATA"]
    assert "\nLicense-File: LICENSE\n" in about["METADATA"]
    assert about["LICENSE"] == (ROOT / "LICENSE").read_text()
    for command, function in PYPROJECT["project"]["scripts"].items():
        assert f"{command} = {function}" in about["entry_points.txt"]


def demo_commands(checkout: pathlib.Path, bin_folder: pathlib.Path) -> str:
    """What `make demo` runs after the installation, as a script."""
    (checkout / ".venv").mkdir()
    (checkout / ".venv/installed").touch()
    make = ["make", "--dry-run", "--no-print-directory", "demo", f"BIN={bin_folder}", f"PYTHON={sys.executable}"]
    return subprocess.run(make, cwd=checkout, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_alone(tmp_path):
    checkout = clean_checkout(tmp_path / "checkout")
    wheel = build_wheel(checkout, tmp_path / "wheels")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    bin_folder, empty = tmp_path / "venv/bin", tmp_path / "empty"
    empty.mkdir()

    def run(*command: str | pathlib.Path) -> str:
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    versions = ROOT / f"constraints/python{sys.version_info[0]}.{sys.version_info[1]}.txt"
    run(sys.executable, "-m", "venv", bin_folder.parent)
    run(bin_folder / "pip", "install", "--quiet", *(["--constraint", versions] if versions.exists() else []), wheel)
    for package in PACKAGES:
        imported = run(bin_folder / "python", "-c", f"import {package}; print({package}.__file__)")
        assert imported.startswith(str(bin_folder.parent))

    short = "--budget.flops None --budget.steps 10"  # no FLOPs: an arm is charged for its compressor's
    script, arms = re.subn(r"(toklab train \S+)", rf"\1 {short}", demo_commands(checkout, bin_folder))
    shutil.rmtree(checkout)
    assert arms == 1 and script.count("toklab") == 8
    printed = run("bash", "-euc", script)
    for arm in ("byte", "subword", "equal_info"):
        assert f"demo_{arm} finished" in printed
    assert "<html" in (empty / "demo/report/index.html").read_text()
    assert printed.rstrip().endswith("demo/report/index.html")
