"""What a model is trained to do: functions (model, batch, rng) -> sums.

Sums and not means, so that dividing once at the end is right whatever the padding, the gradient accumulation and the number of
devices. Batches are those of `data/rows.py`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from models.axes import current_placement
from tokenizer_lab.kernels.linear_cross_entropy import choose_num_chunks, linear_cross_entropy

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Causal:
    """Predict each next id from those before it in its document."""

    z_loss: float = 1e-4
    """Weight of log(Z)^2, which keeps the softmax's denominator near 1 (PaLM, arXiv 2204.02311, section 5)."""

    def __call__(self, model: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns f32[] sums over positions: the loss, the positions that count, and {"nats": their code length}."""
        del rng  # nothing here is drawn
        nats_bt, logz_bt = token_nats(model, batch)
        weight_bt = (batch["segment_ids"] > 0).astype(jnp.float32)
        nats = jnp.sum(weight_bt * nats_bt)
        loss = nats + self.z_loss * jnp.sum(weight_bt * jnp.square(logz_bt))
        return loss, jnp.sum(weight_bt), {"nats": nats}


def token_nats(model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """-log p(target) and log Z at every position, f32[B, T]; meaningless where `segment_ids` is 0."""
    hidden_btd = model(batch["ids"], batch["segment_ids"], batch["positions"])
    placement = current_placement()
    mesh_shape = placement.mesh.shape if placement else {}
    num_chunks = choose_num_chunks(*batch["ids"].shape, model.output_table.shape[0], num_devices=placement.mesh.size if placement else 1,
                                   sequence_shards=mesh_shape.get("sequence", 1))
    return linear_cross_entropy(hidden_btd, model.output_table, batch["targets"], vocab_size=model.vocab_size, num_chunks=num_chunks)
