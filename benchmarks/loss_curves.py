"""Training losses of the demo's recipes with the loss's TPU kernel, interpreted, and with plain XLA, step by step.

    python benchmarks/loss_curves.py [--steps 100] [--recipes demo_byte demo_subword demo_equal_info] [--json-file FILE]

Recipes are as they stand: model, batch, sequence, text, optimizer and schedule; `make demo` has made what they read.
Every curve begins at the same weights and reads the same batches. No two programs round alike, and what they lose parts
from step to step: how far is shown by a third curve, plain XLA that adds up the gradients of two halves of each batch.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
import tyro

from train.batches import open_batches
from train.commands.cli import leave_out_absent_tpus
from train.recipe import load_recipe
from train.setup import Setup, set_up
from train.step import make_train_step

PLAIN = "plain XLA"
CURVES = {
    PLAIN: ("reference", 1),
    "kernel": ("interpreted", 1),
    "plain XLA in two halves": ("reference", 2),
}  # implementation, microbatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains every recipe once for each curve."""

    steps: int = 100
    """Of the recipe's schedule, from its beginning."""
    recipes: tuple[str, ...] = ("demo_byte", "demo_subword", "demo_equal_info")
    json_file: pathlib.Path | None = None
    """Also write the losses here."""


def train(setup: Setup, steps: int, implementation: str, num_microbatches: int) -> list[float]:
    """The loss of each step."""
    recipe, losses = setup.recipe, []
    state = setup.program.init(np.asarray(jax.random.key_data(jax.random.key(recipe.seed))))
    step = make_train_step(
        setup.program,
        recipe.objective,
        recipe.optimizer,
        setup.mesh,
        meter=setup.meter,
        num_microbatches=num_microbatches,
        kernels=implementation,
    )
    with open_batches(setup, state, lambda row, num_documents, digest: None) as next_batch:
        for _ in range(steps):
            state, metrics = step(state, next_batch())
            losses.append(float(metrics["loss"]))
    assert int(state.skipped_steps) == 0 and int(state.step) == steps
    return losses


def apart(losses: list[float], plain: list[float]) -> float:
    """The largest difference of two curves at a step, relative to the loss there."""
    return float(np.max(np.abs(np.array(losses) / np.array(plain) - 1)))


def main(options: Options) -> None:
    console, curves = rich.console.Console(), {}
    early = max(1, options.steps // 10)
    table = rich.table.Table(
        title="Losses, and the largest relative difference from those of plain XLA", box=rich.box.SIMPLE_HEAD
    )
    for name in ("recipe", "curve", "first loss", "last loss", f"steps 1 to {early}", f"steps 1 to {options.steps}"):
        table.add_column(name, justify="left" if name in ("recipe", "curve") else "right")
    for name in options.recipes:
        setup = set_up(load_recipe(name))
        curves[name] = {curve: train(setup, options.steps, *how) for curve, how in CURVES.items()}
        for curve, losses in curves[name].items():
            differences = [
                f"{apart(losses[:steps], curves[name][PLAIN][:steps]):.1e}" for steps in (early, options.steps)
            ]
            table.add_row(
                name, curve, f"{losses[0]:.5f}", f"{losses[-1]:.5f}", *(["", ""] if curve == PLAIN else differences)
            )
        if options.json_file:
            options.json_file.write_text(json.dumps(curves, indent=2))
    console.print(table)


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
