"""The byte arm of `make demo`."""

from models.decoder import DecoderConfig
from train.optimizer import Budget, OptimizerConfig
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, LoggingConfig, Recipe


def recipe() -> Recipe:
    """A small decoder over raw bytes, for 2 CPU cores.

    toklab train demo_byte --run-dir demo/runs/byte
    """
    return Recipe(
        name="demo_byte",
        representation="demo/byte",
        data=DataConfig(corpora=("demo/corpus",), batch_rows=8, sequence_length=512),
        budget=Budget(flops=3e12),
        model=DecoderConfig(
            num_layers=4, embed_dim=128, num_heads=2, num_kv_heads=2, mlp_dim=384, compute_dtype="float32"
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        checkpoint=CheckpointConfig(every_steps=100),
        evaluation=EvaluationConfig(every_steps=50, max_bytes=32 << 10, batch_rows=8),
        logging=LoggingConfig(every_steps=10),
    )
