"""Losses of the demo's recipes, with kernels and without."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from data.rows import cursor_width
from train.optimizer import Budget, make_meter
from train.recipe import Recipe, load_recipe
from train.setup import lay_out
from train.sharding import MeshConfig, make_mesh, put_batch
from train.step import make_train_step

KEY = np.array([0, 7], np.uint32)


def demo_losses(recipe: Recipe, vocab_size: int, kernels: str, num_microbatches: int = 1) -> np.ndarray:
    """f32[100], of the first steps of a recipe on two rows of its length; ids are drawn more often the lower they are,
    so that there is something to learn."""
    rows, length, mesh = 2, recipe.data.sequence_length, make_mesh(MeshConfig(), jax.devices()[:1])
    recipe = dataclasses.replace(
        recipe, budget=Budget(steps=200), data=dataclasses.replace(recipe.data, batch_rows=rows)
    )
    program = lay_out(recipe, vocab_size, mesh)
    step = make_train_step(
        program,
        recipe.objective,
        recipe.optimizer,
        mesh,
        meter=make_meter(recipe.budget, 1.0),
        num_microbatches=num_microbatches,
        kernels=kernels,
    )
    state, rng, losses = program.init(KEY), np.random.default_rng(0), []
    for _ in range(100):
        ids = np.minimum(rng.geometric(8 / vocab_size, (rows, length + 1)) - 1, vocab_size - 1).astype(np.int32)
        ones = np.ones((rows, length), np.int32)
        state, metrics = step(
            state,
            put_batch(
                mesh,
                {
                    "ids": ids[:, :-1],
                    "targets": ids[:, 1:],
                    "segment_ids": ones,
                    "positions": ones * np.arange(length, dtype=np.int32),
                    "num_bytes": ones[:, 0],
                    "cursors": np.zeros((rows, cursor_width(1)), np.int32),
                },
            ),
        )
        losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize("name, vocab_size", [("demo_byte", 257), ("demo_subword", 2048), ("demo_equal_info", 257)])
def test_a_hundred_steps_with_the_kernel_lose_what_they_lose_without(name, vocab_size):
    """Model, sequence length, vocabulary, optimizer and schedule are the demo's; batches have two rows of its eight,
    and drawn ids.

    `benchmarks/loss_curves.py` compares the recipes as they are, on their text.
    """
    losses = functools.partial(demo_losses, load_recipe(name), vocab_size)
    plain, by_kernel, in_halves = losses("reference"), losses("interpreted"), losses("reference", num_microbatches=2)
    assert plain[-1] < 0.9 * plain[0]
    np.testing.assert_allclose(by_kernel[:10], plain[:10], rtol=1e-4)
    # Weights part a little with every step, however their gradients are rounded: no further by the kernel than by
    # adding up two halves.
    apart, apart_in_halves = (np.max(np.abs(other / plain - 1)) for other in (by_kernel, in_halves))
    assert apart < max(1e-4, 3 * apart_in_halves)
