"""Our train step on a batch of random ids, for benchmarks that run it outside the loop."""

import dataclasses
from typing import Any

import jax
import numpy as np

from data.rows import cursor_width
from models.decoder import DecoderConfig
from train.commands.cli import keep_memory
from train.objectives import Causal
from train.optimizer import Budget, OptimizerConfig, make_meter
from train.sharding import MeshConfig, make_mesh, put_batch
from train.step import abstract_model, build_program, make_train_step

OPTIMIZER = OptimizerConfig(learning_rate=3e-4, warmup_share=0.0, schedule="wsd", decay_share=0.0)
MODEL = DecoderConfig(
    num_layers=6,
    embed_dim=256,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=1024,
    qk_norm=False,
    compute_dtype="float32",
    remat="none",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a step: the model and the batch."""

    model: DecoderConfig = MODEL
    vocab_size: int = 4096
    batch_rows: int = 16
    sequence_length: int = 256

    @property
    def tokens(self) -> int:
        return self.batch_rows * self.sequence_length

    @property
    def flops(self) -> float:
        """Of a step, by `models/flops.py`."""
        return self.model.training_flops_per_token(self.vocab_size, self.sequence_length)["total"] * self.tokens

    def ids(self) -> np.ndarray:
        """i32[B, T + 1], the same every time."""
        return np.random.default_rng(0).integers(
            0, self.vocab_size, (self.batch_rows, self.sequence_length + 1), np.int32
        )


class OwnStep:
    """The compiled step over all devices, with a state and a batch to call it on."""

    def __init__(self, shape: Shape):
        keep_memory()  # as `toklab train` does
        mesh = make_mesh(MeshConfig())
        program = build_program(
            abstract_model(lambda rngs: shape.model.build(shape.vocab_size, rngs)),
            OPTIMIZER,
            mesh,
            batch_rows=shape.batch_rows,
            num_sources=1,
        )
        step = make_train_step(program, Causal(z_loss=0.0), OPTIMIZER, mesh, meter=make_meter(Budget(steps=10**6), 1.0))
        self._state = program.init(jax.random.key_data(jax.random.key(0)))
        ids, ones = shape.ids(), np.ones((shape.batch_rows, shape.sequence_length), np.int32)
        self._batch = put_batch(
            mesh,
            {
                "ids": ids[:, :-1],
                "targets": ids[:, 1:],
                "segment_ids": ones,
                "positions": ones * np.arange(shape.sequence_length, dtype=np.int32),
                "num_bytes": ones[:, 0],
                "cursors": np.zeros((shape.batch_rows, cursor_width(1)), np.int32),
            },
        )
        self.compiled = step.lower(self._state, self._batch).compile()

    @property
    def params(self) -> Any:
        """Copies of the weights."""
        return jax.tree.map(np.array, self._state.params)

    def __call__(self) -> float:
        """Takes a step; the loss before it."""
        self._state, metrics = self.compiled(self._state, self._batch)
        return float(metrics["loss"])
