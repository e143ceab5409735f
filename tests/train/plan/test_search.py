"""The search for a layout that fits a pod."""

import dataclasses

import pytest

from tokenizer_lab.errors import UserError
from train.plan import plan
from train.plan.pod import Pod
from train.plan.representations import ASSUMED
from train.plan.search import search


def test_a_search_leaves_out_what_cannot_fit_and_ranks_what_does(monkeypatch, small, compiled, program):
    """By a made-up compiler in which remat saves and costs, and many rows at a time need memory."""
    recipe = dataclasses.replace(small, model=dataclasses.replace(small.model, num_layers=400))
    cost, tried, steps = {"none": (6, 1.0), "dots": (3, 1.1), "full": (1, 1.3)}, [], []

    def compile_ahead(candidate, vocab_size, pod, hlo_file=None):
        gib, slower = cost[candidate.model.remat]
        rows = 32 // (candidate.mesh.fsdp * candidate.data.num_microbatches)
        tried.append((candidate.mesh.tensor, candidate.data.num_microbatches, candidate.model.remat))
        mesh = {axis: getattr(candidate.mesh, axis) for axis in ("replica", "fsdp", "tensor", "sequence")}
        return compiled(temp_gib=gib * rows, fits=3 + gib * rows < 15.75, mesh=mesh) | (
            {}
            if 3 + gib * rows >= 15.75
            else {"program": program | {"flops": slower * candidate.mesh.tensor * program["flops"]}}
        )

    monkeypatch.setattr(plan, "compile_ahead", compile_ahead)
    found = search(recipe, Pod("v5e:2x2"), ASSUMED["subword"], lambda done, total: steps.append((done, total)))
    assert {tensor for tensor, *_ in tried} == {1, 2}
    assert (1, 8, "full") in tried and (1, 1, "full") in tried
    assert (
        (1, 4, "none") in tried and (1, 2, "none") in tried and (1, 1, "none") not in tried
    )  # 2 rows at a time did not fit
    assert found.num_compiled == len(tried) and found.failures == [] and steps[-1][0] == steps[-1][1] >= len(tried)
    seconds = [one["estimate"]["exposed_step_seconds"] for one in found.plans]
    assert seconds == sorted(seconds) and found.plans[0]["remat"] == "none" and found.plans[0]["mesh"]["tensor"] == 1
    impossible = dataclasses.replace(recipe, model=dataclasses.replace(small.model, num_layers=3_000_000))
    with pytest.raises(UserError, match="none of 24 ways to lay tiny out over v5e:2x2 can fit"):
        search(impossible, Pod("v5e:2x2"), ASSUMED["subword"], lambda done, total: None)
