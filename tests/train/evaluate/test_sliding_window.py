"""`toklab eval --stride`: another figure than that of pieces, in files of its own."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import rich.console

from data.encoder_rows import EncoderRow
from tokenizer_lab.errors import UserError
from train.evaluate import bits_per_byte
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.report.runs import read_run

QUIET = rich.console.Console(quiet=True)


def test_a_sliding_window_has_files_and_figures_of_its_own(make_recipe, one_device, tmp_path):
    run = tmp_path / "run"
    train(make_recipe(), str(run), QUIET, make_judge)
    by_pieces = bits_per_byte.evaluate_run(str(run), None, lambda *_: None)
    before = {path: path.read_bytes() for path in run.glob("eval*")}
    by_window = bits_per_byte.evaluate_run(str(run), None, lambda *_: None, stride=3)
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads((run / "eval_stride.json").read_text()) == by_window
    assert by_window["stride"] == 3 and by_window["num_bytes"] == by_pieces["num_bytes"]
    assert by_window["bits_per_byte"] != by_pieces["bits_per_byte"]
    arm = read_run(run)
    assert arm.row["bits_per_byte"] == by_pieces["bits_per_byte"]
    assert arm.row["bits_per_byte_by_window"] == by_window["bits_per_byte"] and arm.row["window_stride"] == 3
    length = make_recipe().data.sequence_length
    with pytest.raises(UserError, match=f"--stride is {length + 1}; give 1 to {length}"):
        bits_per_byte.evaluate_run(str(run), None, lambda *_: None, stride=length + 1)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"data": {"piece_length": 8}}, "trained on pieces of 8 positions"),
        ({"objective": SimpleNamespace(layout=EncoderRow)}, "the run is an encoder"),
    ],
)
def test_runs_that_a_sliding_window_does_not_fit_are_refused(recipe, change, told):
    data = dataclasses.replace(recipe.data, **change.get("data", {}))
    run = SimpleNamespace(objective=change.get("objective", recipe.objective), data=data)
    with pytest.raises(UserError, match=f"--stride .*{told}"):
        bits_per_byte._check_stride(run, 3)
