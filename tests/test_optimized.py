"""`python -O` leaves asserts out: what keeps bad files and lost bytes away is none."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = "tokenizer_lab", "data", "models", "train"
READERS = re.compile(r"_*(read|parse|load|open|unpack|from_files|restore|npy_array|check)(_|$)")
OF_OUR_OWN = {"check_ids", "open_prompt", "load_config"}  # look at what our own code gives them


def asserts_of_readers(source: str) -> list[str]:
    """Functions that read or check something, and lean on an assert."""
    return [
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef) and READERS.match(function.name) and function.name not in OF_OUR_OWN
        if any(isinstance(node, ast.Assert) for node in ast.walk(function))
    ]


def test_what_reads_files_does_not_lean_on_asserts():
    assert asserts_of_readers("def _read_header(file):\n    assert file\n\ndef walk(file):\n    assert file\n") == [
        "_read_header"
    ]
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    paths = [path for path in paths if "kernels" not in path.parts]
    found = {path.relative_to(ROOT).as_posix(): asserts_of_readers(path.read_text()) for path in paths}
    assert len(paths) > 100 and {path: names for path, names in found.items() if names} == {}


CHECKS = [
    "tests/tokenizer_lab/test_files.py::test_what_is_no_whole_array_of_numbers_is_refused",
    "tests/tokenizer_lab/test_files.py::test_one_byte_changed_is_refused_or_an_array_of_as_many_bytes",
    "tests/tokenizer_lab/equal_info/test_equal_info.py::test_settings_that_are_none_are_refused",
    "tests/data/test_encoded.py::test_any_record_is_read_or_refused",
    "tests/data/test_row_errors.py::test_a_byte_that_is_lost_is_a_bug",
    "tests/data/test_row_errors.py::test_a_cursor_behind_the_end_of_its_document_is_a_bug",
]


@pytest.mark.skipif(not __debug__, reason="this is the run without asserts")
def test_bad_files_are_refused_without_asserts():
    """The tests of these are run once more, by an interpreter that leaves asserts out; pytest keeps those of tests."""
    command = [sys.executable, "-O", "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "--noconftest", *CHECKS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and re.search(r"\d+ passed", ran.stdout), ran.stdout[-3000:] + ran.stderr[-1000:]
