"""`toklab plan`: what it refuses, its arithmetic, and one real compilation for a TPU."""

import dataclasses
import importlib.util
import json
import math

import pytest
import rich.console

from tokenizer_lab.errors import UserError
from train.commands import command_line
from train.commands.plan import write_results
from train.hosts.hardware import CHIPS
from train.plan.plan import estimate, make_plan, memory, summarize_plan
from train.plan.pod import Pod
from train.plan.representations import ASSUMED
from train.plan.tables import plan_lines
from train.recipe import load_recipe
from train.sharding import MeshConfig

GIB = 2**30


def refused(capsys, *arguments: str) -> str:
    """The one line that `toklab plan` refuses the arguments with."""
    assert command_line.run(["plan", *arguments]) == 2, arguments
    complaint = capsys.readouterr().err
    assert complaint.startswith("toklab: ") and complaint.count("\n") == 1, complaint
    return complaint


def test_what_does_not_go_together_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for unknown in ("v5x:4x4", "v5p:4x4", "v5e:4x4x4", "v5e:0x4", "v5e", ""):
        complaint = refused(capsys, "decoder_1b", "--topology", unknown)
        assert f"no topology {unknown!r}" in complaint and "v5p:8x8x16" in complaint and "v6e:16x16" in complaint
    assert "did you mean v5e:16x16?" in refused(capsys, "decoder_1b", "--topology", "v5e16x16")
    assert "--slices is 0" in refused(capsys, "decoder_1b", "--topology", "v5e:4x4", "--slices", "0")
    complaint = refused(capsys, "decoder_1b", "--topology", "v5e:4x4", "--mesh.fsdp", "5")
    assert "a mesh of replica 1, fsdp 5, tensor 1, sequence 1 does not cover 16 devices" in complaint
    complaint = refused(capsys, "decoder_1b", "--topology", "v5e:4x4", "--data.batch-rows", "100")
    assert (
        "a batch of 100 rows cannot be split into 16 devices (replica x fsdp); use a multiple of 16, e.g. --data.batch"
        in complaint
    )
    complaint = refused(capsys, "decoder_1b", "--topology", "v5e:4x4", "--slices", "3", "--mesh.replica", "2")
    assert "mesh.replica is 2; make it a multiple of 3" in complaint
    complaint = refused(capsys, "decoder_1b", "--topology", "v5e:4x4", "--representation", "elsewhere")
    assert (
        "no artifact 'elsewhere'" in complaint
        and "byte, subword, subword_200k, equal_info" in complaint
        and "--vocab-size" in complaint
    )
    assert "the recipe comes first: toklab plan RECIPE --topology" in refused(capsys, "--topology", "v5e:4x4")
    assert "cannot write" in pytest.raises(UserError, write_results, tmp_path, {}).value.args[0]


def test_memory_is_told_by_kind_and_adds_up(compiled):
    found = memory(compiled(), CHIPS["v5e"])
    assert (found["parameters"], found["optimizer"], found["gradients"]) == (GIB, 2 * GIB, GIB)
    assert found["activations"] == 3 * GIB  # temporaries but for the gradients
    assert found["batch_and_padding"] == 1008 and found["program"] == 5000
    assert found["total"] == sum(
        found[kind] for kind in ("parameters", "optimizer", "gradients", "activations", "batch_and_padding", "program")
    )
    assert (
        found["fits"] and found["spare"] == found["available"] - found["total"] == round(15.75 * GIB) - 7 * GIB - 6008
    )
    too_much = memory(compiled(temp_gib=15.75, fits=False), CHIPS["v5e"])
    assert (
        not too_much["fits"]
        and too_much["spare"] == -3 * GIB
        and too_much["activations"] == pytest.approx(14.75 * GIB, abs=2000)
    )


def test_time_is_between_all_at_once_and_one_after_the_other(program):
    found = estimate(
        {"model": 0.5 * 197e12, "program": program["flops"]}, program, CHIPS["v5e"], text_bytes_per_step=1.7e6
    )
    parts = {name: found[f"{name}_seconds"] for name in ("compute", "hbm", "ici", "dcn")}
    assert parts == pytest.approx({"compute": 1.0, "hbm": 0.4, "ici": 0.2, "dcn": 0.1})
    assert (found["hidden_step_seconds"], found["exposed_step_seconds"]) == pytest.approx((1.0, 1.7))
    assert (found["hidden_mfu"], found["exposed_mfu"]) == pytest.approx((0.5, 0.5 / 1.7))
    assert found["exposed_text_bytes_per_second"] == pytest.approx(1e6)


