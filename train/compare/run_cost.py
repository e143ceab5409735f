"""The cost of a run: steps, bytes and FLOPs, in total and still to do."""

import dataclasses
import math

from train.compare.resolve import Measured, Text
from train.compare.run_state import CUT_OFF, DONE, MISSING, UNSCORED
from train.optimizer import total_steps
from train.recipe import Recipe
from train.setup import count_parameters, model_flops_per_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a run. None where it is only known at the end."""

    parameters: int
    flops_per_byte: float
    steps: int | None
    num_bytes: float | None
    flops: float | None
    flops_left: float | None
    """Of training, from the newest checkpoint on, and of evaluations."""


def cost_of(recipe: Recipe, measured: Measured, text: Text, step: int, state: str, rate: float | None) -> Cost:
    """The cost of a run in total, and from a step on. `rate` is in FLOPs per second, None if unknown."""
    per_position = model_flops_per_token(recipe, measured.vocab_size)["total"]
    encode_flops, fit_flops = (measured.costs.get(name, 0.0) for name in ("encode_flops_per_id", "fit_flops"))
    positions, budget = recipe.data.batch_rows * recipe.data.sequence_length, recipe.budget
    per_step, bytes_per_step = (per_position + encode_flops) * positions, measured.bytes_per_position * positions
    steps: int | None
    if budget.bytes is not None:
        steps = math.ceil(budget.bytes / bytes_per_step)
    elif budget.seconds is not None:
        steps = None if rate is None else max(1, round(budget.seconds * rate / per_step))
    else:
        assert budget.flops is not None, "`check` refuses budgets in steps"
        steps = total_steps(dataclasses.replace(budget, flops=budget.flops - fit_flops), per_step)
    left = None
    if steps is not None:
        held_out = sum(corpus.documents("test").num_bytes for corpus in text.corpora if "test" in corpus.splits)
        every_steps = recipe.evaluation.every_steps
        num_evaluations = 1 + max(0, steps - step) // every_steps if every_steps else 0
        evaluations = num_evaluations * recipe.evaluation.max_bytes
        scored_bytes = {DONE: 0, UNSCORED: held_out}.get(state, held_out + evaluations)
        scoring = scored_bytes / measured.bytes_per_position * per_position / 3  # forward only
        left = scoring + (max(0, steps - step) * per_step if state in (CUT_OFF, MISSING) else 0.0)
    return Cost(
        parameters=count_parameters(recipe, measured.vocab_size)["total"],
        flops_per_byte=(per_position + encode_flops) / measured.bytes_per_position,
        steps=steps,
        num_bytes=None if steps is None else steps * bytes_per_step,
        flops=None if steps is None else fit_flops + steps * per_step,
        flops_left=left,
    )
