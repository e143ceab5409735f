"""Parameters, FLOPs and cache of a model, per component, from its config alone.

A multiply-add is 2 FLOPs; the backward pass costs twice the forward pass (one product for the inputs' gradient, one for
the weights'), so training costs 3 x forward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; here with attention and
softmax). These are the model's FLOPs: what remat computes again and what pads a vocabulary is not in them. Norms,
rotary positions and other elementwise work are left out; tests hold the whole within 2 % of what XLA counts.
"""

import jax.numpy as jnp

from models.config import TransformerConfig
from models.decoder import DecoderConfig
from models.encoder import EncoderConfig, Heads


def count_parameters(config: DecoderConfig, vocab_size: int) -> dict[str, int]:
    """Parameter counts by component, and "total". Rows that only pad the vocabulary are not counted."""
    d = config.embed_dim
    counts = _layer_parameters(config)
    counts["norm"] += d
    counts |= {"embedding": vocab_size * d, "softmax": 0 if config.tied_embeddings else vocab_size * d}
    return counts | {"total": sum(counts.values())}


def count_encoder_parameters(config: EncoderConfig, num_ids: int, heads: Heads) -> dict[str, int]:
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
    counts, d, e = _layer_parameters(config), config.embed_dim, config.table_width
    counts["projection"] = 0 if d == e else e * d + d
    counts["norm"] += 0 if config.published else d
    return counts


def _layer_parameters(config: TransformerConfig) -> dict[str, int]:
    """Of all layers: attention, mlp, norm."""
    d, f, h, heads = config.embed_dim, config.mlp_dim, config.head_dim, config.num_heads + config.num_kv_heads
    if config.published:
        per_layer = {
            "attention": 2 * d * h * heads + h * (heads + config.num_kv_heads) + d,
            "mlp": 2 * d * f + f + d,
            "norm": 4 * d,
        }
    else:
        per_layer = {"attention": 2 * d * h * heads, "mlp": 3 * d * f, "norm": 2 * d + (2 * h if config.qk_norm else 0)}
    return {component: config.num_layers * count for component, count in per_layer.items()}


def training_flops_per_token(config: DecoderConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
    """FLOPs to train on one position of a sequence, by component, and "total".

    Causal attention is counted at half: a position sees (sequence_length + 1) / 2 others on average. That sequences
    hold several documents, which see less, is not taken off.
    """
    return _training(_decoder_flops(config, vocab_size, sequence_length), lookups=config.embed_dim)


def generation_flops_per_token(config: DecoderConfig, vocab_size: int, sequence_length: int) -> float:
    """FLOPs to generate one position of a sequence with a cache of keys and values, on average over the sequence: one
    forward pass."""
    return sum(_decoder_flops(config, vocab_size, sequence_length).values())


def kv_cache_bytes_per_token(config: DecoderConfig) -> int:
    """Bytes of keys and values that generation keeps of a position."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(config.compute_dtype).itemsize


def _decoder_flops(config: DecoderConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
    return _layer_flops(config, (sequence_length + 1) / 2) | {"softmax": 2.0 * config.embed_dim * vocab_size}


def encoder_training_flops_per_token(
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
    return _training(forward, lookups)


def _training(forward: dict[str, float], lookups: float) -> dict[str, float]:
    flops = {component: 3 * count for component, count in forward.items()}
    flops["embedding"] = float(lookups)  # a lookup forwards; an addition to each of the row's numbers backwards
    return flops | {"total": sum(flops.values())}


def _body_flops(config: EncoderConfig, sequence_length: int) -> dict[str, float]:
    d, e = config.embed_dim, config.table_width
    return _layer_flops(config, sequence_length) | {"projection": 0.0 if d == e else 2.0 * d * e}


def _layer_flops(config: TransformerConfig, seen: float) -> dict[str, float]:
    """Forward FLOPs of all layers at a position that sees so many."""
    d, h, heads = config.embed_dim, config.head_dim, config.num_heads
    return {
        "attention_projections": config.num_layers * 2.0 * d * h * (2 * heads + 2 * config.num_kv_heads),
        "attention_scores": config.num_layers * 4.0 * heads * h * seen,
        "mlp": config.num_layers * (4.0 if config.published else 6.0) * d * config.mlp_dim,
    }
