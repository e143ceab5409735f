"""Losses, against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.axes import parameter
from train.objectives import Causal

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