@pytest.mark.parametrize(
    "fields, temp_gib, remedy",
    [
        (
            dict(remat="none"),
            20,
            ["--model.remat full", "--data.num-microbatches 2 (rows of a chip at a time: 4, now 8)"],
        ),
        (dict(remat="full"), 40, ["--data.num-microbatches 4 (rows of a chip at a time: 2, now 8)"]),
        (dict(remat="full"), 200, ["--mesh.sequence 4 --data.num-microbatches 32 (one row at a time, over 4 chips)"]),
    ],
)
def test_what_does_not_fit_is_told_what_would_make_it_fit(small, fields, temp_gib, remedy, compiled):
    recipe = dataclasses.replace(small, model=dataclasses.replace(small.model, **fields))
    found = summarize_plan(recipe, Pod("v5e:2x2"), ASSUMED["subword"], compiled(temp_gib=temp_gib, fits=False))
    assert found["remedies"] == remedy
    console = rich.console.Console(width=300, record=True, quiet=False, file=open("/dev/null", "w"))
    for line in plan_lines(found):
        console.print(line)
    assert "does not fit" in (shown := console.export_text()) and remedy[0] in shown


def test_a_state_that_does_not_fit_is_told_how_many_chips_hold_it(small, compiled):
    large = compiled(
        temp_gib=45, fits=False, bytes={"parameters": 10 * GIB, "optimizer": 20 * GIB, "state": 30 * GIB, "batch": 0}
    )
    [remedy] = summarize_plan(small, Pod("v5e:2x2"), ASSUMED["subword"], large)["remedies"]
    assert "at least 11 chips a replica" in remedy  # 40 GiB over 4 chips of 15.75


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs, is not installed"
)


TINY = (
    "--data.batch-rows",
    "8",
    "--data.sequence-length",
    "256",
    "--model.num-layers",
    "2",
    "--model.embed-dim",
    "128",
    "--model.num-heads",
    "2",
    "--model.num-kv-heads",
    "2",
    "--model.mlp-dim",
    "256",
)


@needs_libtpu
def test_a_plan_for_a_tpu_from_the_command_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_OPTIMIZATION_LEVEL", "O0")
    monkeypatch.chdir(tmp_path)
    assert (
        command_line.run(
            [
                "plan",
                "decoder_125m",
                "--topology",
                "v5e:2x2",
                "--vocab-size",
                "300",
                "--bytes-per-id",
                "2",
                "--json",
                "plan.json",
                "--hlo",
                "step.hlo",
                *TINY,
            ]
        )
        == 0
    ), capsys.readouterr().err
    shown, result = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert "fits" in shown and "all-gather" in shown and "MFU" in shown and "subword_200k" in shown
    found = result["plan"]
    assert (found["num_chips"], found["mesh"]["fsdp"], found["text_bytes_per_step"]) == (4, 4, 8 * 256 * 2)
    assert found["memory"]["fits"] and found["memory"]["available"] == CHIPS["v5e"].hbm_bytes
    assert 0 < found["flops"]["waste"] < 1.5 and found["flops"]["vocab_padding"] > 0  # 300 ids are padded to 384
    assert {one["network"] for one in found["collectives"]} == {"ici"}
    assert (tmp_path / "step.hlo").read_text().startswith("HloModule jit_train_step")
    assert {row["representation"] for row in result["representations"]} == set(ASSUMED)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology, num_slices", [("v5p:8x8x16", 1), ("v5e:16x16", 2)])
@pytest.mark.parametrize(
    "name, most_shards",
    [("decoder_125m", 256), ("decoder_350m", 1024), ("decoder_1b", 1024), ("decoder_8b", 1024), ("electra_small", 64)],
)
def test_the_recipes_of_real_sizes_fit_pods(name, most_shards, topology, num_slices):
    """Narrow models split over fewer chips than there are, and are replicated beyond."""
    recipe, pod = load_recipe(name), Pod(topology, num_slices)
    replicas = max(num_slices, pod.num_chips // most_shards)
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, batch_rows=1024), mesh=MeshConfig(replica=replicas)
    )
    found = make_plan(recipe, pod, ASSUMED["subword"])
    assert found["memory"]["fits"]
    assert {one["network"] for one in found["collectives"]} == ({"ici", "dcn"} if num_slices > 1 else {"ici"})
    assert 0 < found["estimate"]["exposed_mfu"] < found["estimate"]["hidden_mfu"] < 1 and math.isfinite(
        found["flops"]["waste"]
    )


@needs_libtpu
@pytest.mark.slow
def test_a_step_that_does_not_fit_is_a_verdict_and_no_error():
    recipe = load_recipe("decoder_8b")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, sequence_length=16_384))
    found = make_plan(recipe, Pod("v5e:16x16"), ASSUMED["byte"])
    assert not found["memory"]["fits"] and found["memory"]["spare"] < 0 and found["remedies"]
