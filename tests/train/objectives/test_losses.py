"""Losses, against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.axes import parameter
from train.objectives import Causal
from train.objectives.losses import detection_figures, detection_loss

ROWS, LENGTH, VOCAB_SIZE = 16, 16, 61


class Embedder(nnx.Module):
    """What the objective asks of a model, and no more."""

    vocab_size = VOCAB_SIZE

    def __init__(self):
        self.output_table = parameter(jax.random.normal(jax.random.key(0), (VOCAB_SIZE + 3, 4)), "vocab", "embed")

    def __call__(self, ids_bt, segment_ids_bt, positions_bt):
        return self.output_table[ids_bt]


def make_batch() -> dict[str, jax.Array]:
    """Rows of 1 to LENGTH real tokens."""
    rng = np.random.default_rng(0)
    ids, position = rng.integers(0, VOCAB_SIZE, (ROWS, LENGTH + 1)), np.arange(LENGTH)
    arrays = {
        "ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "segment_ids": position < rng.integers(1, LENGTH + 1, (ROWS, 1)),
        "positions": np.broadcast_to(position, (ROWS, LENGTH)),
    }
    return {name: jnp.asarray(value, jnp.int32) for name, value in arrays.items()}


def test_z_loss_adds_log_z_squared():
    model, batch = Embedder(), make_batch()
    table = np.array(model.output_table[...])
    logits = (table[batch["ids"]] @ table.T)[..., :VOCAB_SIZE]
    logz = np.log(np.exp(logits).sum(-1))
    nats = logz - np.take_along_axis(logits, np.array(batch["targets"])[..., None], axis=-1)[..., 0]
    real = np.array(batch["segment_ids"]) > 0
    for z_loss in (0.0, 0.5):
        loss, weight, aux = Causal(z_loss=z_loss)(model, batch, jax.random.key(0))
        np.testing.assert_allclose(aux["nats"], nats[real].sum(), rtol=1e-5)
        np.testing.assert_allclose(loss, (nats + z_loss * logz**2)[real].sum(), rtol=1e-5)
        assert weight == real.sum()


@pytest.mark.parametrize("chosen_only", [False, True])
def test_detection_by_hand(chosen_only):
    """Logits of 0 cost ln 2 each, whatever is true. Three positions are real text, of which the first was replaced."""
    batch = {
        "ids": jnp.array([[4, 5, 6, 0]]),
        "segment_ids": jnp.array([[1, 1, 2, 0]]),
        "chosen": jnp.array([[2, 0]]),
        "chosen_weights": jnp.array([[1.0, 0.0]]),  # the second is padding
        "chosen_scale": jnp.array([2.5]),
    }
    loss, sums = detection_loss(jnp.zeros((1, 4)), jnp.array([[9, 5, 6, 1]]), batch, chosen_only)
    detected, replaced, scale = (1, 0, 2.5) if chosen_only else (3, 1, 1.0)
    nats = detected * math.log(2)
    assert float(loss) == pytest.approx(scale * nats)
    assert {name: float(number) for name, number in sums.items()} == pytest.approx(
        {"detection_nats": nats, "num_detected": detected, "num_replaced": replaced}
    )


def test_figures_of_detection_by_hand():
    figures = detection_figures({"detection_nats": 5.0, "num_detected": 20.0, "num_replaced": 3.0})
    entropy = -0.15 * math.log(0.15) - 0.85 * math.log(0.85)
    assert figures == pytest.approx({"detection_nats": 0.25, "always_real_nats": entropy, "replaced_share": 0.15})
    assert set(detection_figures(dict.fromkeys(("detection_nats", "num_detected", "num_replaced"), 0)).values()) == {
        None
    }
