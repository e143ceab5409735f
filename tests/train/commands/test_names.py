"""Every command takes paths and names of every printable character, and says them as they are."""

import json
import pathlib
import shutil

import pytest

from train.commands import command_line
from train.commands.command_line import COMMANDS
from train.recipe import to_json

PRINTABLE = "".join(chr(code) for code in range(32, 127) if chr(code) not in "/\\")
FOLDER = f"{PRINTABLE} ü 日本 tab\t[a]"
NAME = "byte[/x] agreement[plural] 50% :cat:"


def commands(folder: pathlib.Path, recipe_file: str) -> list[list[str]]:
    """Of everything that can be done with a run, each in the folder and with names that begin with '-' in it."""
    corpus, artifact, run = (f"{folder}/{name}" for name in ("-[corpus]", "-artifact*", "-run?"))
    pairs, task = f"{folder}/-pairs[1].jsonl", f"{folder}/task.jsonl"
    return [
        ["ingest", f"{folder}/-text", f"--out={corpus}", "--test-fraction", "0.3"],
        ["fit", "byte", f"--corpus={corpus}", f"--out={artifact}"],
        ["encode", artifact, "--corpus", corpus, f"--out={folder}/-ids"],
        ["train", recipe_file, f"--run-dir={run}", f"--representation={artifact}", f"--data.corpora={corpus}"]
        + ["--budget.steps=2", f"--name={NAME}", "--model.num-layers=1", "--logging.tensorboard"],
        ["eval", run, "--corpus", corpus],
        ["sample", run, "--prompt", "[/x]\t", "--max-tokens", "3"],
        ["blimp", run, f"--pairs={pairs}"],
        ["finetune", run, f"--task={task}", f"--dev={task}", "--num-seeds=1", "--num-epochs=1", "--sequence-length=16"],
        ["report", run, f"--out={folder}/-report"],
        ["inspect", artifact, "--corpus", corpus, f"--out={folder}/-inspected"],
        ["export", run, "--to=hf", f"--out={folder}/-exported"],
        ["submit", recipe_file, "--to=local", f"--run-dir={run}", "--job-name=job", "--dry-run"],
    ]


def lines(path: pathlib.Path, *values: dict[str, object]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def run_all(recipe, tmp_path, capsysbinary):
    """run_all(names): what these commands have shown, by name, in a folder with a text, a task and a recipe."""
    folder = tmp_path / FOLDER
    (folder / "-text").mkdir(parents=True)
    for number in range(12):
        (folder / "-text" / f"[{number}]*.txt").write_text(f"document {number} says [/this] " * 4)
    lines(folder / "-pairs[1].jsonl", {"sentence_good": "a b", "sentence_bad": "b a", "UID": "agreement[plural]"})
    lines(folder / "task.jsonl", *({"sentence": f"[{label}]", "label": label} for label in ("a", "b") * 4))
    (folder / "-recipe%s[x].json").write_text(json.dumps(to_json(recipe)))

    def run(names: tuple[str, ...]) -> dict[str, bytes]:
        shown = {}
        for arguments in commands(folder, f"{folder}/-recipe%s[x].json"):
            if arguments[0] in names:
                assert command_line.run(arguments) == 0, (arguments, capsysbinary.readouterr().err.decode())
                shown[arguments[0]] = capsysbinary.readouterr().out
        assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
        return shown

    return run


def test_commands_take_names_as_they_are(run_all, tmp_path):
    folder, old = tmp_path / FOLDER, pathlib.Path(__file__).parents[2] / "fixtures" / "commit_9e6ecbd"
    shutil.copytree(old / "trained" / "byte", folder / "-run?")
    shown = run_all(("ingest", "fit", "encode", "inspect", "report", "submit"))
    assert all(str(folder).encode() in shown[command] for command in shown)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_every_command_takes_names_as_they_are(run_all, tmp_path):
    folder = tmp_path / FOLDER
    shown = run_all(tuple(COMMANDS))
    assert (
        f"{NAME} finished at step 2".encode() in shown["train"]
        and f"name           {NAME}\n".encode() in shown["train"]
    )
    for command, name in (
        ("eval", "-run?"),
        ("blimp", "-run?"),
        ("report", "-report/index.html"),
        ("export", "-exported"),
    ):
        assert f"{folder}/{name}".encode() in shown[command], command
    assert shown["sample"].startswith(b"[/x]\t") and b"-pairs[1]" in shown["blimp"]
