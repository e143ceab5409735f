"""What objectives of encoders share: which positions of a row are chosen, and what stands there.

Legend: B batch, T positions, N positions chosen in a row.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from data.encoder_rows import MIN_LENGTH, EncoderRow
from data.rows import Row
from models import encoder
from models.encoder import Encoder, EncoderConfig, Heads
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import MASK, NUM_ENCODER_IDS
from train.objectives.objective import Batch, LearnsByGradients, per_row


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnChosenPositions(LearnsByGradients):
    """What objectives of encoders have in common: some positions of a row are chosen, and their ids changed or asked
    for.

    Subclasses say which heads they put on the encoder.
    """

    chosen_share: float = 0.15
    """Of a row's positions, `[CLS]` and `[SEP]` counted but never chosen."""
    with_replacement: bool = False
    """Draw positions as google-research/electra does, where a position may come out twice (here it counts once)."""

    model_family: ClassVar[Literal["encoder"]] = "encoder"
    layout: ClassVar[type[Row]] = EncoderRow

    @property
    def heads(self) -> Heads:
        raise NotImplementedError

    def check(self, model: EncoderConfig, sequence_length: int) -> None:
        if not 0 < self.chosen_share <= 1:
            raise UserError(
                f"objective.chosen_share is {self.chosen_share}; it is a share of the positions, more than 0 and at"
                " most 1, e.g. 0.15"
            )
        if sequence_length < MIN_LENGTH:
            raise UserError(
                f"data.sequence_length is {sequence_length}; an encoder's rows have at least {MIN_LENGTH} positions"
            )
        if max_chosen(self.chosen_share, sequence_length) < 1:
            raise UserError(
                f"objective.chosen_share {self.chosen_share} of {sequence_length} positions leaves nothing to learn"
                f" from; use at least {1 / sequence_length:.2g}, or longer sequences"
            )
        if model.published and sequence_length > model.max_positions:
            raise UserError(
                f"data.sequence_length is {sequence_length} and the model has {model.max_positions} learned positions; "
                "lower the one or raise model.max_positions"
            )
        share = self.heads.generator_share
        if (
            share
            and model.embed_dim * share != (scaled := model.scaled(share)).embed_dim
            or share
            and scaled.mlp_dim < 1
        ):
            raise UserError(
                f"objective.generator_share {share} of a width of {model.embed_dim} is no whole number; use e.g. 0.25"
            )

    def build(self, model: EncoderConfig, vocab_size: int, rngs: nnx.Rngs) -> Encoder:
        return Encoder(model, vocab_size, self.heads, rngs=rngs)

    def count_parameters(self, model: EncoderConfig, vocab_size: int) -> dict[str, int]:
        return encoder.count_parameters(model, vocab_size + NUM_ENCODER_IDS, self.heads)

    def training_flops_per_token(self, model: EncoderConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
        share = max_chosen(self.chosen_share, sequence_length) / sequence_length
        return encoder.training_flops_per_token(model, vocab_size + NUM_ENCODER_IDS, sequence_length, self.heads, share)

    def draw(self, model: Encoder, batch: Batch) -> Batch:
        """The batch with what is drawn for it, all a function of each row and its seed (and, for clusters, of their
        confusions so far).

        Adds `chosen` i32[B, N] positions with their `labels` i32[B, N] and `chosen_weights` f32[B, N] (0 where a row
        has fewer), the `inputs` i32[B, T] with those positions changed, and `chosen_scale` f32[B], by which a sum over
        chosen positions becomes one whose mean over all positions is the mean over the chosen ones.
        """
        vocab_size = model.vocab_size
        choose = choose_positions_again if self.with_replacement else choose_positions
        chosen_bn, chosen_weights_bn = choose(batch, vocab_size, self.chosen_share)
        labels_bn = jnp.take_along_axis(batch["ids"], chosen_bn, axis=1)
        inputs_bt = put_chosen(
            batch["ids"], chosen_bn, chosen_weights_bn, self._changed(model, labels_bn, batch["row_seeds"])
        )
        labels_bn = jnp.where(chosen_weights_bn > 0, labels_bn, 0)  # an encoder's own ids are nothing to predict
        scale = jnp.sum(batch["segment_ids"] > 0) / jnp.maximum(1, jnp.sum(chosen_weights_bn))
        return batch | {
            "chosen": chosen_bn,
            "labels": labels_bn,
            "chosen_weights": chosen_weights_bn,
            "inputs": inputs_bt,
            "chosen_scale": jnp.full(len(labels_bn), scale),
        }

    def _changed(self, model: Encoder, labels_bn: jax.Array, row_seeds_b: jax.Array) -> jax.Array:
        """What stands at the chosen positions in place of the labels."""
        raise NotImplementedError


def max_chosen(share: float, sequence_length: int) -> int:
    """N: the most positions that are chosen in a row (pretrain_helpers of google-research/electra)."""
    return min(sequence_length, int((share + 0.005) * sequence_length))


def choose_positions(batch: Batch, vocab_size: int, share: float) -> tuple[jax.Array, jax.Array]:
    """Positions i32[B, N] drawn without replacement, none of an encoder's own ids nor padding, and weights f32[B,
    N]."""
    candidates_bt, number_b, limit = _candidates(batch, vocab_size, share)
    noise_bt = per_row(batch["row_seeds"], 0, lambda key: jax.random.uniform(key, candidates_bt.shape[1:]))
    noise_bn, chosen_bn = jax.lax.top_k(jnp.where(candidates_bt, noise_bt, -1.0), limit)
    return chosen_bn, ((jnp.arange(limit) < number_b[:, None]) & (noise_bn >= 0)).astype(jnp.float32)


def choose_positions_again(batch: Batch, vocab_size: int, share: float) -> tuple[jax.Array, jax.Array]:
    """As `choose_positions`, drawn with replacement: a position's second draw has weight 0."""
    candidates_bt, number_b, limit = _candidates(batch, vocab_size, share)
    logits_bt = jnp.where(candidates_bt, 0.0, -jnp.inf)
    noise_bnt = per_row(batch["row_seeds"], 0, lambda key: jax.random.gumbel(key, (limit, candidates_bt.shape[1])))
    chosen_bn = jnp.argmax(logits_bt[:, None] + noise_bnt, axis=-1).astype(jnp.int32)
    earlier_bnn = (chosen_bn[:, :, None] == chosen_bn[:, None, :]) & jnp.tril(jnp.ones((limit, limit), bool), -1)
    valid_bn = (
        (jnp.arange(limit) < number_b[:, None])
        & jnp.any(candidates_bt, axis=1)[:, None]
        & ~jnp.any(earlier_bnn, axis=-1)
    )
    return chosen_bn, valid_bn.astype(jnp.float32)


def _candidates(batch: Batch, vocab_size: int, share: float) -> tuple[jax.Array, jax.Array, int]:
    """Positions that may be chosen bool[B, T], how many of them are to be i32[B], and the most that can be."""
    real_bt, limit = batch["segment_ids"] > 0, max_chosen(share, batch["ids"].shape[1])
    number_b = jnp.clip(jnp.round(share * jnp.sum(real_bt, axis=1)), 1, limit)
    return real_bt & (batch["ids"] < vocab_size), number_b, limit


def put_chosen(ids_bt: jax.Array, chosen_bn: jax.Array, weights_bn: jax.Array, new_bn: jax.Array) -> jax.Array:
    """ids with others at the chosen positions whose weight is not 0."""
    rows, length = jnp.arange(ids_bt.shape[0])[:, None], ids_bt.shape[1]
    return ids_bt.at[rows, jnp.where(weights_bn > 0, chosen_bn, length)].set(new_bn, mode="drop")


def masked_or_random(labels_bn, row_seeds_b, vocab_size, masked_share, random_share):
    """The labels, some of them replaced by `[MASK]` and some by ids drawn uniformly."""
    num_chosen = labels_bn.shape[1]
    uniform_bn = per_row(row_seeds_b, 1, lambda key: jax.random.uniform(key, (num_chosen,)))
    random_bn = per_row(row_seeds_b, 5, lambda key: jax.random.randint(key, (num_chosen,), 0, vocab_size))
    kept_bn = jnp.where(uniform_bn < masked_share + random_share, random_bn, labels_bn)
    return jnp.where(uniform_bn < masked_share, vocab_size + MASK, kept_bn)


def check_shares(masked_share: float, random_share: float) -> None:
    if not (0 <= masked_share and 0 <= random_share and masked_share + random_share <= 1):
        raise UserError(
            f"objective.masked_share {masked_share} and random_share {random_share} are shares of the chosen positions;"
            " they must be at least 0 and at most 1 together"
        )
