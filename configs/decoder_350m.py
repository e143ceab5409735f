"""A decoder of the shape of GPT-3 Medium (Brown et al. 2020, arXiv 2005.14165, table 2.1), over any representation."""

import dataclasses

from configs import decoder_125m
from models.decoder import DecoderConfig
from train.optimizer import Budget, OptimizerConfig
from train.recipe import Recipe


def recipe() -> Recipe:
    """308M parameters in the layers, and two tables of the representation's ids; a million positions a step.

    toklab plan decoder_350m --topology v5e:16x16
    toklab train decoder_350m --run-dir runs/decoder_350m

    Never trained by us; docs/pods.md says what it takes.
    """
    return dataclasses.replace(
        decoder_125m.recipe(),
        name="decoder_350m",
        budget=Budget(steps=12_000),
        model=DecoderConfig(num_layers=24, embed_dim=1024, num_heads=16, num_kv_heads=16, head_dim=64, mlp_dim=2816),
        optimizer=OptimizerConfig(learning_rate=2e-3),
    )
