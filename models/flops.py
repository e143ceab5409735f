"""Parameters and training FLOPs of a model, per component, from its config alone.

A multiply-add is 2 FLOPs; the backward pass costs twice the forward pass (one product for the inputs' gradient, one for the
weights'), so training costs 3 x forward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; here with attention and softmax).
These are the model's FLOPs: what remat computes again and what pads a vocabulary is not in them. Norms, rotary positions and
other elementwise work are left out; tests hold the whole within 2 % of what XLA counts.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from models.decoder import DecoderConfig


def count_parameters(config: DecoderConfig, vocab_size: int) -> dict[str, int]:
    """Parameter counts by component, and "total". Rows that only pad the vocabulary are not counted."""
    d, h = config.embed_dim, config.head_dim
    attention = d * h * (2 * config.num_heads + 2 * config.num_kv_heads)
    norms = 2 * d + (2 * h if config.qk_norm else 0)
    counts = {
        "embedding": vocab_size * d,
        "attention": config.num_layers * attention,
        "mlp": config.num_layers * 3 * d * config.mlp_dim,
        "norm": config.num_layers * norms + d,
        "softmax": 0 if config.tied_embeddings else vocab_size * d,
    }
    return counts | {"total": sum(counts.values())}


def training_flops_per_token(config: DecoderConfig, vocab_size: int, sequence_length: int) -> dict[str, float]:
    """FLOPs to train on one position of a sequence, by component, and "total".

    Causal attention is counted at half: a position sees (sequence_length + 1) / 2 others on average. That sequences hold
    several documents, which see less, is not taken off.
    """
    d, h, heads = config.embed_dim, config.head_dim, config.num_heads
    seen = (sequence_length + 1) / 2
    forward = {
        "attention_projections": config.num_layers * 2.0 * d * h * (2 * heads + 2 * config.num_kv_heads),
        "attention_scores": config.num_layers * 4.0 * heads * h * seen,
        "mlp": config.num_layers * 6.0 * d * config.mlp_dim,
        "softmax": 2.0 * d * vocab_size,
    }
    flops = {component: 3 * count for component, count in forward.items()}
    flops["embedding"] = float(d)  # a lookup forwards; an addition to each of the row's numbers backwards
    return flops | {"total": sum(flops.values())}
