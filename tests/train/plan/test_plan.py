"""`toklab plan`: what it refuses, its arithmetic, what it says of a program that exists, and one real compilation for a
TPU."""

import dataclasses
import importlib.util
import json
import math

import jax
import pytest
import rich.console

from models import attention, layers
from models.decoder import DecoderConfig
from tokenizer_lab.errors import UserError
from train.commands import command_line
from train.commands.plan import write_results
from train.hosts.hardware import CHIPS
from train.loop import open_batches
from train.plan import plan
from train.plan.compiled_step import compile_step, out_of_memory
from train.plan.plan import (
    ASSUMED,
    Pod,
    compared,
    estimate,
    find_ids,
    least_bytes,
    make_plan,
    memory,
    on_pod,
    search,
    summarize_plan,
)
from train.plan.tables import plan_lines
from train.recipe import DataConfig, load_recipe
from train.setup import model_flops_per_token, set_up
from train.sharding import MeshConfig

GIB = 2**30
PROGRAM = {
    "flops": 197e12,
    "attention_flops": 0.0,
    "loops_counted_once": 1e12,
    "uncounted_kernels": [],
    "hbm_bytes": 0.4 * 819e9,
    "collectives": [
        {"kind": "all-gather", "network": "ici", "count": 3, "bytes": 0.2 * 200e9},
        {"kind": "all-reduce", "network": "dcn", "count": 1, "bytes": 0.1 * 3.125e9},
    ],
}


def compiled(*, temp_gib: float = 4.0, fits: bool = True, **fields) -> dict:
    """An answer of `compile_step` of a state of 3 GiB."""
    answer = {
        "mesh": {"replica": 1, "fsdp": 4, "tensor": 1, "sequence": 1},
        "slices_of_replicas": [[0]],
        "compile_seconds": 1.0,
        "warnings": [],
        "bytes": {"parameters": GIB, "optimizer": 2 * GIB, "state": 3 * GIB, "batch": 1000},
    }
    if not fits:
        return (
            answer
            | {
                "out_of_memory": {
                    "needed": round((3 + temp_gib) * GIB),
                    "available": round(15.75 * GIB),
                    "temporaries_only": False,
                }
            }
            | fields
        )
    return (
        answer
        | {
            "memory": {
                "argument": 3 * GIB + 1000,
                "output": 3 * GIB + 8,
                "alias": 3 * GIB,
                "temp": round(temp_gib * GIB),
                "generated_code": 5000,
            },
            "program": PROGRAM,
        }
        | fields
    )


@pytest.fixture
def small(make_recipe):
    return make_recipe(representation="subword", data=DataConfig(corpora=("none",), batch_rows=32, sequence_length=256))


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
        "a batch of 100 rows cannot be split into 16 devices (replica x fsdp); use a multiple of 16, e.g. 96"
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


def test_without_libtpu_the_extra_is_named(monkeypatch, small):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tokenizer-lab\[tpu\]'"):
        make_plan(small, Pod("v5e:2x2"), ASSUMED["byte"])


@pytest.mark.parametrize(
    "program, told",
    [
        (
            "import os, sys; print('F0000 layout.h:341 Check failed: rank', file=sys.stderr); os.abort()",
            "was ended by SIGABRT on tiny for v5e:2x2: F0000 layout.h:341",
        ),
        (
            "raise NotImplementedError('Unimplemented primitive')",
            "failed on tiny for v5e:2x2: NotImplementedError: Unimplemented primitive",
        ),
    ],
)
def test_a_compiler_that_dies_is_one_line(monkeypatch, small, program, told):
    run = plan.subprocess.run
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(
        plan.subprocess, "run", lambda command, **keywords: run([command[0], "-c", program], **keywords)
    )
    with pytest.raises(UserError) as error:
        make_plan(small, Pod("v5e:2x2"), ASSUMED["byte"])
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_slice_is_a_replica_unless_the_mesh_says_otherwise(small):
    assert on_pod(small, Pod("v5e:2x4", 2)).mesh == MeshConfig(replica=2)
    own = dataclasses.replace(small, mesh=MeshConfig(replica=4, fsdp=4))
    assert on_pod(own, Pod("v5e:2x4", 2)) == own
    assert (
        Pod("v5p:8x8x16", 2).num_devices == 2048
        and Pod("tpu7x:2x2x2").num_devices == 16
        and Pod("tpu7x:2x2x2").num_chips == 8
    )
    assert Pod("v5p:8x8x16", 2).num_chips == 2048 and str(Pod("v5e:4x4", 2)) == "2 x v5e:4x4"


def test_ids_come_from_the_artifact_the_name_or_the_options(small, byte_artifact):
    assert find_ids(small) == ASSUMED["subword"]
    of_artifact = find_ids(dataclasses.replace(small, representation=str(byte_artifact)))
    assert (of_artifact.vocab_size, of_artifact.bytes_per_id) == (257, 1.0)
    given = find_ids(dataclasses.replace(small, representation="none"), 1000, 3.5)
    assert (given.vocab_size, given.bytes_per_id, given.source) == (1000, 3.5, "given")
    assert find_ids(small, bytes_per_id=4.1) == dataclasses.replace(
        ASSUMED["subword"], bytes_per_id=4.1, source="given"
    )
    with pytest.raises(UserError, match="above 0"):
        find_ids(small, 1000, -1)


def test_memory_is_told_by_kind_and_adds_up():
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


