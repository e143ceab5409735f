"""What an objective is: a callable (model, batch, rng) -> (loss_sum, weight_sum, sums).

Sums and not means, so that dividing once at the end is right whatever the padding, the gradient accumulation and the
number of devices. Where a loss is a sum of two means over different positions, the global batch tells beforehand how
many there are of each: `draw`, which takes all chances of a step, sees it before it is cut into microbatches. Chance
belongs to a row (`row_seeds`) and not to a device, so that a batch and its losses are the same on every mesh.

An objective also says which model it needs (`model_family`, `check`, `build`, `count_parameters`,
`training_flops_per_token`), how rows are laid out for it (`layout`), and what its sums stand for (`figures`).
`causal.py` is the shortest example. Batches are those of `data/rows.py` and `data/encoder_rows.py`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from tokenizer_lab.representation import Representation

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]


class AnyObjective(Protocol):
    """An objective with the model that it trains, whichever that is; a recipe has no others."""

    def check(self, model: Any, sequence_length: int) -> None: ...

    def build(self, model: Any, vocab_size: int, rngs: nnx.Rngs) -> nnx.Module: ...

    def count_parameters(self, model: Any, vocab_size: int) -> dict[str, int]: ...

    def training_flops_per_token(self, model: Any, vocab_size: int, sequence_length: int) -> dict[str, float]: ...

    def draw(self, model: Any, batch: Batch) -> Batch: ...

    def __call__(self, model: Any, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]: ...

    def learn(self, params: Any, sums: Sums) -> Any: ...


class LearnsByGradients:
    """What an objective has to know, and to learn, besides the gradients: nothing, unless it says otherwise."""

    def learn_from_text(self, params: Any, representation: Representation, documents: Any) -> Any:
        """The parameters before the first step, with what is to be known of the text."""
        del representation, documents
        return params

    def learn(self, params: Any, sums: Sums) -> Any:
        """The parameters after a step, with what is learned otherwise than by gradients."""
        del sums
        return params


def per_row(row_seeds_b: jax.Array, place: int, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """`function` of a key for each row; `place` keeps draws of one row apart."""
    return jax.vmap(lambda seed: function(jax.random.fold_in(jax.random.key(seed), place)))(row_seeds_b)


def num_positions(batch: Batch) -> jax.Array:
    return jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)


def ratio(total: float, count: float) -> float | None:
    return total / count if count else None
