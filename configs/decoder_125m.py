"""A decoder of GPT-2's smallest shape (Radford et al. 2019), over any representation."""

from models.decoder import DecoderConfig
from train.optimizer import Budget, OptimizerConfig
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, Recipe


def recipe() -> Recipe:
    """85M parameters in the layers, and two tables of the representation's ids; a million positions a step.

    toklab plan decoder_125m --topology v5e:16x16
    toklab fit subword --corpus corpus --out subword --vocab-size 65536
    toklab train decoder_125m --run-dir runs/decoder_125m

    The budget is about 30 positions a parameter. Never trained by us; docs/pods.md says what it takes.
    """
    return Recipe(
        name="decoder_125m",
        representation="subword",
        data=DataConfig(corpora=("corpus",), batch_rows=1024, sequence_length=1024),
        budget=Budget(steps=5_000),
        model=DecoderConfig(num_layers=12, embed_dim=768, num_heads=12, num_kv_heads=12, head_dim=64, mlp_dim=2048),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        checkpoint=CheckpointConfig(every_steps=1000),
        evaluation=EvaluationConfig(every_steps=1000, batch_rows=1024),
    )
