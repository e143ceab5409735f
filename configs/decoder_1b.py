"""A decoder of a billion parameters, over any representation."""

import dataclasses

from configs import decoder_125m
from models.decoder import DecoderConfig
from train.optimizer import Budget, OptimizerConfig
from train.recipe import Recipe


def recipe() -> Recipe:
    """1.13e9 parameters in the layers, and two tables of the representation's ids; two million positions a step.

    toklab plan decoder_1b --topology v5e:16x16
    toklab train decoder_1b --run-dir runs/decoder_1b

    Never trained by us; docs/pods.md says what it takes.
    """
    base = decoder_125m.recipe()
    return dataclasses.replace(
        base,
        name="decoder_1b",
        data=dataclasses.replace(base.data, sequence_length=2048),
        budget=Budget(steps=20_000),
        model=DecoderConfig(num_layers=24, embed_dim=2048, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=5632),
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
