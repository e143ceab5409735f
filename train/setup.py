"""What a recipe stands for on this machine: everything that training, evaluation and sampling are built from."""

import contextlib
import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import tokenizer_lab
from data.encoded import bring_ids
from data.rows import CausalRow, cursor_width
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation
from train.hosts.hardware import keep_compiled_programs
from train.objectives import AnyObjective
from train.optimizer import Budget, Meter, make_meter, total_steps
from train.recipe import Recipe, read_recipe, to_json
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder
from train.sharding import MeshConfig, batch_sharding, check_batch, cursor_sharding, make_mesh
from train.step import StepProgram, build_program


@dataclasses.dataclass(frozen=True)
class Setup:
    """A recipe with what it names opened and what it describes laid out; no weights yet."""

    recipe: Recipe
    representation: Representation
    corpora: list[Corpus]
    mesh: Mesh
    program: StepProgram

    @property
    def flops_per_token(self) -> dict[str, float]:
        """FLOPs a position, by component: the model's training, and what its representation takes to encode the
        text."""
        flops = model_flops_per_token(self.recipe, self.representation.vocab_size)
        encode = self.representation.costs.get("encode_flops_per_id", 0.0)
        return flops | {"encode": encode, "total": flops["total"] + encode}

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.data.batch_rows * self.recipe.data.sequence_length

    @property
    def flops_per_step(self) -> float:
        return self.flops_per_token["total"] * self.tokens_per_step

    @property
    def model_flops_per_step(self) -> float:
        """Of the training step alone, which runs on the accelerators."""
        return (self.flops_per_token["total"] - self.flops_per_token["encode"]) * self.tokens_per_step

    @property
    def fit_flops(self) -> float:
        """What it took to fit the representation; a run is charged with all of it."""
        return self.representation.costs.get("fit_flops", 0.0)

    def flops(self, steps: int) -> float:
        """All that a run has spent after some steps."""
        return self.fit_flops + steps * self.flops_per_step

    @property
    def budget(self) -> Budget:
        """The recipe's, less what fitting the representation has spent of it."""
        budget = self.recipe.budget
        return budget if budget.flops is None else Budget(flops=budget.flops - self.fit_flops)

    @property
    def num_steps(self) -> int | None:
        """Steps that the budget pays for; None where only the data can tell."""
        return total_steps(self.budget, self.flops_per_step)

    @property
    def meter(self) -> Meter:
        return make_meter(self.budget, self.flops_per_step)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the run it belongs to."""
        return {
            "config": to_json(self.recipe),
            "representation_fingerprint": self.representation.fingerprint,
            "corpus_content_hashes": [corpus.content_hash for corpus in self.corpora],
        }


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained run on this machine's devices."""

    setup: Setup
    params: Any
    counters: dict[str, Any]
    """Steps, bytes seen and FLOPs spent when the weights were saved: step, bytes_seen, flops."""


def set_up(recipe: Recipe) -> Setup:
    """Opens what a recipe names and lays its state out over the mesh. Raises UserError before anything is allocated or
    written."""
    data = recipe.data
    representation = tokenizer_lab.load(recipe.representation)
    if recipe.budget.flops is not None and recipe.budget.flops <= (
        fit_flops := representation.costs.get("fit_flops", 0.0)
    ):
        raise UserError(
            f"budget.flops {recipe.budget.flops:.3g} is no more than the {fit_flops:.3g} that fitting"
            f" {recipe.representation} has spent, which counts too; raise it, or give the budget in steps or bytes"
        )
    corpora = bring_ids([Corpus.open(path) for path in data.corpora], data.encoded, representation)
    mesh = make_mesh(recipe.mesh)
    keep_compiled_programs()
    check_batch(mesh, data.batch_rows, data.sequence_length, data.num_microbatches)
    check_batch(mesh, recipe.evaluation.batch_rows, data.sequence_length)
    return Setup(recipe, representation, corpora, mesh, lay_out(recipe, representation.vocab_size, mesh))


def lay_out(recipe: Recipe, vocab_size: int, mesh: Mesh) -> StepProgram:
    """A recipe's training state over a mesh; nothing is opened or allocated."""
    objective: AnyObjective = recipe.objective
    return build_program(
        lambda rngs: objective.build(recipe.model, vocab_size, rngs),
        recipe.optimizer,
        mesh,
        batch_rows=recipe.data.batch_rows,
        num_sources=len(recipe.data.corpora),
    )


def abstract_batch(recipe: Recipe, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the batches that a recipe's rows make (`data/rows.py`, `data/encoder_rows.py`)."""
    rows, length, num_sources = recipe.data.batch_rows, recipe.data.sequence_length, len(recipe.data.corpora)
    for_encoder = recipe.layout is not CausalRow
    seeds = jax.ShapeDtypeStruct((rows,), jnp.uint32, sharding=batch_sharding(mesh, 1))
    positions = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=batch_sharding(mesh, 2))
    return {
        **dict.fromkeys(("ids", "types" if for_encoder else "targets", "segment_ids", "positions"), positions),
        **({"row_seeds": seeds} if for_encoder else {}),
        "num_bytes": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=batch_sharding(mesh, 1)),
        "cursors": jax.ShapeDtypeStruct((rows, cursor_width(num_sources)), jnp.int32, sharding=cursor_sharding(mesh)),
    }


def count_parameters(recipe: Recipe, vocab_size: int) -> dict[str, int]:
    """Parameters of a recipe's model, by component, and "total"."""
    objective: AnyObjective = recipe.objective
    return objective.count_parameters(recipe.model, vocab_size)


def model_flops_per_token(recipe: Recipe, vocab_size: int) -> dict[str, float]:
    """FLOPs to train a recipe's model on a position, by component, and "total"."""
    objective: AnyObjective = recipe.objective
    return objective.training_flops_per_token(
        recipe.model, vocab_size, recipe.data.piece_length or recipe.data.sequence_length
    )


def load_run(run_dir: str, corpus: str | None = None) -> LoadedRun:
    """The newest whole checkpoint of a run; a newer one that is damaged is told of on stderr.

    Args:
      run_dir: the run's folder; its own copy of the representation is used.
      corpus: a corpus store to take in place of the run's.

    Raises:
      UserError: the folder is no run, or has no whole checkpoint.
    """
    run = RunFolder(run_dir)
    recipe = read_recipe(run)
    if corpus:
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, corpora=(corpus,), weights=(), encoded=())
        )
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    with contextlib.closing(checkpoints):
        step = checkpoints.newest_whole(lambda line: print(f"toklab: {line}", file=sys.stderr))
        if step is None:
            raise UserError(
                f"{run.path} has no checkpoint yet; train it with 'toklab train RECIPE --run-dir {run.path}'"
            )
        setup = set_up(_for_reading(recipe, run))
        params = checkpoints.restore_params(step, setup.program.shapes.params, setup.program.shardings.params)
        return LoadedRun(setup, params, checkpoints.read_meta(step)["counters"])


def _for_reading(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe on the devices that are here, with batches they divide: how many rows are scored at a time changes no
    number."""
    rows = -(-recipe.evaluation.batch_rows // jax.device_count()) * jax.device_count()
    return dataclasses.replace(
        recipe,
        representation=str(run.representation),
        mesh=MeshConfig(),
        data=dataclasses.replace(recipe.data, batch_rows=rows, num_microbatches=1),
        evaluation=dataclasses.replace(recipe.evaluation, batch_rows=rows),
    )
