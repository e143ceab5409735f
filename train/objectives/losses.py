"""Losses and code lengths: nats of targets, z-loss, and the detector's cross-entropy with its figures.

Legend: B batch, T positions, N positions chosen in a row, D width of the model, V ids.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models.axes import current_placement
from tokenizer_lab.kernels.linear_cross_entropy import Layout, linear_cross_entropy
from train.objectives.chosen_positions import put_chosen
from train.objectives.objective import Batch, ratio


def token_nats(model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """-log p(target) and log Z at every position, f32[B, T]; meaningless where `segment_ids` is 0."""
    hidden_btd = model(batch["ids"], batch["segment_ids"], batch["positions"])
    return cross_entropy(hidden_btd, model.output_table, batch["targets"], model.vocab_size, along_sequence=True)


def cross_entropy(x_btd, table_vd, labels_bt, vocab_size, bias_v=None, *, along_sequence):
    """-log p(label) and log Z of labels along a sequence, which is sharded, or at chosen positions (i32[B, N]), which
    are not."""
    operation = functools.partial(linear_cross_entropy, x_btd, table_vd, labels_bt, bias_v, vocab_size=vocab_size)
    if (placement := current_placement()) is None:
        return operation()
    positions = placement.spec("batch", "sequence" if along_sequence else None)
    vocab = placement.activations["vocab"]
    assert not isinstance(vocab, tuple), vocab
    return operation(layout=Layout(placement.mesh, positions, vocab), implementation=placement.kernels)


def z_loss(logz_bt: jax.Array, weight_bt: jax.Array) -> jax.Array:
    """The sum of log(Z)^2 over positions, f32[] (PaLM, arXiv 2204.02311, section 5)."""
    return jnp.sum(weight_bt * jnp.square(logz_bt))


def detection_loss(logits_bt, ids_bt, batch, chosen_only):
    """The sum of detection losses, scaled to a mean over all positions, and the sums for the figures."""
    replaced_bt = (ids_bt != batch["ids"]).astype(jnp.float32)
    weights_bt = (batch["segment_ids"] > 0).astype(jnp.float32)
    scale = 1.0
    if chosen_only:
        weights_bt = put_chosen(
            jnp.zeros_like(weights_bt), batch["chosen"], batch["chosen_weights"], jnp.ones_like(batch["chosen_weights"])
        )
        scale = batch["chosen_scale"][0]
    nats = jnp.sum(weights_bt * optax.sigmoid_binary_cross_entropy(logits_bt, replaced_bt))
    return scale * nats, {
        "detection_nats": nats,
        "num_detected": jnp.sum(weights_bt),
        "num_replaced": jnp.sum(weights_bt * replaced_bt),
    }


def detection_figures(sums: dict[str, float]) -> dict[str, float | None]:
    """What the sums of `detection_loss` over some steps stand for."""
    share = ratio(sums["num_replaced"], sums["num_detected"])
    return {
        "detection_nats": ratio(sums["detection_nats"], sums["num_detected"]),
        "always_real_nats": binary_entropy(share),
        "replaced_share": share,
    }


def binary_entropy(share: float | None) -> float | None:
    """Nats a position of the detector that always says "real", knowing how many are not."""
    if share is None:
        return None
    return float(sum(part * -np.log(part) for part in (share, 1 - share) if part > 0))
