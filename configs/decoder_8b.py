"""A decoder of the shape of Llama 3 8B (Dubey et al. 2024, arXiv 2407.21783, table 3), over any representation."""

import dataclasses

from configs import decoder_125m
from models.decoder import DecoderConfig
from train.optimizer import Budget, OptimizerConfig
from train.recipe import Recipe


def recipe() -> Recipe:
    """6.98e9 parameters in the layers, and two tables of the representation's ids; four million positions a step.

    toklab plan decoder_8b --topology v5p:8x8x16
    toklab train decoder_8b --run-dir runs/decoder_8b

    Never trained by us; docs/pods.md says what it takes.
    """
    base = decoder_125m.recipe()
    return dataclasses.replace(
        base,
        name="decoder_8b",
        data=dataclasses.replace(base.data, sequence_length=4096),
        budget=Budget(steps=50_000),
        model=DecoderConfig(
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=14336,
            rope_theta=500_000.0,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4),
    )
