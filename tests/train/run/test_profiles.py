"""`--profile 2:5`: one trace of those steps, and one line for what is no range."""

import dataclasses

import pytest
import rich.console
from jax.profiler import ProfileData

from tokenizer_lab.errors import UserError
from train.commands import command_line
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.optimizer import Budget
from train.run.folder import RunFolder
from train.run.profiles import StepRange


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "5:5", "6:5", "-1:5", "a:b", "1:2:3", "1.0:2", "1:" + "9" * 30])
def test_what_is_no_range_is_one_line(text, capsys, recipe, write_recipe, tmp_path):
    assert (
        command_line.run(["train", write_recipe(recipe), "--run-dir", str(tmp_path / "run"), f"--profile={text}"]) == 2
    )
    complaint = capsys.readouterr().err
    assert (
        "is no range of steps; give the first and the one to stop before, e.g. 100:105" in complaint
        and complaint.count("\n") == 1
    )
    assert not (tmp_path / "run").exists()


def test_a_range_behind_the_budget_is_refused_before_anything_is_written(recipe, tmp_path):
    with pytest.raises(UserError, match="--profile 10:13 goes past the 12 steps of the budget"):
        train(
            recipe,
            str(tmp_path / "run"),
            rich.console.Console(quiet=True),
            make_judge,
            profile=StepRange.parse("10:13"),
        )
    assert not (tmp_path / "run").exists()
    StepRange.parse("10:13").check(None)  # a budget in bytes has no number of steps


@pytest.mark.usefixtures("one_device")
def test_the_steps_of_the_range_are_in_one_trace(recipe, tmp_path, capsys):
    console = rich.console.Console(force_terminal=False, width=200)
    recipe = dataclasses.replace(recipe, budget=Budget(steps=6))
    train(recipe, str(tmp_path / "run"), console, make_judge, profile=StepRange.parse("2:5"))
    (trace,) = RunFolder(tmp_path / "run").profile.glob("plugins/profile/*/*.xplane.pb")
    steps = [
        dict(event.stats)["step_num"]
        for plane in ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    assert sorted(steps) == [2, 3, 4]
    assert "a trace of steps 2 to 4" in capsys.readouterr().out
    train(
        dataclasses.replace(recipe, budget=Budget(steps=8)),
        str(tmp_path / "run"),
        console,
        make_judge,
        profile=StepRange.parse("2:5"),
    )  # as a restarted job
    assert "no trace: this process did not take steps 2 to 4" in capsys.readouterr().out
