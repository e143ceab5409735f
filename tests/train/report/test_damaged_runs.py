"""Run folders that are damaged, given wrongly, or whose report cannot be written."""

import json
import math
import re
import shutil

import pytest

from tokenizer_lab.errors import UserError
from train.report.report import write_report


def without(name):
    return lambda folder: (folder / name).unlink()


def with_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_values(file, **changes):
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))


def with_lost_windows(folder):
    """As of `--rule paper`, before that was refused."""
    summary = json.loads((folder / "summary.json").read_text())
    summary["representation"]["statistics"]["lost_windows"] = 0.09
    (folder / "summary.json").write_text(json.dumps(summary))


POINT = '{"step": 1, "bytes_seen": 1, "flops": 1, "bits_per_byte": 1, "num_bytes": 1}\n'


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            without("config.json"),
            "byte is not a run: it has no config.json; make one with `toklab train RECIPE --run-dir ",
        ),
        (without("summary.json"), "byte has no summary.json: it still trains or was cut off; wait, or go on with `"),
        (shutil.rmtree, "byte is not a run: it does not exist; make"),
        (with_text("config.json", "{"), "config.json is not a readable run: "),
        (with_text("summary.json", "nope"), "summary.json is not a readable run: "),
        (with_text("summary.json", "[]"), "summary.json: [] should be an object; the file is damaged or "),
        (with_text("summary.json", "{}"), "summary.json lacks name, state, device, "),
        (with_values("summary.json", flops="many"), "summary.json: flops: 'many' should be a finite number or null"),
        (with_values("summary.json", flops=True), "flops: True should be a finite number or null"),
        (with_values("summary.json", flops=math.nan), "flops: nan should be a finite number or null"),
        (with_values("summary.json", flops=10**400), "000 should be a finite number or null"),
        (with_lost_windows, "byte is over ids that lose bytes, of which there are no bits per byte; leave it out"),
        (with_values("summary.json", name=["x"]), "summary.json: name: ['x'] should be a text"),
        (with_values("summary.json", parameters={"total": 1, "mlp": "x"}), "parameters: mlp: 'x' should be a "),
        (with_values("eval.json", interval_95=[1.0]), "eval.json: interval_95: [1.0] should be two numbers or null"),
        (with_values("eval.json", interval_95=[1.0, None]), "interval_95: [1.0, None] should be two numbers or null"),
        (with_values("eval.json", by_domain={"a\nb": {}}), "eval.json: by_domain: a b lacks bits_per_byte, "),
        (with_text("samples.json", "{}"), "samples.json: {} should be a list"),
        (with_text("metrics.jsonl", '{"step": 1}\n'), "metrics.jsonl line 1 lacks bytes_seen, "),
        (with_text("eval.jsonl", POINT + POINT[:20]), "eval.jsonl line 2 is damaged: "),
        (with_text("eval.jsonl", POINT[:20]), "; remove that line or train again"),
        (with_text("eval.jsonl", "[" * 100_000), "eval.jsonl line 1 is damaged: "),
        (with_text("eval.jsonl", "\n" + POINT), "eval.jsonl line 1 is damaged: "),
    ],
)
def test_damage_is_named_and_nothing_is_written(tmp_path, damage, says, make_run):
    folder = make_run(tmp_path / "byte", "byte")
    damage(folder)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        write_report([folder], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_half_written_last_line_of_an_unfinished_run_is_left_out(runs, tmp_path, edit):
    with (runs[2] / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 80')
    write_report(runs, tmp_path / "out")
    edit(runs[2] / "summary.json", state="finished")
    with pytest.raises(UserError, match="metrics.jsonl line 161 is damaged"):
        write_report(runs, tmp_path / "out")


def test_runs_given_wrongly(runs, tmp_path):
    with pytest.raises(UserError, match="no runs were given; name one folder or more"):
        write_report([], tmp_path / "out")
    with pytest.raises(UserError, match="byte was given 2 times"):
        write_report([runs[0], runs[1], runs[0].parent / "." / "byte"], tmp_path / "out")
    with pytest.raises(UserError, match="config.json is not a run: it is not a folder"):
        write_report([runs[0] / "config.json"], tmp_path / "out")


def test_out_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(UserError, match="cannot write .*; .*choose another folder") as caught:
            write_report(runs, out)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
