"""Where a run's time went: every second of its life once, over kills, resumes and clocks that are set."""

import json
import pathlib

import pytest
import rich.console
from etils import epath

from train import loop
from train.evaluate.bits_per_byte import make_judge
from train.optimizer import Budget
from train.run import goodput
from train.run.folder import RunFolder
from train.run.goodput import Timekeeper, account
from train.run.logs import Stopwatch

CONSOLE = rich.console.Console(quiet=True)


def write_record(folder: pathlib.Path, number: int, **fields) -> None:
    folder.mkdir(exist_ok=True)
    record = {
        "started": 1000.0,
        "seconds": 100.0,
        "seconds_by_part": {"step": 60.0, "data": 10.0},
        "first_step": 0,
        "step": 60,
        "finished": False,
    }
    (folder / f"{number:05}.json").write_text(json.dumps(record | fields))


def parts_of(folder: pathlib.Path) -> dict[str, float]:
    result = account(epath.Path(folder))
    assert all(seconds >= 0 for seconds in result["seconds_by_part"].values())
    assert sum(result["seconds_by_part"].values()) == pytest.approx(result["seconds"])
    assert result["share"] == pytest.approx(result["seconds_by_part"]["step"] / result["seconds"])
    return {name: pytest.approx(seconds) for name, seconds in result["seconds_by_part"].items()} | {
        "starts": result["starts"]
    }


def test_one_process_with_nothing_lost(tmp_path):
    write_record(tmp_path / "times", 0)
    assert parts_of(tmp_path / "times") == {"step": 60, "repeated": 0, "data": 10, "other": 30, "starts": 1}


def test_the_last_evaluation_is_an_evaluation(tmp_path):
    write_record(tmp_path / "times", 0, seconds_by_part={"step": 60.0, "evaluation": 5.0, "last evaluation": 7.0})
    assert parts_of(tmp_path / "times") == {"step": 60, "repeated": 0, "evaluation": 12, "other": 28, "starts": 1}


def test_a_run_without_records_has_no_share(tmp_path):
    assert account(epath.Path(tmp_path)) == {"seconds": 0, "starts": 0, "share": None, "seconds_by_part": {}}


def test_after_a_crash_what_was_taken_again_and_the_pause_are_lost(tmp_path):
    write_record(tmp_path / "times", 0)  # up to step 60, in a second each
    write_record(tmp_path / "times", 1, started=1130.0, first_step=40, step=100)
    assert parts_of(tmp_path / "times") == {
        "step": 40 + 60,
        "repeated": 20,
        "data": 20,
        "other": 60,
        "down": 30,
        "starts": 2,
    }


def test_going_back_behind_the_start_of_the_process_before_loses_steps_of_both(tmp_path):
    write_record(tmp_path / "times", 0)
    write_record(tmp_path / "times", 1, started=1100.0, first_step=60, step=80)
    write_record(tmp_path / "times", 2, started=1200.0, first_step=45, step=105)
    assert parts_of(tmp_path / "times") == {
        "step": 45 + 0 + 60,
        "repeated": 15 + 60,
        "data": 30,
        "other": 90,
        "down": 0,
        "starts": 3,
    }


def test_a_pause_before_a_longer_budget_is_not_lost(tmp_path):
    write_record(tmp_path / "times", 0, finished=True)
    write_record(tmp_path / "times", 1, started=9000.0, first_step=60, step=120)
    assert "down" not in parts_of(tmp_path / "times")


@pytest.mark.parametrize("finished", [False, None, "no", 0])
def test_a_pause_behind_a_record_that_does_not_say_it_has_finished_is_lost(tmp_path, finished):
    write_record(tmp_path / "times", 0, finished=finished)
    write_record(tmp_path / "times", 1, started=1130.0, first_step=60, step=120)
    assert parts_of(tmp_path / "times")["down"] == 30


def test_a_clock_that_was_set_back_and_a_record_that_is_damaged_give_no_negative_times(tmp_path):
    write_record(tmp_path / "times", 0)
    write_record(tmp_path / "times", 1, started=200.0, first_step=60, step=60, seconds_by_part={})
    assert parts_of(tmp_path / "times") == {"step": 60, "repeated": 0, "data": 10, "other": 130, "down": 0, "starts": 2}
    write_record(tmp_path / "times", 2, seconds=-5.0)
    write_record(tmp_path / "times", 3, step=None)
    (tmp_path / "times" / "00004.json").write_text("{")
    assert parts_of(tmp_path / "times")["starts"] == 2


def test_a_process_writes_its_time_down_while_it_runs(tmp_path, monkeypatch):
    now = [50.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: 2000.0)
    clock = Stopwatch()
    now[0] += 3
    times = Timekeeper(epath.Path(tmp_path / "times"), clock, first_step=7)
    [file] = (tmp_path / "times").iterdir()
    read = lambda: json.loads(file.read_text())
    assert (read()["started"], read()["seconds"], read()["step"]) == (1997.0, 3.0, 7)
    with clock("step"):
        now[0] += 9
    times.note(8)
    assert read()["step"] == 7
    now[0] += 1
    times.note(9)
    assert read() == {
        "started": 1997.0,
        "seconds": 13.0,
        "seconds_by_part": {"step": 9.0},
        "first_step": 7,
        "step": 9,
        "finished": False,
    }
    now[0] += 25
    times.note(30)
    assert read()["step"] == 30
    Timekeeper(epath.Path(tmp_path / "times"), Stopwatch(), first_step=9).write(10, finished=True)
    assert sorted(path.name[:5] for path in (tmp_path / "times").iterdir()) == ["00000", "00001"]
    Timekeeper(None, clock, first_step=0).write(1)  # where another process writes


def test_no_record_is_written_over_by_a_process_that_starts_at_once_or_after_one_was_removed(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path / "[times]")
    write_record(folder, 0)
    write_record(folder, 4)
    Timekeeper(folder, Stopwatch(), first_step=0)
    monkeypatch.setattr("train.run.goodput.matching", lambda *_: [folder / "00004.json"])  # as a second one saw it
    Timekeeper(folder, Stopwatch(), first_step=0)
    assert sorted(path.name[:5] for path in folder.iterdir()) == ["00000", "00004", "00005", "00005"]
    monkeypatch.undo()
    assert account(folder)["starts"] == 4


@pytest.mark.usefixtures("one_device")
def test_a_run_that_was_cut_off_and_resumed_accounts_for_its_life(recipe, tmp_path, monkeypatch):
    look_at = loop.look_at

    def crash(numbers, *arguments):
        if int(numbers["step"]) == 8:
            raise KeyboardInterrupt
        return look_at(numbers, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(goodput, "_EVERY_SECONDS", 0.0)
        patch.setattr(loop, "look_at", crash)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, str(tmp_path / "run"), CONSOLE, make_judge)  # step 5 is saved
    loop.train(recipe, str(tmp_path / "run"), CONSOLE, make_judge)
    summary = json.loads(RunFolder(tmp_path / "run").summary.read_text())["goodput"]
    parts = summary["seconds_by_part"]
    assert summary["starts"] == 2 and 0 < summary["share"] < 1
    assert sum(parts.values()) == pytest.approx(summary["seconds"])
    for name in ("start-up", "compile", "step", "repeated", "data", "checkpoint", "evaluation", "down"):
        assert parts[name] > 0, name
    loop.train(loop.dataclasses.replace(recipe, budget=Budget(steps=14)), str(tmp_path / "run"), CONSOLE, make_judge)
    assert json.loads(RunFolder(tmp_path / "run").summary.read_text())["goodput"]["starts"] == 3
