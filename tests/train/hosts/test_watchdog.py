"""A run that hangs ends itself, and one that does not is left alone whatever its clock does."""

import threading
import time
import types

import pytest

from tokenizer_lab.errors import UserError
from train.exits import EXIT_HUNG
from train.hosts import watchdog
from train.hosts.watchdog import Deadlines, Watchdog


@pytest.fixture(autouse=True)
def quick_ticks(monkeypatch):
    monkeypatch.setattr(watchdog, "_TICK_SECONDS", 0.01)


def test_a_part_that_takes_too_long_ends_the_process_and_shows_what_every_thread_was_doing(capfd):
    ended = threading.Event()
    codes = []
    with Watchdog(Deadlines(step_seconds=1), lambda code: (codes.append(code), ended.set())) as enter:
        enter("step")
        ended.wait(60)
    complaint = capfd.readouterr().err
    assert codes == [EXIT_HUNG]
    assert complaint.startswith("toklab: step has taken longer than 1 s (--deadlines.step-seconds)")
    assert "test_a_part_that_takes_too_long" in complaint, "the stack of the main thread, which is waiting"


def test_every_part_has_its_own_time(monkeypatch):
    codes = []
    clock = scripted_clock(monkeypatch, tick_seconds=0.015)
    with Watchdog(Deadlines(step_seconds=1, save_seconds=1), codes.append) as enter:
        for _ in range(6):  # 0.6 s of it each
            for part in ("step", "save"):
                enter(part)
                clock.run(40)
        assert not codes
        clock.run(80)
    assert codes == [EXIT_HUNG]


def test_a_clock_that_jumps_and_a_process_that_was_stopped_trip_nothing(monkeypatch):
    codes = []
    clock = scripted_clock(monkeypatch, tick_seconds=3600.0)
    with Watchdog(Deadlines(), codes.append) as enter:
        enter("step")
        clock.run(50)
    assert not codes


def scripted_clock(monkeypatch, tick_seconds: float) -> types.SimpleNamespace:
    """A clock that goes on by `tick_seconds` whenever the watchdog looks at it; `run(n)` lets it look n times."""
    looks, lock = [0], threading.Condition()

    def monotonic() -> float:
        with lock:
            looks[0] += 1
            lock.notify_all()
            return looks[0] * tick_seconds

    def run(count: int) -> None:
        with lock:
            until = looks[0] + count
            assert lock.wait_for(
                lambda: looks[0] >= until or not any(thread.name == "watchdog" for thread in threading.enumerate()), 60
            )

    monkeypatch.setattr(watchdog, "time", types.SimpleNamespace(monotonic=monotonic))
    return types.SimpleNamespace(run=run)


def test_a_watchdog_that_is_not_needed_any_more_is_gone():
    with Watchdog(Deadlines(start_seconds=1), lambda code: pytest.fail("ended")):
        pass
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


@pytest.mark.parametrize("wrong", [{"step_seconds": 0}, {"save_seconds": float("inf")}, {"heartbeat_seconds": -1}])
def test_deadlines_that_are_none_are_refused(wrong):
    with pytest.raises(UserError, match="must be (a finite number|at least 1)$"):
        Deadlines(**wrong)