@pytest.mark.parametrize(
    "message, expected",
    [
        (
            (
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required (26.89G) exceeds available HBM"
                " (15.75G)."
            ),
            (26.89, 15.75, False),
        ),
        (
            (
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (2.5T)"
                " exceeds available HBM (95.74G)."
            ),
            (2560, 95.74, True),
        ),
        (
            (
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.01G of 15.75G hbm. Exceeded hbm"
                " capacity by 2.26G."
            ),
            (18.01, 15.75, False),
        ),
        ("INTERNAL: Mosaic failed to compile TPU kernel", None),
    ],
)
def test_the_compilers_complaint_of_memory_is_understood(message, expected):
    found = out_of_memory(message)
    assert (
        found and (round(found["needed"] / GIB, 2), round(found["available"] / GIB, 2), found["temporaries_only"])
    ) == expected


def test_time_is_between_all_at_once_and_one_after_the_other():
    found = estimate(
        {"model": 0.5 * 197e12, "program": PROGRAM["flops"]}, PROGRAM, CHIPS["v5e"], text_bytes_per_step=1.7e6
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
def test_what_does_not_fit_is_told_what_would_make_it_fit(small, fields, temp_gib, remedy):
    recipe = dataclasses.replace(small, model=dataclasses.replace(small.model, **fields))
    found = summarize_plan(recipe, Pod("v5e:2x2"), ASSUMED["subword"], compiled(temp_gib=temp_gib, fits=False))
    assert found["remedies"] == remedy
    console = rich.console.Console(width=300, record=True, quiet=False, file=open("/dev/null", "w"))
    for line in plan_lines(found):
        console.print(line)
    assert "does not fit" in (shown := console.export_text()) and remedy[0] in shown


def test_a_state_that_does_not_fit_is_told_how_many_chips_hold_it(small):
    large = compiled(
        temp_gib=45, fits=False, bytes={"parameters": 10 * GIB, "optimizer": 20 * GIB, "state": 30 * GIB, "batch": 0}
    )
    [remedy] = summarize_plan(small, Pod("v5e:2x2"), ASSUMED["subword"], large)["remedies"]
    assert "at least 11 chips a replica" in remedy  # 40 GiB over 4 chips of 15.75


def test_rows_of_every_representation_hold_the_same_text():
    recipe = load_recipe("decoder_1b")
    found = {ids.name: (other.data.sequence_length, ids) for other, ids in compared(recipe, ASSUMED["subword"])}
    assert found.keys() == ASSUMED.keys()
    assert found["subword"][0] == 2048 and found["byte"][0] == 9216
    texts = [length * ids.bytes_per_id for length, ids in found.values()]
    assert all(length % 256 == 0 for length, _ in found.values()) and max(texts) / min(texts) < 1.1


def test_a_search_leaves_out_what_cannot_fit_and_ranks_what_does(monkeypatch, small):
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
            else {"program": PROGRAM | {"flops": slower * candidate.mesh.tensor * PROGRAM["flops"]}}
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


def on_device(device, tree) -> int:
    """Bytes of a tree of arrays that really lie on a device."""
    return sum(
        shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == device
    )


def test_memory_is_what_is_allocated(make_recipe):
    """On 8 CPU devices: state and batch by shapes, the compiler's arguments and outputs, and the arrays themselves."""
    recipe = make_recipe(mesh=MeshConfig(fsdp=4, tensor=2))
    setup = set_up(recipe)
    found = compile_step(recipe, setup.representation.vocab_size, jax.devices())
    state = setup.program.init(jax.random.key_data(jax.random.key(0)))
    batch = open_batches(setup, state, lambda *_: None)()
    for device in jax.devices()[:2]:
        assert on_device(device, state) == found["bytes"]["state"]
        assert on_device(device, state.params) == found["bytes"]["parameters"]
        assert on_device(device, state.opt_state) == found["bytes"]["optimizer"]
        assert on_device(device, batch) == found["bytes"]["batch"]
    assert found["memory"]["argument"] == found["bytes"]["state"] + found["bytes"]["batch"]
    assert 0 <= found["memory"]["output"] - found["bytes"]["state"] < 4096  # the metrics
    assert least_bytes(dataclasses.replace(recipe, mesh=MeshConfig(fsdp=4, tensor=2)), 257, Pod("v5e:2x4")) < sum(
        found["memory"][kind] for kind in ("argument", "temp")
    )


@pytest.mark.parametrize("remat, num_microbatches", [("none", 2), ("full", 1)])
def test_flops_of_the_compiled_step_are_the_models(make_recipe, remat, num_microbatches, monkeypatch):
    """Layers and microbatches are loops; `full` computes a layer's forward pass again, but for its last product. The
    whole square is attended to."""
    for module in (attention, layers):  # as on more than one CPU device
        monkeypatch.setattr(module, "on_one_cpu", lambda: False)
    model = DecoderConfig(
        num_layers=3,
        embed_dim=256,
        num_heads=2,
        num_kv_heads=2,
        head_dim=128,
        mlp_dim=768,
        compute_dtype="float32",
        remat=remat,
    )
    recipe = make_recipe(
        model=model,
        data=DataConfig(corpora=("none",), batch_rows=8, sequence_length=256, num_microbatches=num_microbatches),
    )
    found = compile_step(recipe, 2048, jax.devices()[:1])
    flops = model_flops_per_token(recipe, 2048)
    scores = flops["attention_scores"] * (256 / 257 * 2 - 1)
    again = (
        (flops["attention_projections"] + flops["mlp"] * 2 / 3 + flops["attention_scores"] + scores) / 3
        if remat == "full"
        else 0
    )
    expected = (flops["total"] + scores + again) * 8 * 256
    assert found["program"]["flops"] == pytest.approx(expected, rel=0.01)
    assert found["program"]["loops_counted_once"] < 0.7 * expected


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
