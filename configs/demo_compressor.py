"""The byte language model behind the equal-info arm of `make demo`."""

import dataclasses

from configs import demo_byte
from models.decoder import DecoderConfig
from train.optimizer import Budget
from train.recipe import EvaluationConfig, Recipe


def recipe() -> Recipe:
    """A byte language model so small that its training is a fraction of an arm's, for 2 CPU cores.

    toklab fit equal_info --corpus demo/corpus --out demo/equal_info --lm-recipe demo_compressor
    """
    byte = demo_byte.recipe()
    return dataclasses.replace(
        byte,
        name="demo_compressor",
        data=dataclasses.replace(byte.data, batch_rows=32, sequence_length=128, piece_length=32),
        budget=Budget(flops=6e11),
        model=DecoderConfig(
            num_layers=2, embed_dim=96, num_heads=3, num_kv_heads=3, head_dim=32, mlp_dim=256, compute_dtype="float32"
        ),
        evaluation=EvaluationConfig(every_steps=100, max_bytes=32 << 10, batch_rows=8),
    )
