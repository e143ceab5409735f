"""The byte language model of "Training LLMs over Neurally Compressed Text" (Lester+ 2024, arXiv 2404.03626), M1."""

from models.decoder import DecoderConfig
from train.optimizer import Budget, OptimizerConfig
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, Recipe


def recipe() -> Recipe:
    """The paper's shape, about 3M parameters without embeddings, for an accelerator; on pieces as short as windows are.

    toklab fit equal_info --corpus CORPUS --out ARTIFACT

    What the short pieces gain over the paper's contexts of 1,024 bytes is in docs/equal_info.md. The paper trains on
    3.3e11 bytes; raise the budget for a corpus of that size.
    """
    return Recipe(
        name="compressor_3m",
        representation="byte",
        data=DataConfig(corpora=("corpus",), batch_rows=128, sequence_length=1024, piece_length=64),
        budget=Budget(bytes=8 << 30),
        model=DecoderConfig(num_layers=3, embed_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, mlp_dim=1024),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        checkpoint=CheckpointConfig(every_steps=1000),
        evaluation=EvaluationConfig(every_steps=1000, batch_rows=128),
    )
