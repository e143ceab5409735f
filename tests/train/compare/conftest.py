"""A tiny experiment: bytes and subwords, one size, two seeds."""

import dataclasses

import pytest

from data.store import Corpus
from tokenizer_lab.byte import ByteFit
from tokenizer_lab.subword import SubwordFit
from train.compare.resolve import Measured, Text
from train.experiment import Arm, Experiment, Size
from train.optimizer import Budget


@pytest.fixture
def experiment(make_recipe) -> Experiment:
    """Bytes and subwords, one size, two seeds."""
    recipe = make_recipe()
    return Experiment(
        name="tiny",
        arms=(
            Arm(name="byte", recipe=recipe, fit=ByteFit()),
            Arm(name="subword", recipe=recipe, fit=SubwordFit(vocab_size=280)),
        ),
        sizes=(Size(name="xs", budget=Budget(bytes=4000), model={"num_layers": 1}),),
        seeds=(0, 1),
        context_bytes=48,
    )


@pytest.fixture
def text(corpus) -> Text:
    return Text((str(corpus),), (Corpus.open(corpus),))


@pytest.fixture
def measured() -> dict[str, Measured]:
    """The arms' representations, as if they had been fitted."""
    return {
        "byte": Measured(path="a", fingerprint="b", vocab_size=257, costs={}, bytes_per_position=0.98),
        "subword": Measured(
            path="c", fingerprint="d", vocab_size=280, costs={"fit_flops": 1e9}, bytes_per_position=2.3
        ),
    }


@pytest.fixture(scope="session")
def change():
    """change(experiment, number, **fields): the experiment with fields of one of its arms changed."""

    def changed(experiment: Experiment, number: int, **fields) -> Experiment:
        arms = list(experiment.arms)
        arms[number] = dataclasses.replace(arms[number], **fields)
        return dataclasses.replace(experiment, arms=tuple(arms))

    return changed
