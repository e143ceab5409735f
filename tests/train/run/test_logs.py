"""What a line of the log says, by a clock that the test sets, and where it goes."""

import io
import json
from types import SimpleNamespace

import jax
import pytest
import rich.console

from train.run import logs
from train.run.folder import RunFolder
from train.run.logs import LoggingConfig, RunLog


class Board:
    """TensorBoard's writer; keeps what all of them are given."""

    points: list[tuple[str, float, int]] = []

    def __init__(self, *_, **__):
        self.points.clear()

    def add_scalar(self, name, value, step):
        self.points.append((name, value, step))

    def close(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the log's clock shows; two chips of a kind whose peak is known."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    monkeypatch.setattr(jax, "devices", lambda *_: [SimpleNamespace(device_kind="TPU v4")] * 2)
    return now


@pytest.fixture
def log(tmp_path, monkeypatch, clock):
    monkeypatch.setattr("tensorboardX.SummaryWriter", Board)
    figures = lambda sums, num_bytes: {"bits_per_byte": sums["nats"] / num_bytes}
    run = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    options, console = LoggingConfig(every_steps=2), rich.console.Console(file=io.StringIO())
    with RunLog(run, options, {"name": "tiny"}, figures, console, 0) as log:
        yield log


def numbers(step: int, **other) -> dict:
    return {
        "step": step,
        "num_bytes": 300,
        "tokens": 100,
        "sums": {"nats": 600.0},
        "loss": float(step),
        "bytes_seen": 300 * step,
        "tokens_seen": 100 * step,
        "flops": 1e12 * step,
        "model_flops": 55e12,
        "share": step / 10,
        "learning_rate": 0.1,
        "grad_norm": 1.0,
        "skipped_steps": 0,
    } | other


def lines_of(tmp_path, name: str) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]


def test_rates_are_over_the_steps_of_a_line(log, clock, tmp_path):
    clock.seconds += 3
    log.step(numbers(1), data_seconds=0.5)
    clock.seconds += 1
    log.step(numbers(2), data_seconds=1.0)
    clock.seconds += 2
    log.step(numbers(3), data_seconds=1.0)
    log.write_pending()
    first, second = lines_of(tmp_path, "metrics.jsonl")
    assert (first["step"], first["loss"], first["bits_per_byte"]) == (2, 1.5, 2.0)
    assert (first["bytes_per_second"], first["tokens_per_second"], first["step_seconds"]) == (150.0, 50.0, 2.0)
    assert first["data_wait_seconds"] == 0.5 and second["data_wait_seconds"] == 0.0
    assert first["mfu"] == pytest.approx(2 * 55e12 / 4 / (2 * 275e12))
    assert second["bytes_per_second"] == 150.0 and second["mfu"] == pytest.approx(55e12 / 2 / (2 * 275e12))


def test_what_is_done_in_a_pause_is_not_in_the_rates(log, clock, tmp_path):
    clock.seconds += 2
    log.step(numbers(1), data_seconds=0.0)
    with log.paused():
        clock.seconds += 1000
    clock.seconds += 2
    log.step(numbers(2), data_seconds=0.0)
    [line] = lines_of(tmp_path, "metrics.jsonl")
    assert line["step_seconds"] == 2.0 and line["bytes_per_second"] == 150.0


def test_every_number_goes_to_tensorboard_under_its_step(log, clock, tmp_path):
    for step in (7, 8):
        clock.seconds += 1
        log.step(numbers(step), data_seconds=0.0)
    log.evaluation({"step": 8, "bytes_seen": 2400, "flops": 8e12, "bits_per_byte": 2.5, "num_bytes": 99})
    [line], [evaluation] = lines_of(tmp_path, "metrics.jsonl"), lines_of(tmp_path, "eval.jsonl")
    expected = {name: value for name, value in line.items() if name != "step"}
    expected |= {f"held_out/{name}": value for name, value in evaluation.items() if name != "step"}
    assert {name: value for name, value, _ in Board.points} == expected
    assert {step for _, _, step in Board.points} == {8}


def test_a_figure_that_is_not_finite_is_null_and_no_point_of_tensorboard(log, clock, tmp_path):
    for step in (1, 2):
        clock.seconds += 1
        log.step(numbers(step, grad_norm=float("nan")), data_seconds=0.0)
    [line] = lines_of(tmp_path, "metrics.jsonl")
    assert line["grad_norm"] is None
    assert "grad_norm" not in {name for name, _, _ in Board.points}
