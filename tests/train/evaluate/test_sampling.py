import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import OpenPrompt
from train.evaluate.sampling import _draw, _within, sample_text

CONFIG = DecoderConfig(
    num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, compute_dtype="float32"
)


@pytest.fixture(scope="module")
def model():
    """(model_def, params, module) of an untrained byte model."""
    module = CONFIG.build(257, nnx.Rngs(0))
    model_def, state = nnx.split(module, nnx.Param)
    return model_def, nnx.to_pure_dict(state), module


def sample(model, prompt=b"hello", **options):
    return sample_text(model[0], model[1], ByteRepresentation(), prompt, **{"max_tokens": 20, **options})


def test_the_likeliest_text_is_that_of_the_full_forward_pass(model):
    logits_after = jax.jit(
        lambda row, length: model[2].logits(
            model[2](row, jnp.ones_like(row), jnp.arange(row.shape[1])[None])[0, length - 1]
        )
    )
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
    # The hidden state times ones may have either sign; the likeliest id is the end of the document or any other, the
    # text then empty or not.
    ended = [
        sample_text(model_def, silent, ByteRepresentation(), bytes([first]), max_tokens=8, temperature=0.0)
        for first in range(97, 110)
    ]
    assert b"" in ended and all(len(text) <= 8 for text in ended)


NUM_IDS = 4  # besides the end of the document, which is the last


def allowed(low: tuple[int, ...], high: tuple[int, ...], drawn: tuple[int, ...]) -> list[int]:
    """The ids that may follow those drawn."""
    padded = jnp.array([*drawn, *[NUM_IDS] * (6 - len(drawn))], jnp.int32)
    logits = _within(jnp.zeros(NUM_IDS + 1), padded, jnp.int32(len(drawn)), jnp.array(low), jnp.array(high), NUM_IDS)
    return np.flatnonzero(np.isfinite(logits)).tolist()


@given(st.integers(1, 3), st.data())
@settings(deadline=None, max_examples=30)
def test_the_first_ids_are_those_between_low_and_high_and_all_of_them(count, data):
    every = list(itertools.product(range(NUM_IDS), repeat=count))
    low, high = sorted(data.draw(st.lists(st.sampled_from(every), min_size=2, max_size=2)))
    reached = [()]
    for _ in range(count):
        reached = [(*drawn, id_) for drawn in reached for id_ in allowed(low, high, drawn)]
    assert reached == [ids for ids in every if low <= ids <= high]
    assert allowed(low, high, reached[0]) == list(range(NUM_IDS + 1)), "behind them any, and the end of the document"


class Pairs(ByteRepresentation):
    """Bytes of which two make a window; a prompt's last byte is not certain, it and the next are within limits."""

    low, high = (ord("l"), ord("x")), (ord("n"), ord("c"))

    def open_prompt(self, text):
        return OpenPrompt(self.encode(text[:-1]), self.low, self.high)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_a_prompt_with_an_open_end_goes_on_within_its_limits(model, temperature):
    """A sample begins with the prompt's certain bytes, then two between the limits, then whatever there may be."""
    seen = set()
    for seed in range(12):
        text = sample_text(model[0], model[1], Pairs(), b"pel", max_tokens=6, temperature=temperature, seed=seed)
        # A text that does not begin with the prompt comes back whole.
        text = text if text[:2] == b"pe" else b"pel" + text
        assert b"pelx" <= text[:4] <= b"penc" and 4 <= len(text) <= 2 + 2 + 6
        seen.add(text[2:4])
    assert len(seen) > 1 or temperature == 0


def test_limits_that_leave_one_choice_are_kept_whatever_the_model_likes(model):
    class Certain(Pairs):
        low = high = tuple(b"lo")

    text = sample_text(model[0], model[1], Certain(), b"hel", max_tokens=3, temperature=1.0, top_k=1, top_p=0.1)
    assert text.startswith(b"o") and len(text) <= 4


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
