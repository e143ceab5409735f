"""What the counts of all models share: parameters and FLOPs of transformer layers, from a config alone.

A model counts itself, in its own file, with these parts.

A multiply-add is 2 FLOPs; the backward pass costs twice the forward pass (one product for the inputs' gradient, one for
the weights'), so training costs 3 x forward (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; here with attention and
softmax). These are the model's FLOPs: what remat computes again and what pads a vocabulary is not in them. Norms,
rotary positions and other elementwise work are left out; tests hold the whole within 2 % of what XLA counts.
"""

from models.config import TransformerConfig


def layer_parameters(config: TransformerConfig) -> dict[str, int]:
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


def layer_flops(config: TransformerConfig, seen: float) -> dict[str, float]:
    """Forward FLOPs of all layers at a position that sees so many."""
    d, h, heads = config.embed_dim, config.head_dim, config.num_heads
    return {
        "attention_projections": config.num_layers * 2.0 * d * h * (2 * heads + 2 * config.num_kv_heads),
        "attention_scores": config.num_layers * 4.0 * heads * h * seen,
        "mlp": config.num_layers * (4.0 if config.published else 6.0) * d * config.mlp_dim,
    }


def training_flops(forward: dict[str, float], lookups: float) -> dict[str, float]:
    """FLOPs of a training step at a position, by component, and "total": three times the forward pass.

    Args:
      forward: of a forward pass, by component.
      lookups: numbers that are looked up in embedding tables.
    """
    flops = {component: 3 * count for component, count in forward.items()}
    flops["embedding"] = float(lookups)  # a lookup forwards; an addition to each of the row's numbers backwards
    return flops | {"total": sum(flops.values())}
