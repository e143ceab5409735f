"""The byte language model behind a compressed representation: trained like any other run, then quantized."""

import dataclasses
from typing import Any

import jax
import numpy as np
import rich.console
from etils import epath

from data.store import Corpus
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.equal_info.byte_lm import ByteLM
from tokenizer_lab.equal_info.quantization import quantize
from tokenizer_lab.errors import UserError
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.optimizer import Budget
from train.recipe import Recipe, load_recipe
from train.run.folder import RunFolder
from train.setup import load_run
from train.summary import FINISHED

_SMALL, _LARGE = "demo_compressor", "compressor_3m"
_MOST_PASSES = 8  # over a text, of a recipe that nobody has chosen


def choose_recipe(name: str | None, corpus_path: epath.Path) -> tuple[Recipe, str]:
    """The recipe of a byte language model for a corpus, and what to say of the choice, if none is named.

    Raises:
      UserError: there is no such recipe, it trains no decoder, or it takes more text at a time than the corpus has.
    """
    there, why = Corpus.open(corpus_path).documents("train").num_bytes, ""
    recipe = load_recipe(name or _default_name())
    if recipe.model.kind != "decoder":
        raise UserError(
            f"the recipe {name} trains a model of kind {recipe.model.kind!r}; a compressor is a decoder over bytes:"
            f" choose another --lm-recipe, e.g. {_LARGE}"
        )
    if name is None:
        why = "; --lm-recipe takes another"
        if recipe.budget.bytes is not None and (most := _MOST_PASSES * there) < recipe.budget.bytes:
            recipe = dataclasses.replace(recipe, budget=Budget(bytes=most))
            why = f", on {_MOST_PASSES} passes over the text{why}"
        if recipe.name == _SMALL:
            why = f", a small one, as there is no accelerator here{why}, e.g. {_LARGE}"
    needed = recipe.data.batch_rows * recipe.data.sequence_length
    if there < needed:
        raise UserError(
            f"{corpus_path} has {there:,} bytes to train on, less than one batch ({needed:,}) of the recipe"
            f" {name or recipe.name}; ingest more text, or choose a smaller --lm-recipe"
        )
    return recipe, why


def _default_name() -> str:
    """Of a recipe that this machine trains in minutes."""
    return _SMALL if jax.default_backend() == "cpu" else _LARGE


def train_byte_lm(recipe: Recipe, corpus_path: epath.Path, run_dir: epath.Path, console: rich.console.Console) -> bool:
    """Trains a byte language model on a corpus's train split, or goes on with it; whether it has finished."""
    representation = RunFolder(run_dir).representation
    ByteRepresentation().save(representation)
    data = dataclasses.replace(recipe.data, corpora=(str(corpus_path),), weights=(), encoded=())
    recipe = dataclasses.replace(recipe, representation=str(representation), data=data)
    return train(recipe, str(run_dir), console, make_judge) == FINISHED


def load_byte_lm(run_dir: epath.Path) -> tuple[ByteLM, float]:
    """The quantized language model of a run, and the FLOPs that training it took.

    Raises:
      UserError: the run is not one over bytes, or its weights are not finite.
    """
    loaded = load_run(str(run_dir))
    recipe, kind = loaded.setup.recipe, loaded.setup.representation.kind
    if kind != ByteRepresentation.kind or recipe.model.kind != "decoder":
        raise UserError(
            f"{run_dir} is a run of a {recipe.model.kind} over {kind} ids; a compressor is a decoder over bytes;"
            " leave --lm out, and one is trained"
        )
    params = _flat(loaded.params)
    if recipe.model.tied_embeddings:
        params["unembedding"] = params["embedding"]
    lm = quantize(
        params,
        rope_theta=recipe.model.rope_theta,
        context_bytes=recipe.data.piece_length or recipe.data.sequence_length,
    )
    return lm, loaded.counters["flops"]


def _flat(params: Any) -> dict[str, np.ndarray]:
    """The weights of a `models.decoder.Decoder` under their own names, which are all different."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        flat |= _flat(value) if hasattr(value, "items") else {name: np.asarray(value)}
    return flat
