"""What a recipe stands for on this machine: everything that training, evaluation and sampling are built from."""

import contextlib
import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

import tokenizer_lab
from data.encoded import bring_ids
from data.held_out import count_seen_by_fit
from data.manifest import MANIFEST
from data.rows import CausalRow, cursor_width
from data.split import RunSplit, run_split
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import remote_errors
from tokenizer_lab.representation import Representation
from train.hosts.hardware import keep_compiled_programs
from train.objectives import AnyObjective
from train.optimizer import Budget, Meter, make_meter, total_steps
from train.recipe import Recipe, read_recipe, to_json
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder
from train.sharding import MeshConfig, batch_sharding, check_batch, cursor_sharding, dividing_mesh, make_mesh
from train.step import AbstractModel, StepProgram, abstract_model, build_program


@dataclasses.dataclass(frozen=True)
class Setup:
    """A recipe with what it names opened and what it describes laid out; no weights yet."""

    recipe: Recipe
    representation: Representation
    corpora: list[Corpus]
    """What is trained on; of a loaded run none, which stands alone until `LoadedRun.open_corpora`."""
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
    def split(self) -> RunSplit:
        """What is trained on and what is held out, over all corpora."""
        return run_split(corpus.test_fraction for corpus in self.corpora)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the run it belongs to."""
        return {
            "config": to_json(self.recipe),
            "representation_fingerprint": self.representation.fingerprint,
            "corpus_content_hashes": [corpus.content_hash for corpus in self.corpora],
            "scored_below": self.split.scored_below,
        }


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained run on this machine's devices."""

    setup: Setup
    params: Any
    counters: dict[str, Any]
    """Steps, bytes seen and FLOPs spent when the weights were saved: step, bytes_seen, flops."""
    kept_scored_below: float | None = None
    """`scored_below`, as its checkpoint has it; None in those of before it was kept."""

    @property
    def scored_below(self) -> float | None:
        """Of its split: documents below are surely new to it. None where that cannot be known any more.

        Runs of before it was kept trained on all that a corpus did not hold out.
        """
        if self.kept_scored_below is not None:
            return self.kept_scored_below
        try:
            return min(Corpus.open(path).test_fraction for path in self.setup.recipe.data.corpora)
        except UserError:
            return None

    @property
    def missing_corpora(self) -> list[str]:
        """Where the run's corpora were and are not any more."""
        return [path for path in self.setup.recipe.data.corpora if not _is_store(path)]

    def open_corpora(self, corpus: str | None = None) -> list[Corpus]:
        """The corpora that the run was trained on, or one in their place. Raises UserError where they are gone."""
        data = self.setup.recipe.data
        if corpus is None and (gone := self.missing_corpora):
            raise UserError(
                f"the text that {self.setup.recipe.name} was trained on is not in {', '.join(gone)} any more; give"
                " --corpus CORPUS, with the folder where it is now or another text"
            )
        opened = [Corpus.open(path) for path in ((corpus,) if corpus else data.corpora)]
        ids = [] if corpus else [folder for folder in data.encoded if _is_store(folder)]
        return bring_ids(opened, ids, self.setup.representation)


def _is_store(folder: str) -> bool:
    with remote_errors(folder):
        return (epath.Path(folder) / MANIFEST).exists()


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
    check_fit(recipe.representation, representation, corpora)
    model = _abstract(recipe, representation.vocab_size)
    return _on_mesh(recipe, representation, corpora, model, make_mesh(recipe.mesh))


def check_fit(name: str, representation: Representation, corpora: list[Corpus]) -> None:
    """Raises UserError where a representation was fitted on text that the run is scored on: on one corpus of several,
    which holds out less than the others. Where that cannot be looked at, stderr says so."""
    scored_below = run_split(corpus.test_fraction for corpus in corpora).scored_below
    for corpus in corpora:
        if corpus.content_hash != representation.fit_corpus_hash or corpus.test_fraction >= scored_below:
            continue
        held_out = f"{corpus.folder}, which holds out {corpus.test_fraction:.4g} of its text where others of the run"
        held_out += f" hold out {scored_below:.4g}"
        if (seen := count_seen_by_fit(corpus, corpora, scored_below)) is None:
            print(f"toklab: {name} was fitted on {held_out}; it may have seen documents of theirs", file=sys.stderr)
        elif seen:
            raise UserError(
                f"{name} was fitted on {held_out}, and has seen {seen:,} documents that the run is scored on; ingest"
                f" {corpus.folder} anew with --test-fraction {scored_below:.17g}, or fit on another corpus of the run"
            )


