"""What a model is trained to do: functions (model, batch, rng) -> sums.

Sums and not means, so that dividing once at the end is right whatever the padding, the gradient accumulation and the
number of devices. Where a loss is a sum of two means over different positions, the global batch tells beforehand how
many there
are of each: `draw`, which takes all chances of a step, sees it before it is cut into microbatches. Chance belongs to a
row (`row_seeds`) and not to a device, so that a batch and its losses are the same on every mesh.

An objective also says which model it needs, how rows are laid out for it, and what its sums stand for. Batches are
those of `data/rows.py` and `data/encoder_rows.py`.

Legend: B batch, T positions, N positions chosen in a row, E width of the embedding tables.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data.encoder_rows import MIN_LENGTH, EncoderRow
from data.rows import CausalRow, Row
from models import flops
from models.axes import current_placement
from models.decoder import DecoderConfig
from models.dropout import row_dropout
from models.encoder import Encoder, EncoderConfig, Heads
from tokenizer_lab.errors import UserError
from tokenizer_lab.kernels.linear_cross_entropy import Layout, linear_cross_entropy
from tokenizer_lab.kernels.sample_replacements import sample_replacements
from tokenizer_lab.representation import MASK, NUM_ENCODER_IDS, Representation
from train.objectives.clusters import cluster_of_id

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


class LearnsByGradients:
    """What an objective has to know, and to learn, besides the gradients: nothing, unless it says otherwise."""

    def learn_from_text(self, params: Any, representation: Representation, documents: Any) -> Any:
        """The parameters before the first step, with what is to be known of the text."""
        del representation, documents
        return params

    def learn(self, params: Any, sums: Sums) -> Any:
        """The parameters after a step, with what is learned otherwise than by gradients."""
        del sums
        return params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Causal(LearnsByGradients):
    """Predict each next id from those before it in its document."""

    kind: Literal["causal"] = "causal"
    z_loss: float = 1e-4
    """Weight of log(Z)^2, which keeps the softmax's denominator near 1 (PaLM, arXiv 2204.02311, section 5)."""

    model_kind: ClassVar[str] = "decoder"
    layout: ClassVar[type[Row]] = CausalRow

    def check(self, model: DecoderConfig, sequence_length: int) -> None:
        """Raises UserError where a row or a model does not suit the objective."""

    def build(self, model: DecoderConfig, vocab_size: int, rngs: nnx.Rngs) -> nnx.Module:
        return model.build(vocab_size, rngs)

    def count_parameters(self, model: DecoderConfig, vocab_size: int) -> dict[str, int]:
        return flops.count_parameters(model, vocab_size)

    def training_flops_per_token(self, model: DecoderConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
        return flops.training_flops_per_token(model, vocab_size, sequence_length)

    def draw(self, model: Any, batch: Batch) -> Batch:
        del model
        return batch  # nothing here is drawn

    def __call__(self, model: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums over positions: the loss, the positions that count, and {"nats": their code length}."""
        del rng
        nats_bt, logz_bt = token_nats(model, batch)
        weight_bt = (batch["segment_ids"] > 0).astype(jnp.float32)
        nats = jnp.sum(weight_bt * nats_bt)
        loss = nats + self.z_loss * jnp.sum(weight_bt * jnp.square(logz_bt))
        return loss, jnp.sum(weight_bt), {"nats": nats}

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        """What sums over some steps stand for."""
        return {"bits_per_byte": sums["nats"] / math.log(2) / num_bytes if num_bytes else None}


def token_nats(model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """-log p(target) and log Z at every position, f32[B, T]; meaningless where `segment_ids` is 0."""
    hidden_btd = model(batch["ids"], batch["segment_ids"], batch["positions"])
    return _cross_entropy(hidden_btd, model.output_table, batch["targets"], model.vocab_size, along_sequence=True)


def _cross_entropy(x_btd, table_vd, labels_bt, vocab_size, bias_v=None, *, along_sequence):
    """Of labels along a sequence, which is sharded, or at chosen positions (i32[B, N]), which are not."""
    operation = functools.partial(linear_cross_entropy, x_btd, table_vd, labels_bt, bias_v, vocab_size=vocab_size)
    if (placement := current_placement()) is None:
        return operation()
    positions = placement.spec("batch", "sequence" if along_sequence else None)
    return operation(
        layout=Layout(placement.mesh, positions, placement.activations["vocab"]), implementation=placement.kernels
    )


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

    model_kind: ClassVar[str] = "encoder"
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
        return flops.count_encoder_parameters(model, vocab_size + NUM_ENCODER_IDS, self.heads)

    def training_flops_per_token(self, model: EncoderConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
        share = max_chosen(self.chosen_share, sequence_length) / sequence_length
        return flops.encoder_training_flops_per_token(
            model, vocab_size + NUM_ENCODER_IDS, sequence_length, self.heads, share
        )

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
    noise_bt = _per_row(batch["row_seeds"], 0, lambda key: jax.random.uniform(key, candidates_bt.shape[1:]))
    noise_bn, chosen_bn = jax.lax.top_k(jnp.where(candidates_bt, noise_bt, -1.0), limit)
    return chosen_bn, ((jnp.arange(limit) < number_b[:, None]) & (noise_bn >= 0)).astype(jnp.float32)


def choose_positions_again(batch: Batch, vocab_size: int, share: float) -> tuple[jax.Array, jax.Array]:
    """As `choose_positions`, drawn with replacement: a position's second draw has weight 0."""
    candidates_bt, number_b, limit = _candidates(batch, vocab_size, share)
    logits_bt = jnp.where(candidates_bt, 0.0, -jnp.inf)
    noise_bnt = _per_row(batch["row_seeds"], 0, lambda key: jax.random.gumbel(key, (limit, candidates_bt.shape[1])))
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


def _per_row(row_seeds_b: jax.Array, place: int, function) -> jax.Array:
    """`function` of a key for each row; `place` keeps draws of one row apart."""
    return jax.vmap(lambda seed: function(jax.random.fold_in(jax.random.key(seed), place)))(row_seeds_b)


def put_chosen(ids_bt: jax.Array, chosen_bn: jax.Array, weights_bn: jax.Array, new_bn: jax.Array) -> jax.Array:
    """ids with others at the chosen positions whose weight is not 0."""
    rows, length = jnp.arange(ids_bt.shape[0])[:, None], ids_bt.shape[1]
    return ids_bt.at[rows, jnp.where(weights_bn > 0, chosen_bn, length)].set(new_bn, mode="drop")


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
        _check_shares(self.masked_share, self.random_share)

    @property
    def heads(self) -> Heads:
        return Heads(predicts=True)

    def _changed(self, model, labels_bn, row_seeds_b):
        return _masked_or_random(labels_bn, row_seeds_b, model.vocab_size, self.masked_share, self.random_share)

    def __call__(self, model: Encoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums: the loss, whose mean over positions is that over chosen ones; positions; and what
        `figures` takes."""
        del rng
        x_bne = predicted(model, batch, _dropout(model, batch, 2))
        nats_bn, _ = _cross_entropy(
            x_bne,
            model.embeddings.output_table,
            batch["labels"],
            model.vocab_size,
            model.vocab_head.bias[...],
            along_sequence=False,
        )
        weights_bn = batch["chosen_weights"]
        sums = {"predicted_nats": jnp.sum(weights_bn * nats_bn), "num_predicted": jnp.sum(weights_bn)}
        return jnp.sum(batch["chosen_scale"][:, None] * weights_bn * nats_bn), _num_positions(batch), sums

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        del num_bytes
        return {"predicted_nats": _ratio(sums["predicted_nats"], sums["num_predicted"])}

    def score(self, model: Encoder, batch: Batch) -> Batch:
        """What held-out text is judged by: `predicted_nats` f32[B, N] and whether the likeliest id is right,
        `predicted_right`."""
        return _score_predictions(model, batch)


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
        _check_shares(self.masked_share, 0.0)
        if not 0 < self.generator_share <= 1:
            raise UserError(
                f"objective.generator_share is {self.generator_share}; it is more than 0 and at most 1, e.g. 0.25"
            )

    @property
    def heads(self) -> Heads:
        return Heads(predicts=True, detects=True, generator_share=self.generator_share)

    def _changed(self, model, labels_bn, row_seeds_b):
        return _masked_or_random(labels_bn, row_seeds_b, model.vocab_size, self.masked_share, 0.0)

    def __call__(self, model: Encoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums: the loss, whose mean over positions is the paper's; positions; and what `figures`
        takes."""
        del rng
        weights_bn, nats_bn, samples_bn, replaced_bt = self._replace(model, batch, _dropout(model, batch, 2))
        logits_bt = detected(model, batch, replaced_bt, _dropout(model, batch, 3))
        detection_loss, sums = _detection(logits_bt, replaced_bt, batch, self.detect_chosen_only)
        predicted_nats = jnp.sum(weights_bn * nats_bn)
        sums |= {
            "predicted_nats": predicted_nats,
            "num_predicted": jnp.sum(weights_bn),
            "num_sampled_right": jnp.sum(weights_bn * (samples_bn == batch["labels"])),
        }
        return (
            batch["chosen_scale"][0] * predicted_nats + self.detection_weight * detection_loss,
            _num_positions(batch),
            sums,
        )

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        del num_bytes
        return _detection_figures(sums) | {
            "predicted_nats": _ratio(sums["predicted_nats"], sums["num_predicted"]),
            "sampled_right": _ratio(sums["num_sampled_right"], sums["num_predicted"]),
        }

    def score(self, model: Encoder, batch: Batch) -> Batch:
        """As `Masked.score`, of the generator; and `logits` f32[B, T] for what is `replaced` bool[B, T]."""
        scored = _score_predictions(model, batch, by_generator=True)
        *_, replaced_bt = self._replace(model, batch, _dropout(model, None, 0))
        return scored | {
            "logits": detected(model, batch, replaced_bt, _dropout(model, None, 0)),
            "replaced": replaced_bt != batch["ids"],
        }

    def _replace(self, model, batch, dropout):
        """Weights, nats and samples at the chosen positions, [B, N] each, and the ids i32[B, T] with the samples put
        in."""
        x_bne = predicted(model, batch, dropout, by_generator=True)
        labels_bn, num_chosen = batch["labels"], batch["labels"].shape[1]
        seeds = _per_row(batch["row_seeds"], 4, lambda key: jax.random.bits(key, (num_chosen, 2), jnp.uint32))
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSubstitution(OnChosenPositions):
    """Tell which ids were replaced by uniformly drawn ones: RTS, ELECTRA without a generator (Di Liello et al. 2022,
    arXiv 2210.13536).

    An id that is drawn in its own place counts as real, as in `Replaced`; the published code counts it as replaced.
    """

    kind: Literal["random_substitution"] = "random_substitution"

    @property
    def heads(self) -> Heads:
        return Heads(detects=True)

    def _changed(self, model, labels_bn, row_seeds_b):
        return _masked_or_random(labels_bn, row_seeds_b, model.vocab_size, 0.0, 1.0)

    def __call__(self, model: Encoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        """Returns f32[] sums over positions: the loss, positions, and what `figures` takes."""
        del rng
        logits_bt = detected(model, batch, batch["inputs"], _dropout(model, batch, 3))
        loss, sums = _detection(logits_bt, batch["inputs"], batch, False)
        return loss, _num_positions(batch), sums | self._observed(model, batch, logits_bt)

    def _observed(self, model: Encoder, batch: Batch, logits_bt: jax.Array) -> Sums:
        """More sums, that are no figures."""
        del model, batch, logits_bt
        return {}

    def figures(self, sums: dict[str, float], num_bytes: int) -> dict[str, float | None]:
        del num_bytes
        return _detection_figures(sums)

    def score(self, model: Encoder, batch: Batch) -> Batch:
        """`logits` f32[B, T] for what is `replaced` bool[B, T]."""
        logits_bt = detected(model, batch, batch["inputs"], _dropout(model, None, 0))
        return {"logits": logits_bt, "replaced": batch["inputs"] != batch["ids"]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusteredSubstitution(RandomSubstitution):
    """`RandomSubstitution` from clusters that were hard to tell apart so far: C-RTS (Di Liello et al. 2022, arXiv
    2210.13536)."""

    kind: Literal["clustered_substitution"] = "clustered_substitution"
    num_clusters: int = 100
    sharpness: float = 2.0
    """Of the softmax over clusters (the paper's beta); 0: all clusters are equally likely."""

    def check(self, model: EncoderConfig, sequence_length: int) -> None:
        super().check(model, sequence_length)
        if self.num_clusters < 1 or self.sharpness < 0:
            raise UserError(
                f"objective.num_clusters is {self.num_clusters} and sharpness {self.sharpness}; they are at least 1 and"
                " 0, e.g. 100 and 2"
            )

    @property
    def heads(self) -> Heads:
        return Heads(detects=True, num_clusters=self.num_clusters)

    def learn_from_text(self, params: Any, representation: Representation, documents: Any) -> Any:
        clusters = params["clusters"]
        of_id_v = cluster_of_id(representation, documents, self.num_clusters).astype(np.float32)
        return params | {"clusters": clusters | {"of_id": jax.device_put(of_id_v, clusters["of_id"].sharding)}}

    def _changed(self, model, labels_bn, row_seeds_b):
        def change(seed, labels_n):
            return model.clusters.draw(jax.random.fold_in(jax.random.key(seed), 6), labels_n, self.sharpness)

        return jax.vmap(change)(row_seeds_b, labels_bn)

    def _observed(self, model: Encoder, batch: Batch, logits_bt: jax.Array) -> Sums:
        """How often each pair of clusters was told wrong, less how often right."""
        of_id_v = model.clusters.of_id.astype(jnp.int32)
        labels_bn, weights_bn = batch["labels"], batch["chosen_weights"]
        new_bn, logits_bn = (jnp.take_along_axis(x, batch["chosen"], axis=1) for x in (batch["inputs"], logits_bt))
        wrong_bn = (logits_bn > 0) != (new_bn != labels_bn)
        new_bn = jnp.where(weights_bn > 0, new_bn, 0)
        confusions = (
            jnp.zeros_like(model.clusters.confusions[...])
            .at[of_id_v[labels_bn], of_id_v[new_bn]]
            .add(weights_bn * (2.0 * wrong_bn - 1))
        )
        return {"confusions": jax.lax.stop_gradient(confusions)}

    def learn(self, params: Any, sums: Sums) -> Any:
        clusters = params["clusters"]
        return params | {"clusters": clusters | {"confusions": clusters["confusions"] + sums["confusions"]}}


Objective = Causal | Masked | Replaced | RandomSubstitution | ClusteredSubstitution


def predicted(model: Encoder, batch: Batch, dropout, *, by_generator: bool = False) -> jax.Array:
    """What is projected onto the vocabulary at the chosen positions, f[B, N, E]."""
    hidden_btd = model(
        batch["inputs"], batch["segment_ids"], batch["positions"], batch["types"], dropout, by_generator=by_generator
    )
    return model.vocab_head(jnp.take_along_axis(hidden_btd, batch["chosen"][..., None], axis=1))


def detected(model: Encoder, batch: Batch, ids_bt: jax.Array, dropout) -> jax.Array:
    """Logits f32[B, T] for "this id was replaced"."""
    return model.detection_head(model(ids_bt, batch["segment_ids"], batch["positions"], batch["types"], dropout))


def _dropout(model: Encoder, batch: Batch | None, place: int):
    """Dropout of one pass through a model; none where there is no batch to train on."""
    if batch is None or not model.config.dropout:
        return row_dropout(jnp.zeros(1, jnp.uint32), 0.0)
    return row_dropout(
        _per_row(batch["row_seeds"], place, lambda key: jax.random.bits(key, (), jnp.uint32)), model.config.dropout
    )


def _masked_or_random(labels_bn, row_seeds_b, vocab_size, masked_share, random_share):
    num_chosen = labels_bn.shape[1]
    uniform_bn = _per_row(row_seeds_b, 1, lambda key: jax.random.uniform(key, (num_chosen,)))
    random_bn = _per_row(row_seeds_b, 5, lambda key: jax.random.randint(key, (num_chosen,), 0, vocab_size))
    kept_bn = jnp.where(uniform_bn < masked_share + random_share, random_bn, labels_bn)
    return jnp.where(uniform_bn < masked_share, vocab_size + MASK, kept_bn)


def _detection(logits_bt, ids_bt, batch, chosen_only):
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


def _detection_figures(sums: dict[str, float]) -> dict[str, float | None]:
    share = _ratio(sums["num_replaced"], sums["num_detected"])
    return {
        "detection_nats": _ratio(sums["detection_nats"], sums["num_detected"]),
        "always_real_nats": binary_entropy(share),
        "replaced_share": share,
    }


def _score_predictions(model, batch, by_generator=False):
    x_bne = predicted(model, batch, _dropout(model, None, 0), by_generator=by_generator)
    table_ve, bias_v = model.embeddings.output_table, model.vocab_head.bias[...]

    def score_row(row):
        x_ne, labels_n = row
        logits_nv = (
            jnp.einsum("ne,ve->nv", x_ne, table_ve.astype(x_ne.dtype), preferred_element_type=jnp.float32) + bias_v
        )
        logits_nv = logits_nv[:, : model.vocab_size]
        label_logits_n = jnp.take_along_axis(logits_nv, labels_n[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits_nv, axis=-1) - label_logits_n, jnp.argmax(logits_nv, axis=-1) == labels_n

    nats_bn, right_bn = jax.lax.map(score_row, (x_bne, batch["labels"]))
    return {"predicted_nats": nats_bn, "predicted_right": right_bn}


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


def _num_positions(batch: Batch) -> jax.Array:
    return jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)


def _check_shares(masked_share: float, random_share: float) -> None:
    if not (0 <= masked_share and 0 <= random_share and masked_share + random_share <= 1):
        raise UserError(
            f"objective.masked_share {masked_share} and random_share {random_share} are shares of the chosen positions;"
            " they must be at least 0 and at most 1 together"
        )


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None


def binary_entropy(share: float | None) -> float | None:
    """Nats a position of the detector that always says "real", knowing how many are not."""
    if share is None:
        return None
    return float(sum(part * -np.log(part) for part in (share, 1 - share) if part > 0))
