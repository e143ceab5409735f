"""Replaced-token detection (ELECTRA).

Legend: B batch, T positions, N positions chosen in a row, E width of the embedding tables, V ids.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from models.axes import current_placement
from models.encoder import Encoder, EncoderConfig, Heads
from tokenizer_lab.errors import UserError
from tokenizer_lab.kernels.sample_replacements import sample_replacements
from train.objectives.chosen_positions import OnChosenPositions, check_shares, masked_or_random, put_chosen
from train.objectives.heads import detected, dropout_of, predicted, score_predictions
from train.objectives.losses import detection_figures, detection_loss
from train.objectives.objective import Batch, Sums, num_positions, per_row, ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced(OnChosenPositions):
    """Tell which ids a generator has replaced: ELECTRA (Clark et al. 2020, arXiv 2003.10555, section 2).

    The generator predicts the chosen positions; its samples stand there when the discriminator looks at the text. A
    sample that is the id itself counts as real. No gradient goes through the samples.
    """

    kind: Literal["replaced"] = "replaced"
    generator_share: float = 0.25
    """Width of the generator as a share of the discriminator's."""
    masked_share: float = 0.85
    """Of the chosen positions, those that show the generator `[MASK]`; the others show their own id."""
    detection_weight: float = 50.0
    """Of the discriminator's mean cross-entropy beside the generator's."""
    detect_chosen_only: bool = False
    """Learn to detect at chosen positions only (the paper's ELECTRA 15%)."""

    def check(self, model: EncoderConfig, sequence_length: int) -> None:
        super().check(model, sequence_length)
        check_shares(self.masked_share, 0.0)
        if not 0 < self.generator_share <= 1:
            raise UserError(
                f"objective.generator_share is {self.generator_share}; it is more than 0 and at most 1, e.g. 0.25"
            )

    @property
    def heads(self) -> Heads:
        return Heads(predicts=True, detects=True, generator_share=self.generator_share)

    def _changed(self, model, labels_bn, row_seeds_b):
        return masked_or_random(labels_bn, row_seeds_b, model.vocab_size, self.masked_share, 0.0)

    def __call__(self, model: Encoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums: the loss, whose mean over positions is the paper's; positions; and what `figures`
        takes."""
        del rng
        weights_bn, nats_bn, samples_bn, replaced_bt = self._replace(model, batch, dropout_of(model, batch, 2))
        logits_bt = detected(model, batch, replaced_bt, dropout_of(model, batch, 3))
        detected_nats, sums = detection_loss(logits_bt, replaced_bt, batch, self.detect_chosen_only)
        predicted_nats = jnp.sum(weights_bn * nats_bn)
        sums |= {
            "predicted_nats": predicted_nats,
            "num_predicted": jnp.sum(weights_bn),
            "num_sampled_right": jnp.sum(weights_bn * (samples_bn == batch["labels"])),
        }
        return (
            batch["chosen_scale"][0] * predicted_nats + self.detection_weight * detected_nats,
            num_positions(batch),
            sums,
        )

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        del num_bytes
        return detection_figures(sums) | {
            "predicted_nats": ratio(sums["predicted_nats"], sums["num_predicted"]),
            "sampled_right": ratio(sums["num_sampled_right"], sums["num_predicted"]),
        }

    def score(self, model: Encoder, batch: Batch) -> Batch:
        """As `Masked.score`, of the generator; and `logits` f32[B, T] for what is `replaced` bool[B, T]."""
        scored = score_predictions(model, batch, by_generator=True)
        *_, replaced_bt = self._replace(model, batch, dropout_of(model, None, 0))
        return scored | {
            "logits": detected(model, batch, replaced_bt, dropout_of(model, None, 0)),
            "replaced": replaced_bt != batch["ids"],
        }

    def _replace(self, model, batch, dropout):
        """Weights, nats and samples at the chosen positions, [B, N] each, and the ids i32[B, T] with the samples put
        in."""
        x_bne = predicted(model, batch, dropout, by_generator=True)
        labels_bn, num_chosen = batch["labels"], batch["labels"].shape[1]
        seeds = per_row(batch["row_seeds"], 4, lambda key: jax.random.bits(key, (num_chosen, 2), jnp.uint32))
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        nats, _, samples = _sample(
            flat(x_bne),
            model.embeddings.output_table,
            flat(labels_bn),
            flat(seeds),
            model.vocab_head.bias[...],
            model.vocab_size,
        )
        samples_bn = jax.lax.stop_gradient(samples).reshape(labels_bn.shape)
        weights_bn = batch["chosen_weights"]
        return (
            weights_bn,
            nats.reshape(labels_bn.shape),
            samples_bn,
            put_chosen(batch["ids"], batch["chosen"], weights_bn, samples_bn),
        )


def _sample(x_ne, table_ve, labels_n, seeds_n2, bias_v, vocab_size):
    """`sample_replacements`, under `shard_map` where its kernel is one that XLA cannot split: on a mesh of several
    TPUs."""
    placement = current_placement()
    operation = functools.partial(
        sample_replacements, vocab_size=vocab_size, implementation=placement.kernels if placement else "auto"
    )
    if placement is None or placement.mesh.size == 1 or placement.mesh.devices.flat[0].platform != "tpu":
        return operation(x_ne, table_ve, labels_n, seeds_n2, bias_v)
    rows, everywhere = placement.spec("batch"), jax.sharding.PartitionSpec()
    return jax.shard_map(
        operation,
        mesh=placement.mesh,
        in_specs=(rows, everywhere, rows, rows, everywhere),
        out_specs=rows,
        check_vma=False,
    )(x_ne, table_ve, labels_n, seeds_n2, bias_v)