def _on_mesh(
    recipe: Recipe, representation: Representation, corpora: list[Corpus], model: AbstractModel, mesh: Mesh
) -> Setup:
    data = recipe.data
    keep_compiled_programs()
    check_batch(mesh, data.batch_rows, data.sequence_length, data.num_microbatches)
    check_batch(mesh, recipe.evaluation.batch_rows, data.sequence_length, section="evaluation")
    return Setup(recipe, representation, corpora, mesh, _lay_out(recipe, model, mesh))


def lay_out(recipe: Recipe, vocab_size: int, mesh: Mesh) -> StepProgram:
    """A recipe's training state over a mesh; nothing is opened or allocated."""
    return _lay_out(recipe, _abstract(recipe, vocab_size), mesh)


def _lay_out(recipe: Recipe, model: AbstractModel, mesh: Mesh) -> StepProgram:
    rows, num_sources = recipe.data.batch_rows, len(recipe.data.corpora)
    return build_program(model, recipe.optimizer, mesh, batch_rows=rows, num_sources=num_sources)


def _abstract(recipe: Recipe, vocab_size: int) -> AbstractModel:
    objective: AnyObjective = recipe.objective
    return abstract_model(lambda rngs: objective.build(recipe.model, vocab_size, rngs))


def abstract_parameters(recipe: Recipe, vocab_size: int) -> tuple[Any, Any]:
    """Shapes of a recipe's parameters and their logical axes, as `train.sharding.parameter_shardings` takes them."""
    model = _abstract(recipe, vocab_size)
    return model.shapes, model.axes


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


def load_run(run_dir: str, batch_rows: int | None = None) -> LoadedRun:
    """The newest whole checkpoint of a run, over the devices that are here; a newer one that is damaged is told of on
    stderr. Nothing outside of the run's folder is opened: its own copy of the representation is used.

    Args:
      run_dir: the run's folder.
      batch_rows: rows to score at a time, rounded up to a multiple of the devices; by default the recipe's.

    Raises:
      UserError: the folder is no run, or has no whole checkpoint.
    """
    run = RunFolder(run_dir)
    recipe = read_recipe(run)
    checkpoints = Checkpoints(run.checkpoints, read_only=True)
    with contextlib.closing(checkpoints):
        step = checkpoints.newest_whole(lambda line: print(f"toklab: {line}", file=sys.stderr))
        if step is None:
            raise UserError(
                f"{run.path} has no checkpoint yet; train it with 'toklab train RECIPE --run-dir {run.path}'"
            )
        setup = _set_up_for_reading(recipe, run, batch_rows or recipe.evaluation.batch_rows)
        params = checkpoints.restore_params(step, setup.program.shapes.params, setup.program.shardings.params)
        meta = checkpoints.read_meta(step)
        return LoadedRun(setup, params, meta["counters"], meta.get("scored_below"))


def _set_up_for_reading(recipe: Recipe, run: RunFolder, batch_rows: int) -> Setup:
    """A run's recipe on the devices that are here, with batches they divide: how many rows are scored at a time changes
    no number."""
    rows = -(-batch_rows // jax.device_count()) * jax.device_count()
    recipe = dataclasses.replace(
        recipe,
        representation=str(run.representation),
        mesh=MeshConfig(),
        data=dataclasses.replace(recipe.data, batch_rows=rows, num_microbatches=1),
        evaluation=dataclasses.replace(recipe.evaluation, batch_rows=rows),
    )
    representation = tokenizer_lab.load(recipe.representation)
    model = _abstract(recipe, representation.vocab_size)
    return _on_mesh(recipe, representation, [], model, dividing_mesh(model.shapes, model.axes))
