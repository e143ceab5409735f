"""Masked language modelling (BERT) and swapped language modelling.

Legend: B batch, N positions chosen in a row, E width of the embedding tables.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from models.encoder import Encoder, EncoderConfig, Heads
from train.objectives.chosen_positions import OnChosenPositions, check_shares, masked_or_random
from train.objectives.heads import dropout_of, predicted, score_predictions
from train.objectives.losses import cross_entropy
from train.objectives.objective import Batch, Sums, num_positions, ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(OnChosenPositions):
    """Predict the ids at chosen positions, most of which are hidden (BERT; Devlin et al. 2019, arXiv 1810.04805,
    section 3.1).

    With masked_share 0 and random_share 1 it is swapped language modelling, SLM (Di Liello et al. 2022, arXiv
    2210.13536).
    """

    kind: Literal["masked"] = "masked"
    masked_share: float = 0.8
    """Of the chosen positions, those that show `[MASK]`."""
    random_share: float = 0.1
    """Of the chosen positions, those that show an id drawn uniformly; what is left shows its own id."""

    def check(self, model: EncoderConfig, sequence_length: int) -> None:
        super().check(model, sequence_length)
        check_shares(self.masked_share, self.random_share)

    @property
    def heads(self) -> Heads:
        return Heads(predicts=True)

    def _changed(self, model, labels_bn, row_seeds_b):
        return masked_or_random(labels_bn, row_seeds_b, model.vocab_size, self.masked_share, self.random_share)

    def __call__(self, model: Encoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums: the loss, whose mean over positions is that over chosen ones; positions; and what
        `figures` takes."""
        del rng
        x_bne = predicted(model, batch, dropout_of(model, batch, 2))
        assert model.vocab_head is not None
        nats_bn, _ = cross_entropy(
            x_bne,
            model.embeddings.output_table,
            batch["labels"],
            model.vocab_size,
            model.vocab_head.bias[...],
            along_sequence=False,
        )
        weights_bn = batch["chosen_weights"]
        sums = {"predicted_nats": jnp.sum(weights_bn * nats_bn), "num_predicted": jnp.sum(weights_bn)}
        return jnp.sum(batch["chosen_scale"][:, None] * weights_bn * nats_bn), num_positions(batch), sums

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        del num_bytes
        return {"predicted_nats": ratio(sums["predicted_nats"], sums["num_predicted"])}

    def score(self, model: Encoder, batch: Batch) -> Batch:
        """What held-out text is judged by: `predicted_nats` f32[B, N] and whether the likeliest id is right,
        `predicted_right`."""
        return score_predictions(model, batch)
