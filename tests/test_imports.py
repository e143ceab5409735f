"""The contract of the imports in pyproject.toml: packages and wings import one way, lazily or not, without a circle."""

import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_imports_keep_the_contract():
    command = [pathlib.Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


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
