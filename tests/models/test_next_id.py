"""What a model of the next id has without writing it."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.decoder import Decoder, DecoderConfig
from models.next_id import NextIdConfig, NextIdModel

VOCAB, LENGTH = 50, 12
TINY = DecoderConfig(
    num_layers=1,
    embed_dim=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    remat="none",
    compute_dtype="float32",
)


class KeepsIds(Decoder):
    """A decoder without a cache of its own."""

    extend, empty_cache = NextIdModel.extend, NextIdModel.empty_cache


def test_a_model_without_a_cache_of_its_own_gives_the_same_logits():
    """Prompts of different lengths in padded rows, then id by id."""
    step = nnx.jit(lambda model, *arguments: model.extend(*arguments))
    found = []
    for kind in (Decoder, KeepsIds):
        model, random_, logits = kind(TINY, VOCAB, rngs=nnx.Rngs(0)), np.random.default_rng(0), []
        draw = lambda *shape: jnp.asarray(random_.integers(0, VOCAB, shape), jnp.int32)
        known = jnp.array([7, 3])
        after, cache = step(model, draw(2, 8), jnp.zeros_like(known), model.empty_cache(2, LENGTH), known - 1)
        logits.append(after)
        for number in range(4):
            after, cache = step(model, draw(2, 1), known + number, cache)
            logits.append(after)
        found.append(np.stack(logits)[..., :VOCAB])
    np.testing.assert_allclose(*found, atol=1e-5)


def test_a_config_that_leaves_something_out_cannot_be_made():
    class Unfinished(NextIdConfig):
        """Counts nothing and builds nothing."""

    with pytest.raises(TypeError, match="build.*count_parameters.*training_flops_per_token"):
        Unfinished()


def test_generation_costs_a_forward_pass_where_nothing_else_is_said():
    whole = NextIdConfig.generation_flops_per_token(TINY, VOCAB, LENGTH)
    assert whole == TINY.training_flops_per_token(VOCAB, LENGTH)["total"] / 3
