"""What the runs of an experiment cost, where they stand, and what a plan notes of them."""

import dataclasses
import json

import pytest
from etils import epath

from models.encoder import EncoderConfig
from tokenizer_lab.files import write_json
from train.compare import run_cost, run_plan
from train.compare.resolve import resolve
from train.compare.run_plan import make_plan
from train.compare.run_state import CUT_OFF, DONE, MISSING, UNSCORED, folder_of, other_runs_there
from train.experiment import Size
from train.objectives import Replaced
from train.optimizer import Budget
from train.recipe import to_json


@pytest.mark.parametrize(
    "budget, steps, flops",
    [(Budget(bytes=4000), 11, 11 * 8 * 48), (Budget(flops=1e6), 3, 3 * 8 * 48), (Budget(seconds=20.0), 5, 5 * 8 * 48)],
)
def test_the_cost_of_a_run_is_that_of_its_budget(experiment, text, monkeypatch, budget, steps, flops, measured):
    """At 1,000 FLOPs a position and 1e5 a second; the byte arm's step is of 8 x 48 positions and 376 bytes."""
    monkeypatch.setattr(run_cost, "model_flops_per_token", lambda recipe, vocab_size: {"total": 1000.0})
    run = resolve(dataclasses.replace(experiment, sizes=(Size(name="s", budget=budget),)), text, measured, [])[0]
    cost = run_cost.cost_of(run.recipe, measured["byte"], text, 0, MISSING, 1e5)
    assert (cost.steps, cost.flops) == (steps, flops * 1000.0) and cost.num_bytes == pytest.approx(
        steps * 376.3, rel=1e-3
    )
    held_out = text.corpora[0].documents("test").num_bytes
    evaluated = held_out + (steps // 6 + 1) * 500
    assert cost.flops_left == pytest.approx(flops * 1000 + evaluated / 0.98 * 1000 / 3)
    assert run_cost.cost_of(run.recipe, measured["byte"], text, steps, DONE, 1e5).flops_left == 0
    after_one = run_cost.cost_of(run.recipe, measured["byte"], text, 6, CUT_OFF, 1e5).flops_left
    assert after_one < cost.flops_left
    unknown = run_cost.cost_of(run.recipe, measured["byte"], text, 0, MISSING, None)
    assert (unknown.flops is None) == (budget.seconds is not None)


def test_the_cost_of_a_run_is_with_what_encodes_its_text_and_what_the_fit_took(experiment, text, monkeypatch, measured):
    """A budget of 1e6 FLOPs less 4e5 of the fit pays for two steps of 8 x 48 positions at 1,000 + 500 FLOPs."""
    monkeypatch.setattr(run_cost, "model_flops_per_token", lambda recipe, vocab_size: {"total": 1000.0})
    run = resolve(
        dataclasses.replace(experiment, sizes=(Size(name="s", budget=Budget(flops=1e6)),)), text, measured, []
    )[0]
    compressor = dataclasses.replace(measured["byte"], costs={"encode_flops_per_id": 500.0, "fit_flops": 4e5})
    cost, cut_off, unscored = (
        run_cost.cost_of(run.recipe, compressor, text, step, state, None)
        for step, state in ((0, MISSING), (1, CUT_OFF), (2, UNSCORED))
    )
    a_step, scoring_a_byte = 8 * 48 * 1500.0, 1000 / 3 / 0.98
    assert (cost.steps, cost.flops) == (2, 4e5 + 2 * a_step) and cost.flops_per_byte == pytest.approx(1500 / 0.98)
    held_out = text.corpora[0].documents("test").num_bytes
    assert cost.flops_left == pytest.approx(2 * a_step + (held_out + 500) * scoring_a_byte)
    assert cut_off.flops_left == pytest.approx(a_step + (held_out + 500) * scoring_a_byte)
    assert unscored.flops_left == pytest.approx(held_out * scoring_a_byte)


def test_runs_of_another_version_of_the_code_are_named(experiment, text, tmp_path, monkeypatch, measured):
    runs = resolve(experiment, text, measured, [])
    for run, code in zip(runs, ("ours", "theirs", "theirs")):
        path = folder_of(run, epath.Path(tmp_path)).job
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"code": code}))
    monkeypatch.setattr(run_plan, "code_fingerprint", lambda: "ours")
    [note] = make_plan(experiment, text, runs, measured, epath.Path(tmp_path)).notes
    assert note.startswith(
        "2 of 4 runs are of another version of the code (theirs, here ours): subword-xs-s0, byte-xs-s1; remove their"
        " folders"
    )


def test_a_folder_that_holds_another_run_is_named(experiment, text, tmp_path, measured):
    runs = resolve(experiment, text, measured, [])
    for run, budget in zip(runs, (Budget(bytes=4000), Budget(bytes=3000))):
        write_json(folder_of(run, epath.Path(tmp_path)).config, to_json(dataclasses.replace(run.recipe, budget=budget)))
    [problem] = other_runs_there(runs, epath.Path(tmp_path))
    assert "subword-xs-s0" in problem and "holds another run than the experiment's (budget:" in problem


def test_an_arm_without_bits_per_byte_is_told_of(experiment, text, tmp_path, measured, change):
    model = EncoderConfig(
        num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=48, compute_dtype="float32"
    )
    replaced = dataclasses.replace(experiment.arms[1].recipe, model=model, objective=Replaced(generator_share=0.5))
    experiment = change(experiment, 1, recipe=replaced)
    [note] = make_plan(experiment, text, resolve(experiment, text, measured, []), measured, epath.Path(tmp_path)).notes
    assert "arm subword: objective 'replaced' has no bits per byte" in note
