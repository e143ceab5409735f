"""ELECTRA-Small (Clark et al. 2020, arXiv 2003.10555; configure_pretraining.py of google-research/electra): the
published shapes and settings, over any representation."""

from models.encoder import published_config
from train.objectives import Replaced
from train.optimizer import Budget, OptimizerConfig
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, Recipe


def recipe() -> Recipe:
    """14M parameters; a million steps of 128 rows of 128 positions, about 1.2e18 FLOPs by our count, for an
    accelerator.

    toklab fit subword --corpus corpus --out subword --vocab-size 30522
    toklab train electra_small --run-dir runs/electra_small

    Published: 10,000 steps of warm-up (1 %), segment pairs, positions drawn with replacement. Not run to its end by us.
    """
    return Recipe(
        name="electra_small",
        representation="subword",
        data=DataConfig(corpora=("corpus",), batch_rows=128, sequence_length=128, segment_pairs=True),
        budget=Budget(steps=1_000_000),
        model=published_config("small"),
        objective=Replaced(generator_share=0.25, with_replacement=True),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="linear",
            warmup_share=0.01,
            final_share=0.0,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-6,
            bias_correction=False,
            weight_decay=0.01,
        ),
        checkpoint=CheckpointConfig(every_steps=10_000),
        evaluation=EvaluationConfig(every_steps=10_000, batch_rows=128),
    )
