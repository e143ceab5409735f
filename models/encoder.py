"""Bidirectional transformers: the decoder's siblings, and the heads that masked and replaced-token objectives put on
them.

Ids of an encoder are those of the representation and, behind them, `MASK`, `CLS` and `SEP`.

Legend: B batch, T positions, E width of the embedding tables, D embed, V vocab (padded), N positions that were chosen.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from models import flops
from models.axes import constrain, parameter
from models.config import TransformerConfig
from models.dense import Dense
from models.dropout import Dropout, no_dropout
from models.layers import Block, PostNormBlock, over_layers
from models.norms import LayerNorm, rms_norm
from models.rotary import Places
from tokenizer_lab.errors import FROM_0, Range, UserError
from tokenizer_lab.representation import NUM_ENCODER_IDS

NUM_TYPES = 2  # first and second segment of a pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(TransformerConfig):
    """The shape of an encoder."""

    kind: Literal["encoder"] = "encoder"
    form: Literal["modern", "bert"] = "modern"
    """The decoder's layers without their mask; or those of BERT and ELECTRA: post-norm, learned positions, GELU,
    biases."""
    table_dim: int = 0
    """Width of the embedding tables where it is not embed_dim (ELECTRA's embedding_size); 0: embed_dim."""
    max_positions: int = 512
    """Learned positions that there are; of the form "bert" only."""
    dropout: float = 0.0
    """Of embeddings, of attention weights and of what a layer adds; of the form "bert" only (published: 0.1)."""

    family: ClassVar[str] = "encoder"
    causal: ClassVar[bool] = False
    ranges = {**TransformerConfig.ranges, "table_dim": FROM_0, "dropout": Range(least=0, below=1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "modern" and self.dropout:
            raise UserError(
                f"model.dropout is {self.dropout} and model.form 'modern', which has none; set it to 0, or the form to"
                " 'bert'"
            )

    @property
    def published(self) -> bool:
        return self.form == "bert"

    @property
    def table_width(self) -> int:
        return self.table_dim or self.embed_dim

    def scaled(self, share: float) -> "EncoderConfig":
        """A generator's shape: hidden size, heads and MLP scaled, not the depth nor the shared tables (Clark et al.
        2020, section 3.2)."""
        heads = max(1, round(self.num_heads * share))
        return dataclasses.replace(
            self,
            num_heads=heads,
            num_kv_heads=max(1, heads * self.num_kv_heads // self.num_heads),
            embed_dim=round(self.embed_dim * share),
            mlp_dim=round(self.mlp_dim * share),
            table_dim=self.table_width,
        )


def published_config(size: str) -> EncoderConfig:
    """ELECTRA's "small", "base" and "large" (configure_pretraining.py of google-research/electra)."""
    num_layers, embed_dim, table_dim = {"small": (12, 256, 128), "base": (12, 768, 0), "large": (24, 1024, 0)}[size]
    heads = embed_dim // 64
    return EncoderConfig(
        form="bert",
        num_layers=num_layers,
        embed_dim=embed_dim,
        table_dim=table_dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=64,
        mlp_dim=4 * embed_dim,
        dropout=0.1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """What an objective puts on an encoder."""

    predicts: bool = False
    """A head that predicts ids, on the generator if there is one."""
    detects: bool = False
    """A head that tells replaced ids."""
    generator_share: float = 0.0
    """Width of the generator as a share of the encoder's; 0: there is none."""
    num_clusters: int = 0
    """Clusters of ids whose confusions are counted; 0: there are none."""

    def predictor(self, config: EncoderConfig) -> EncoderConfig:
        """The shape of what the vocabulary's head is on."""
        return config.scaled(self.generator_share) if self.generator_share else config


class Embeddings(nnx.Module):
    """What an id, its position and its segment's type stand for, before any layer; a generator and a discriminator
    share one."""

    def __init__(self, config: EncoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.config, width = config, config.table_width
        rows = config.padded_vocab_size(vocab_size + NUM_ENCODER_IDS)
        self.table = parameter(config.matrix(rngs, (rows, width), width), "vocab", "embed")
        self.types = parameter(config.matrix(rngs, (NUM_TYPES, width), width), "norm", "embed")
        if config.published:
            self.positions = parameter(config.matrix(rngs, (config.max_positions, width), width), "norm", "embed")
            self.norm = LayerNorm(width)

    @property
    def output_table(self) -> jax.Array:
        """f32[V, E], in the layout for projecting onto it."""
        return constrain(self.table[...], "vocab", None)

    def __call__(
        self, ids_bt: jax.Array, positions_bt: jax.Array, types_bt: jax.Array, dropout: Dropout = no_dropout
    ) -> jax.Array:
        """i32[B, T] each -> f[B, T, E]."""
        dtype = self.config.compute_dtype
        table = constrain(self.table.astype(dtype), "vocab", None)
        x_bte = table[ids_bt] + constrain(self.types.astype(dtype), None, None)[types_bt]
        if self.config.published:
            x_bte = self.norm(x_bte + constrain(self.positions.astype(dtype), None, None)[positions_bt])
        return constrain(dropout(x_bte, 3), "batch", "sequence", "embed")


class Body(nnx.Module):
    """The layers: embedded ids -> hidden states of every position."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        if config.table_width != config.embed_dim:
            self.projection = Dense(config, rngs, config.table_width, config.embed_dim, "table", "embed")
        block = PostNormBlock if config.published else Block
        self.blocks = nnx.vmap(lambda rngs: block(config, rngs=rngs))(rngs.split(config.num_layers))
        if not config.published:
            self.final_scale = parameter(jnp.ones(config.embed_dim), "norm")

    def __call__(
        self, x_bte: jax.Array, segment_ids_bt: jax.Array, positions_bt: jax.Array, dropout: Dropout = no_dropout
    ) -> jax.Array:
        """f[B, T, E] -> f[B, T, D], normed."""
        config = self.config
        x_btd = self.projection(x_bte) if config.table_width != config.embed_dim else x_bte
        places = Places.of(config, segment_ids_bt, positions_bt)
        block_def, blocks = nnx.split(self.blocks)

        def layer(x_btd, numbered):
            number, weights = numbered
            block: Any = nnx.merge(block_def, weights)
            if not config.published:
                return block(x_btd, places)
            of_layer = no_dropout if dropout is no_dropout else lambda x, place: dropout(x, 4 * number + place)
            return block(x_btd, places, of_layer), None

        x_btd, _ = over_layers(layer, x_btd, (jnp.arange(config.num_layers), blocks), config.remat)
        return x_btd if config.published else rms_norm(x_btd, self.final_scale[...])


class VocabHead(nnx.Module):
    """What is projected onto the table: dense, GELU, norm; and the output's bias (Devlin et al. 2019;
    google-research/electra)."""

    def __init__(self, config: EncoderConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.dense = Dense(config, rngs, config.embed_dim, config.table_width, "embed", "table")
        self.norm = LayerNorm(config.table_width)
        self.bias = parameter(jnp.zeros(config.padded_vocab_size(vocab_size + NUM_ENCODER_IDS)), "vocab")

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[..., D] -> f[..., E]."""
        return self.norm(jax.nn.gelu(self.dense(x), approximate=False))


class DetectionHead(nnx.Module):
    """One logit a position, for "this id was replaced": dense, GELU, dense (google-research/electra)."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.dense = Dense(config, rngs, config.embed_dim, config.embed_dim, "norm", "embed")
        self.out = Dense(config, rngs, config.embed_dim, 1, "embed", "norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[..., D] -> f32[...]."""
        return self.out(jax.nn.gelu(self.dense(x), approximate=False))[..., 0].astype(jnp.float32)


class Clusters(nnx.Module):
    """Which cluster each id is in, and how often ids of one were taken for real in the place of another's.

    Both are part of a run's state and of no gradient. All ids are in cluster 0 until `of_id` is set.
    """

    def __init__(self, vocab_size: int, num_clusters: int):
        self.of_id = parameter(jnp.zeros(vocab_size), "norm")
        self.confusions = parameter(jnp.ones((num_clusters, num_clusters)), "norm", "norm")

    def draw(self, key: jax.Array, ids_n: jax.Array, sharpness: float) -> jax.Array:
        """For each of N ids another, i32[N]: a cluster by the softmax of `sharpness` times its confusions with the id's
        own, scaled to [0, 1] in each row; then one of its ids, uniformly (lucadiliello/transformers-framework)."""
        of_id_v, num_clusters = self.of_id.astype(jnp.int32), len(self.confusions[...])
        sizes_c = jnp.bincount(of_id_v, length=num_clusters)
        low, high = (reduce(self.confusions[...], axis=1, keepdims=True) for reduce in (jnp.min, jnp.max))
        scaled_cc = (self.confusions[...] - low) / jnp.maximum(high - low, 1e-9)
        logits_cc = jnp.where(sizes_c > 0, sharpness * scaled_cc, -jnp.inf)
        of_cluster, of_member = jax.random.split(key)
        cluster_n = jax.random.categorical(of_cluster, logits_cc[of_id_v[ids_n]])
        first_c = jnp.cumsum(sizes_c) - sizes_c
        member_n = jax.random.randint(of_member, ids_n.shape, 0, sizes_c[cluster_n])
        return jnp.argsort(of_id_v)[first_c[cluster_n] + member_n].astype(jnp.int32)


class Encoder(nnx.Module):
    """An encoder with the heads that an objective asks for; with a generator, which shares nothing but the embeddings,
    ELECTRA's pair."""

    def __init__(self, config: EncoderConfig, vocab_size: int, heads: Heads, *, rngs: nnx.Rngs):
        self.config, self.vocab_size, predictor = config, vocab_size, heads.predictor(config)
        self.embeddings = Embeddings(config, vocab_size, rngs=rngs)
        self.body = Body(config, rngs=rngs)
        self.generator = Body(predictor, rngs=rngs) if heads.generator_share else None
        self.vocab_head = VocabHead(predictor, vocab_size, rngs=rngs) if heads.predicts else None
        self.detection_head = DetectionHead(config, rngs=rngs) if heads.detects else None
        self.clusters = Clusters(vocab_size, heads.num_clusters) if heads.num_clusters else None

    def __call__(
        self,
        ids_bt: jax.Array,
        segment_ids_bt: jax.Array,
        positions_bt: jax.Array,
        types_bt: jax.Array,
        dropout: Dropout = no_dropout,
        *,
        by_generator: bool = False,
    ) -> jax.Array:
        """i32[B, T] each -> f[B, T, D] hidden states (of the generator's width, if by it)."""
        x_bte = self.embeddings(ids_bt, positions_bt, types_bt, dropout)
        body = self.generator if by_generator else self.body
        assert body is not None, "there is no generator"
        return body(x_bte, segment_ids_bt, positions_bt, dropout)


def count_parameters(config: EncoderConfig, num_ids: int, heads: Heads) -> dict[str, int]:
    """Parameter counts of an encoder and its heads by component, and "total"; tables that are shared are counted once.

    Args:
      config: of the encoder, or of a pair's discriminator.
      num_ids: the vocabulary, the encoder's own ids included.
      heads: what is on it.
    """
    d, e = config.embed_dim, config.table_width
    counts = _body_parameters(config)
    counts["embedding"] = (num_ids + 2) * e + (config.max_positions * e + 2 * e if config.published else 0)
    if heads.detects:
        counts["detection_head"] = d * d + d + d + 1
    if heads.predicts:
        predictor = heads.predictor(config)
        counts["vocab_head"] = predictor.embed_dim * e + e + 2 * e + num_ids
    if heads.generator_share:
        counts["generator"] = sum(_body_parameters(heads.predictor(config)).values())
    return counts | {"total": sum(counts.values())}


def _body_parameters(config: EncoderConfig) -> dict[str, int]:
    counts, d, e = flops.layer_parameters(config), config.embed_dim, config.table_width
    counts["projection"] = 0 if d == e else e * d + d
    counts["norm"] += 0 if config.published else d
    return counts


def training_flops_per_token(
    config: EncoderConfig, num_ids: int, sequence_length: int, heads: Heads, predicted_share: float
) -> dict[str, float]:
    """FLOPs to train an encoder, or a generator and a discriminator, on one position of a sequence, by component, and
    "total".

    Args:
      config: of the encoder, or of a pair's discriminator.
      num_ids: what the vocabulary's head chooses from.
      sequence_length: of a row; every position is taken to see all of it.
      heads: what is on the encoder.
      predicted_share: share of the positions that the vocabulary's head is computed at.
    """
    d, e = config.embed_dim, config.table_width
    forward, lookups = _body_flops(config, sequence_length), e
    if heads.detects:
        forward["detection_head"] = 2.0 * d * d + 2.0 * d
    if heads.predicts:
        predictor = heads.predictor(config)
        forward["vocab_head"] = predicted_share * 2.0 * predictor.embed_dim * e
        forward["softmax"] = predicted_share * 2.0 * e * num_ids
    if heads.generator_share:
        forward["generator"] = sum(_body_flops(heads.predictor(config), sequence_length).values())
        lookups += e
    return flops.training_flops(forward, lookups)


def _body_flops(config: EncoderConfig, sequence_length: int) -> dict[str, float]:
    d, e = config.embed_dim, config.table_width
    return flops.layer_flops(config, sequence_length) | {"projection": 0.0 if d == e else 2.0 * d * e}
