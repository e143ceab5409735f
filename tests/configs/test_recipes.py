"""Every recipe's resolved config and first losses, committed: a change of either is seen before it is trained on.

If a change is meant, write the new goldens with

    UPDATE_GOLDENS=1 make test TESTS=tests/configs; UPDATE_GOLDENS=1 make test-slow TESTS=tests/configs

and look at their diff: a config that changed makes old runs another recipe's; losses that changed mean that the data
order, the initialization, the model or the optimizer is no longer what it was.
"""

import dataclasses
import json
import os
import pathlib
import random

import numpy as np
import pytest
import rich.console

from data.ingest import IngestOptions, ingest
from data.store import Corpus
from tokenizer_lab.byte import ByteFit
from tokenizer_lab.equal_info import EqualInfoRepresentation
from tokenizer_lab.equal_info.window_code import build_tree
from tokenizer_lab.subword import SubwordFit
from train.loop import train
from train.optimizer import Budget
from train.recipe import Recipe, from_json, load_recipe, recipe_names, to_json
from train.run.folder import RunFolder, read_lines

GOLDEN = pathlib.Path(__file__).parent / "golden"
HOW_TO_UPDATE = (
    "if this is meant, write it anew with UPDATE_GOLDENS=1 make test TESTS=tests/configs (and make test-slow), and say"
    " in the commit why"
)
NUM_STEPS = 3


@pytest.fixture(scope="module")
def fixed(tmp_path_factory) -> pathlib.Path:
    """A corpus of made-up words that is the same everywhere."""
    folder, random_ = tmp_path_factory.mktemp("fixed"), random.Random(0)
    words = ["".join(random_.choice("etaoinshrdlu") for _ in range(random_.randint(2, 9))) for _ in range(4000)]
    (folder / "source").mkdir()
    for number in range(40):
        (folder / "source" / f"{number:02}.txt").write_text(" ".join(random_.choice(words) for _ in range(600)))
    ingest(IngestOptions(sources=(str(folder / "source"),), out=folder / "corpus", test_fraction=0.2))
    return folder


def artifact(fixed: pathlib.Path, kind: str) -> pathlib.Path:
    """That of a kind that the recipes use, fitted on the fixed corpus."""
    folder = fixed / kind
    if folder.exists():
        return folder
    corpus = Corpus.open(fixed / "corpus")
    match kind:
        case "byte":
            representation = ByteFit().fit([], corpus.content_hash)
        case "subword":
            representation = SubwordFit(vocab_size=2048).fit(corpus.documents("train"), corpus.content_hash)
        case "equal_info":
            representation = EqualInfoRepresentation.of_tree(build_tree(byte_counts(corpus), 16), 8)
    representation.save(folder)
    return folder


def byte_counts(corpus: Corpus):
    """A model of the next byte that knows no context, in the place of a trained one."""
    text = np.frombuffer(b"".join(corpus.documents("train")), np.uint8)
    shares = 1 + np.bincount(text, minlength=256) * ((1 << 16) - 256) // len(text)
    shares[shares.argmax()] += (1 << 16) - shares.sum()
    return lambda contexts: np.broadcast_to(shares.astype(np.int32), (len(contexts), 256))


def first_losses(recipe: Recipe, fixed: pathlib.Path, run_dir: pathlib.Path) -> list[float]:
    """The losses of the first steps of a recipe, on the fixed corpus instead of its own, and no more rows than a CPU
    can; nothing is evaluated."""
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(
            recipe.model, compute_dtype="float32", remat="none"
        ),  # what bfloat16 rounds depends on the compiler
        representation=str(artifact(fixed, pathlib.Path(recipe.representation).name)),
        budget=Budget(steps=NUM_STEPS),
        data=dataclasses.replace(
            recipe.data,
            corpora=(str(fixed / "corpus"),),
            batch_rows=8,
            sequence_length=min(recipe.data.sequence_length, 512),
        ),
        logging=dataclasses.replace(recipe.logging, every_steps=1, tensorboard=False),
        evaluation=dataclasses.replace(recipe.evaluation, batch_rows=8),
    )
    train(recipe, run_dir, rich.console.Console(quiet=True), lambda setup: lambda documents, params: {"num_bytes": 1})
    return [line["loss"] for line in read_lines(RunFolder(run_dir).metrics)]


TOO_LARGE = (
    "decoder_125m",
    "decoder_350m",
    "decoder_1b",
    "decoder_8b",
)  # for first losses on a CPU; `toklab plan` compiles them
QUICK = ("demo_byte",)  # the first losses of the others are for make test-slow


@pytest.mark.usefixtures("one_device", "new_programs")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in recipe_names()
        if name not in TOO_LARGE
    ],
)
def test_first_losses_are_as_committed(name, fixed, tmp_path):
    recipe, golden = load_recipe(name), GOLDEN / f"{name}.json"
    losses = first_losses(recipe, fixed, tmp_path / "run")
    if os.environ.get("UPDATE_GOLDENS"):
        golden.write_text(json.dumps({"config": to_json(recipe), "first_losses": losses}, indent=2) + "\n")
    expected = read_golden(name)["first_losses"]
    np.testing.assert_allclose(
        losses, expected, rtol=1e-4, err_msg=f"the first losses of {name} changed; {HOW_TO_UPDATE}"
    )


@pytest.mark.parametrize("name", recipe_names())
def test_resolved_config_is_as_committed(name):
    recipe = load_recipe(name)
    if os.environ.get("UPDATE_GOLDENS") and name in TOO_LARGE:
        (GOLDEN / f"{name}.json").write_text(
            json.dumps({"config": to_json(recipe), "first_losses": None}, indent=2) + "\n"
        )
    expected = read_golden(name)["config"]
    assert to_json(recipe) == expected, f"the resolved config of {name} changed; {HOW_TO_UPDATE}"
    assert from_json(Recipe, expected) == recipe


def read_golden(name):
    golden = GOLDEN / f"{name}.json"
    return json.loads(golden.read_text()) if golden.exists() else pytest.fail(f"{golden} is missing; {HOW_TO_UPDATE}")
