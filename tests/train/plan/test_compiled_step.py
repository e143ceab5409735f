"""What is said of a compiled step: its memory and FLOPs, against arrays that exist and the model."""

import dataclasses

import jax
import pytest

from models import attention, layers
from models.decoder import DecoderConfig
from train.batches import open_batches
from train.plan.compiled_step import compile_step, out_of_memory
from train.plan.pod import Pod
from train.plan.search import least_bytes
from train.recipe import DataConfig
from train.setup import model_flops_per_token, set_up
from train.sharding import MeshConfig

GIB = 2**30


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
    with open_batches(setup, state, lambda *_: None) as next_batch:
        batch = next_batch()
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
