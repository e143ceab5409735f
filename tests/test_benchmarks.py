"""Every benchmark shows its options without what is no dependency of ours, and says in one line what it needs."""

import os
import pathlib
import runpy
import sys
from unittest import mock

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
NEED_PYTORCH = {"hf_bits_per_byte.py": ["export", "--corpus", "corpus"], "train_step.py": []}
OPTIONAL = ["torch", "transformers", "tokamax", "lm_eval", "wandb", "ray", "kubernetes"]


class NothingOptional:
    """As a finder of modules: what is optional is not installed."""

    def find_spec(self, name: str, *_: object) -> None:
        if name in OPTIONAL:
            raise ModuleNotFoundError(name)


def run(program: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Runs a benchmark in this process, where nothing optional is installed; what it exits with."""
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{program.name}", *arguments])
    monkeypatch.syspath_prepend(FOLDER)
    for name in OPTIONAL:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [NothingOptional(), *sys.meta_path])
    with mock.patch.dict(os.environ), pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(program), run_name="__main__")
    return exit_.value.code


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_help_is_shown_without_what_is_optional_and_without_tpus(program, monkeypatch, capsys):
    chosen = []
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr("train.commands.cli.accelerator_vendors", set)
    monkeypatch.setattr("train.commands.cli.importlib.util.find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("jax.config.update", lambda name, value: chosen.append((name, value)))
    assert run(program, monkeypatch, "--help") == 0
    assert "--" in capsys.readouterr().out
    if program.name not in ("crash.py", "loss_memory.py"):  # which say so themselves, before JAX is imported
        assert ("jax_platforms", "cpu") in chosen


@pytest.mark.parametrize("name", NEED_PYTORCH)
def test_pytorch_that_is_missing_is_one_line(name, monkeypatch):
    complaint = run(FOLDER / name, monkeypatch, *NEED_PYTORCH[name])
    assert isinstance(complaint, str) and "\n" not in complaint
    assert f"benchmarks/{name} needs torch" in complaint and "pip install torch==" in complaint


def test_no_other_benchmark_needs_pytorch():
    users = {path.name for path in PROGRAMS if "require_pytorch" in path.read_text()}
    assert users == NEED_PYTORCH.keys()
    importing = {path.name for path in FOLDER.glob("*.py") if "\nimport torch" in path.read_text()}
    assert importing == {"torch_step.py"}
