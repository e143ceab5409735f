"""An experiment: arms x sizes x seeds, at equal budgets, as a typed Python file for `toklab compare`.

Such a file is in `configs/` or anywhere and has a function `experiment() -> Experiment`. What is compared is the
experiment's, and overrides what the arms' recipes say: the text, the budget, the seeds and, matched in bytes, the
length of rows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from train.optimizer import Budget
from train.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the ways to train that are compared: a representation, an objective and a model."""

    name: str
    recipe: Recipe
    """Its objective, model, optimizer and rows. Where nothing is fitted, its representation is the artifact that is
    used."""
    fit: Any = None
    """Options of `toklab fit`, e.g. `SubwordFit(vocab_size=4096)`: the representation is fitted on the experiment's
    text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A rung of the ladder: a budget, and what makes every arm's model larger or smaller."""

    name: str
    budget: Budget
    """In FLOPs, bytes or seconds; the same for every arm, of one kind in all sizes."""
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the models' configs."""
    optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the optimizers' configs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms x sizes x seeds."""

    name: str
    arms: tuple[Arm, ...]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is another initialization and another order of the documents, the same ones in every arm."""
    context_bytes: int | None = 512
    """Text that a row of every arm holds on average; None leaves the length of rows to the arms' recipes."""
