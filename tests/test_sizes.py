"""A file fits a head, a function a screen, a line its 120 columns. What does not is listed here with its reason."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = "benchmarks", "configs", "data", "docs", "models", "tests", "tokenizer_lab", "train"
AS_WRITTEN = ROOT / "tests/fixtures"  # by an earlier commit
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_COLUMNS = 400, 60, 120
LARGER: dict[str, str] = {}  # "train/step.py" or "train/step.py:make_train_step" -> why it is one piece


def larger_than_allowed(name: str, source: str) -> dict[str, int]:
    """The file and its functions, as they are named in LARGER, that have too many lines -> how many."""
    lines = {name: len(source.splitlines())} if len(source.splitlines()) > MAX_FILE_LINES else {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if (count := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
                lines[f"{name}:{node.name}"] = count
    return lines


def test_files_and_functions_are_small():
    function = "class Tall:\n    def long(self):\n" + "        pass\n" * 60
    assert larger_than_allowed("a.py", function) == {"a.py:long": 61}
    assert larger_than_allowed("a.py", "pass\n" * 401) == {"a.py": 401}
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if AS_WRITTEN not in path.parents]
    found: dict[str, int] = {}
    for path in paths:
        found |= larger_than_allowed(path.relative_to(ROOT).as_posix(), path.read_text())
    assert len(paths) > 300 and found.keys() == LARGER.keys(), found


def test_lines_are_no_wider_than_those_of_python():
    """Those of Python are ruff's to look at. A row of a table is one line, however wide."""
    paths = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS and not (path.suffix == ".md" and line.startswith("|"))
    ]
    assert len(paths) > 20 and not wide, wide
