import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from train.sampling import _draw, sample_text

CONFIG = DecoderConfig(num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, compute_dtype="float32")


@pytest.fixture(scope="module")
def model():
    """(model_def, params, module) of an untrained byte model."""
    module = CONFIG.build(257, nnx.Rngs(0))
    model_def, state = nnx.split(module, nnx.Param)
    return model_def, nnx.to_pure_dict(state), module


def sample(model, prompt=b"hello", **options):
    return sample_text(model[0], model[1], ByteRepresentation(), prompt, **{"max_tokens": 20, **options})


def test_the_likeliest_text_is_that_of_the_full_forward_pass(model):
    logits_after = jax.jit(lambda row, length: model[2].logits(model[2](row, jnp.ones_like(row), jnp.arange(row.shape[1])[None])[0, length - 1]))
    ids = [256, *b"hello"]
    while len(ids) < 26 and (len(ids) == 6 or ids[-1] != 256):
        padded = jnp.asarray([ids + [0] * (26 - len(ids))])  # what comes behind does not count: attention is causal
        ids.append(int(jnp.argmax(logits_after(padded, len(ids)))))
    expected = bytes(id for id in ids[6:] if id < 256)
    assert sample(model, temperature=0.0) == expected


def test_a_seed_gives_one_text_and_another_seed_another(model):
    assert sample(model, seed=1) == sample(model, seed=1) != sample(model, seed=2)


def test_draws_follow_the_softmax_and_its_cuts():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature=1.0, top_k=0, top_p=1.0):
        drawn = jax.vmap(lambda key: _draw(key, logits, jnp.float32(temperature), top_k, jnp.float32(top_p)))(keys)
        return np.bincount(drawn, minlength=4) / len(keys)

    np.testing.assert_allclose(shares(), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.8), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.01), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(temperature=0.0), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(temperature=0.5), np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345, atol=0.03)


def test_text_ends_where_the_document_ends(model):
    model_def, params, _ = model
    silent = dict(params, unembedding=jnp.zeros_like(params["unembedding"]).at[256].set(params["final_scale"] * 0 + 1))
    # The hidden state times ones may have either sign; the likeliest id is the end of the document or any other, the text then empty or not.
    ended = [sample_text(model_def, silent, ByteRepresentation(), bytes([first]), max_tokens=8, temperature=0.0) for first in range(97, 110)]
    assert b"" in ended and all(len(text) <= 8 for text in ended)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": b""}, "the prompt is empty"),
        ({"max_tokens": 0}, "--max-tokens is 0"),
        ({"temperature": -1.0}, "--temperature is -1.0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_k": -1}, "--top-k is -1"),
        ({"top_p": 0.0}, "--top-p is 0.0"),
        ({"top_p": 1.5}, "--top-p is 1.5"),
    ],
)
def test_options_that_no_text_can_be_drawn_with_are_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        sample(model, **options)
