"""Bytes, subwords, superwords, equal-info windows and replaced ids beside each other, small enough for two CPU
cores."""

import dataclasses
from typing import Any

from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from tokenizer_lab.byte import ByteFit
from tokenizer_lab.equal_info import EqualInfoFit
from tokenizer_lab.subword import SubwordFit
from train.experiment import Arm, Experiment, Size
from train.objectives import Replaced
from train.optimizer import Budget, OptimizerConfig
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, LoggingConfig, Recipe

SHAPE: dict[str, Any] = dict(
    num_layers=3,
    embed_dim=128,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=384,
    compute_dtype="float32",
    remat="none",
)


def experiment() -> Experiment:
    r"""Six arms x two sizes x three seeds at equal FLOPs, the compressor's among them: 36 runs, and their evaluations.

    toklab ingest enwiki2016_206pages.xml --separator '\n==' --domain enwiki --test-fraction 0.0125 --out corpus
    toklab ingest linux-doc-6.1 --domain linux_doc --test-fraction 0.0125 --out corpus
    toklab ingest cpython-3.12.1 --domain cpython --on-empty skip --test-fraction 0.0125 --out corpus
    toklab ingest debian_manuals --separator '\n\n\n' --domain debian_manuals --on-empty skip --test-fraction 0.0125 \
        --out corpus
    toklab compare comparison_small --corpus corpus --out comparison --plan-only
    toklab compare comparison_small --corpus corpus --out comparison

    docs/comparison.md has the report and what it took.
    """
    causal = Recipe(
        name="causal",
        representation="",
        budget=Budget(flops=5e12),
        data=DataConfig(corpora=("corpus",), batch_rows=8),
        model=DecoderConfig(**SHAPE),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        checkpoint=CheckpointConfig(every_steps=200),
        evaluation=EvaluationConfig(every_steps=25, max_bytes=32 << 10, batch_rows=8),
        logging=LoggingConfig(every_steps=20, tensorboard=False),
    )
    return Experiment(
        name="comparison_small",
        arms=(
            Arm(name="byte", recipe=causal, fit=ByteFit()),
            Arm(name="subword4k", recipe=causal, fit=SubwordFit(vocab_size=4096)),
            Arm(name="subword32k", recipe=causal, fit=SubwordFit(vocab_size=32768)),
            Arm(name="superword4k", recipe=causal, fit=SubwordFit(vocab_size=4096, superword_transition=3277)),
            Arm(
                name="equal_info16",
                recipe=causal,
                fit=EqualInfoFit(window_bits=16, id_bits=8, lm_recipe="demo_compressor"),
            ),
            Arm(name="replaced4k", recipe=_of_replaced_ids(causal), fit=SubwordFit(vocab_size=4096)),
        ),
        sizes=(
            Size(
                name="2x96", budget=Budget(flops=1e12), model=dict(num_layers=2, embed_dim=96, head_dim=48, mlp_dim=256)
            ),
            Size(name="3x128", budget=Budget(flops=5e12)),
        ),
        context_bytes=512,
    )


def _of_replaced_ids(causal: Recipe) -> Recipe:
    return dataclasses.replace(
        causal,
        model=EncoderConfig(**SHAPE),
        objective=Replaced(generator_share=0.5),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            schedule="linear",
            warmup_share=0.1,
            final_share=0.0,
            beta2=0.999,
            epsilon=1e-6,
            bias_correction=False,
            weight_decay=0.01,
        ),
    )
