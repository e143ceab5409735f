"""Next-id prediction, the objective of decoders.

Legend: B batch, T positions.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from data.rows import CausalRow, Row
from models.next_id import NextIdConfig
from train.objectives.losses import token_nats, z_loss
from train.objectives.objective import Batch, LearnsByGradients, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Causal(LearnsByGradients):
    """Predict each next id from those before it in its document."""

    kind: Literal["causal"] = "causal"
    z_loss: float = 1e-4
    """Weight of log(Z)^2, which keeps the softmax's denominator near 1 (PaLM, arXiv 2204.02311, section 5)."""

    model_family: ClassVar[Literal["decoder"]] = "decoder"
    layout: ClassVar[type[Row]] = CausalRow

    def check(self, model: NextIdConfig, sequence_length: int) -> None:
        """Raises UserError where a row or a model does not suit the objective."""

    def build(self, model: NextIdConfig, vocab_size: int, rngs: nnx.Rngs) -> nnx.Module:
        return model.build(vocab_size, rngs)

    def count_parameters(self, model: NextIdConfig, vocab_size: int) -> dict[str, int]:
        return model.count_parameters(vocab_size)

    def training_flops_per_token(self, model: NextIdConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
        return model.training_flops_per_token(vocab_size, sequence_length)

    def draw(self, model: Any, batch: Batch) -> Batch:
        del model
        return batch  # nothing here is drawn

    def __call__(self, model: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums over positions: the loss, the positions that count, and {"nats": their code length}."""
        del rng
        nats_bt, logz_bt = token_nats(model, batch)
        weight_bt = (batch["segment_ids"] > 0).astype(jnp.float32)
        nats = jnp.sum(weight_bt * nats_bt)
        loss = nats + self.z_loss * z_loss(logz_bt, weight_bt)
        return loss, jnp.sum(weight_bt), {"nats": nats}

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        """What sums over some steps stand for."""
        return {"bits_per_byte": sums["nats"] / math.log(2) / num_bytes if num_bytes else None}
