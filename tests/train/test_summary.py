"""What a run has spent and where its time went, without a run."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from tokenizer_lab.byte import ByteRepresentation
from train import loop
from train.setup import Setup, model_flops_per_token
from train.summary import FINISHED, summarize


@pytest.fixture
def setup(recipe) -> Setup:
    """Of a representation behind which there is a model, as compressors have."""
    representation = ByteRepresentation().fitted("abc", {"fit_flops": 7e9, "encode_flops_per_id": 1e6})
    return Setup(recipe, representation, [], SimpleNamespace(size=1), None)


def test_the_bill_is_the_model_its_encoder_and_the_fit(setup, recipe):
    model, tokens = model_flops_per_token(recipe, 257)["total"], 8 * 32
    assert setup.flops_per_token["total"] == pytest.approx(model + 1e6)
    assert sum(count for name, count in setup.flops_per_token.items() if name != "total") == pytest.approx(model + 1e6)
    assert setup.flops_per_step == pytest.approx((model + 1e6) * tokens)
    assert setup.flops(5) == pytest.approx(7e9 + 5 * (model + 1e6) * tokens)


def test_utilization_is_of_the_model_alone_and_the_budget_of_everything(setup, recipe):
    model = model_flops_per_token(recipe, 257)["total"] * 8 * 32
    assert setup.model_flops_per_step == pytest.approx(model)
    logged = []
    metrics = {"over": False, "step": 3, "bytes_seen": (0, 100), "num_bytes": (3, 9), "skipped_in_a_row": 0}
    arrays = {name: loop.np.asarray(value) for name, value in metrics.items()}
    log = SimpleNamespace(step=lambda numbers, data_seconds: logged.append(numbers))
    assert not loop.look_at(arrays, setup, log, loop.Stopwatch())
    assert logged[0]["model_flops"] == pytest.approx(model) and logged[0]["flops"] == pytest.approx(setup.flops(3))
    assert logged[0]["tokens_seen"] == 3 * 8 * 32 and logged[0]["bytes_seen"] == 100
    assert logged[0]["num_bytes"] == (3 << 30) + 9


def test_rates_and_shares_are_of_the_time_without_evaluations(setup):
    state = SimpleNamespace(step=10, bytes_seen=(0, 5000), skipped_steps=1, cursors=jnp.zeros((8, 3), jnp.int32))
    parts = {"step": 6.0, "data": 1.0, "evaluation": 2.0, "last evaluation": 50.0}
    summary = summarize(setup, state, FINISHED, 4, 2000, 10.0, parts)
    assert summary["outside_step_share"] == pytest.approx(0.25), "2 of 8 seconds"
    assert summary["bytes_per_second"] == pytest.approx(2000 / 8)
    assert summary["tokens_per_second"] == pytest.approx(4 * 8 * 32 / 8)
    assert summary["flops"] == pytest.approx(setup.flops(10)) and summary["skipped_steps"] == 1
    assert summary["flops_per_byte"] == pytest.approx(setup.flops_per_token["total"] * 10 * 8 * 32 / 5000)
