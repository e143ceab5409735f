"""The contract of the imports in pyproject.toml: packages and wings import one way, lazily or not, without a circle."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

from tokenizer_lab.representation import KINDS
from train.commands.command_line import COMMANDS
from train.submit import TARGETS

ROOT = pathlib.Path(__file__).parents[1]
BY_NAME = {"import_module", "__import__", "exec_module", "load_module", "run_module", "run_path", "resolve_name"}
# What imports by a name that the contract does not see -> the names, all of its own folder.
IMPORTED_BY_NAME = {
    "tokenizer_lab/representation.py:kind_class": [kind.partition(":")[0] for kind in KINDS.values()],
    "tokenizer_lab/representation.py:fit_options": [kind.partition(":")[0] for kind in KINDS.values()],
    "train/commands/command_line.py:run": [f"train.commands.{name}" for name in COMMANDS],
    "train/submit/__init__.py:target_class": [
        f"train.submit.{target.partition('.')[0]}" for target in TARGETS.values()
    ],
    "train/recipe.py:load_config": [],  # a person's own file, and those of configs/ as such
}


def test_imports_keep_the_contract():
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_imported_by_name_lies_in_the_folder_of_who_does():
    roots = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    assert importers_by_name("def f():\n    from importlib import import_module as load\n") == {"f"}
    assert importers_by_name("loaded = __import__('train')\n") == {"<module>"}
    found = {
        f"{path.relative_to(ROOT).as_posix()}:{name}"
        for root in roots
        for path in (ROOT / root).rglob("*.py")
        for name in importers_by_name(path.read_text())
    }
    assert found == IMPORTED_BY_NAME.keys()
    for importer, names in IMPORTED_BY_NAME.items():
        folder = importer.rpartition("/")[0].replace("/", ".")
        assert all(name.startswith(f"{folder}.") for name in names), importer


def importers_by_name(source: str) -> set[str]:
    """Functions that import what a string names; "<module>" where it is none."""
    if not BY_NAME & set(re.findall(r"\w+", source)):
        return set()
    tree, inside = ast.parse(source), {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            inside |= dict.fromkeys(ast.walk(function), function.name)
    named = lambda node: {getattr(node, name, None) for name in ("id", "attr", "name")}  # a name, its use, its import
    return {inside.get(node, "<module>") for node in ast.walk(tree) if BY_NAME & named(node)}


def test_every_folder_of_modules_is_a_package():
    """The contract sees no others."""
    roots = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    folders = {path.parent for root in roots for path in (ROOT / root).rglob("*.py")}
    unseen = sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists())
    assert len(folders) > len(roots) and not unseen, f"{', '.join(unseen)}: no __init__.py"


def test_every_package_says_what_lives_there_and_a_wing_what_it_may_import():
    packages = [path.parent for name in ("train", "tokenizer_lab") for path in (ROOT / name).rglob("__init__.py")]
    silent = [str(package.relative_to(ROOT)) for package in packages if not opening(package).startswith('"""')]
    assert not silent, f"{', '.join(silent)}: __init__.py begins without a docstring"
    wings = [package for package in packages if package.parent == ROOT / "train" and package.name != "commands"]
    vague = [wing.name for wing in wings if not re.search(r"[Mm]ay\s+import", opening(wing))]
    assert not vague, f"{', '.join(vague)}: the docstring does not say what may be imported"


def opening(package: pathlib.Path) -> str:
    return (package / "__init__.py").read_text()
