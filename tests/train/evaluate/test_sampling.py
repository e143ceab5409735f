import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from models.axes import parameter_axes
from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import OpenPrompt
from train.evaluate.generation import Draw, Sampler, draw_id, within
from train.sharding import MeshConfig, make_mesh, parameter_shardings

CONFIG = DecoderConfig(
    num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, compute_dtype="float32"
)


@pytest.fixture(scope="module")
def model():
    """(model_def, params, module) of an untrained byte model."""
    module = CONFIG.build(257, nnx.Rngs(0))
    model_def, state = nnx.split(module, nnx.Param)
    return model_def, nnx.to_pure_dict(state), module


def make_sampler(model, representation=None, length=64, **options):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Sampler(model[0], model[1], representation or ByteRepresentation(), mesh, length=length, **options)


@pytest.fixture(scope="module")
def sampler(model):
    """Of rows of 64 ids."""
    return make_sampler(model)


def sample(sampler, prompt=b"hello", max_tokens=20, **options):
    [text], _ = sampler.draw([prompt], max_tokens, Draw(**options))
    return text


def test_the_likeliest_text_is_that_of_the_full_forward_pass(model, sampler):
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
    assert sample(sampler, temperature=0.0) == expected


def test_a_seed_gives_one_text_and_another_seed_another(sampler):
    assert sample(sampler, seed=1) == sample(sampler, seed=1) != sample(sampler, seed=2)


def test_texts_drawn_together_are_those_drawn_alone(sampler):
    prompts = [b"hello", b"", b"a", b"hello there " * 3]
    together, _ = sampler.draw(prompts, 20, Draw(seed=3))
    assert together == [sample(sampler, prompt, seed=3) for prompt in prompts] and all(together)


def test_several_devices_change_nothing(model, sampler):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    axes = parameter_axes(nnx.split(model[2], nnx.Param)[1])
    params = jax.device_put(model[1], parameter_shardings(mesh, model[1], axes))
    split = Sampler(model[0], params, ByteRepresentation(), mesh, length=64)
    prompts = [b"hello", b"a", b""]
    assert split.draw(prompts, 12, Draw(seed=3))[0] == sampler.draw(prompts, 12, Draw(seed=3))[0]


def test_prompts_of_any_length_share_few_programs(model, monkeypatch):
    sampler, shapes = make_sampler(model), set()
    monkeypatch.setattr(
        sampler, "_generate", lambda params, ids, *rest, **size: shapes.add(ids.shape) or np.full((len(ids), 16), 256)
    )
    for count in range(64):
        sample(sampler, b"x" * count, max_tokens=4)
    assert shapes == {(1, 16), (1, 32), (1, 64)}


@pytest.mark.parametrize(
    "num_before, max_tokens", [(0, 100), (5, 40), (31, 8), (32, 8), (100, 8), (100, 16), (100, 100)]
)
def test_no_id_is_drawn_at_a_position_that_was_not_trained(model, monkeypatch, num_before, max_tokens):
    length, seen = 32, []
    sampler = make_sampler(model, length=length)

    def generate(params, ids, numbers, *rest, size, eod_id):
        seen.append((*numbers[0][[0, 2]], ids[0, : numbers[0, 0]].tobytes()))
        return np.full((len(ids), size), ord("y"), np.int32)

    monkeypatch.setattr(sampler, "_generate", generate)
    prompt = bytes(np.arange(num_before, dtype=np.uint8))
    [text], [how] = sampler.draw([prompt], max_tokens, Draw())
    assert text == b"y" * max_tokens
    assert all(known + drawn <= length and known >= min(num_before + 1, length // 2) for known, drawn, _ in seen)
    known, drawn, ids = seen[0]
    everything = np.array([256, *prompt], np.int32)
    kept = max(length - max_tokens, length // 2)
    assert ids == everything[-min(len(everything), kept) :].tobytes(), "what was trained less what is asked for"
    assert how.was_cut == (len(everything) > kept) and how.forgot == (len(everything) + max_tokens > length)


def test_pieces_that_began_anew_in_training_do_so_here(model, monkeypatch):
    sampler, seen = make_sampler(model, length=32, begins_anew=True), []
    monkeypatch.setattr(
        sampler, "_generate", lambda params, ids, *rest, size, eod_id: seen.append(ids) or np.full((1, size), eod_id)
    )
    sample(sampler, b"x" * 40, max_tokens=8)
    assert seen[0][0, :24].tolist() == [256, *b"x" * 23]


def test_draws_follow_the_softmax_and_its_cuts():
    logits = jnp.log(jnp.array([0.5, 0.25, 0.15, 0.1]))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(temperature=1.0, top_k=0, top_p=1.0):
        drawn = jax.vmap(lambda key: draw_id(key, logits, jnp.float32(temperature), top_k, jnp.float32(top_p)))(keys)
        return np.bincount(drawn, minlength=4) / len(keys)

    np.testing.assert_allclose(shares(), [0.5, 0.25, 0.15, 0.1], atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [2 / 3, 1 / 3, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.8), [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.01), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(temperature=0.0), [1, 0, 0, 0])
    np.testing.assert_allclose(shares(temperature=0.5), np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345, atol=0.03)


def test_of_equally_likely_ids_only_k_are_kept():
    drawn = {int(draw_id(jax.random.key(seed), jnp.zeros(6), 1.0, 2, 1.0)) for seed in range(30)}
    assert drawn == {0, 1}


def test_text_ends_where_the_document_ends(model):
    model_def, params, _ = model
    silent = dict(params, unembedding=jnp.zeros_like(params["unembedding"]).at[256].set(params["final_scale"] * 0 + 1))
    # The hidden state times ones may have either sign; the likeliest id is the end of the document or any other, the
    # text then empty or not.
    prompts = [bytes([first]) for first in range(97, 110)]
    ended, _ = make_sampler((model_def, silent)).draw(prompts, 8, Draw(temperature=0.0))
    assert b"" in ended and all(len(text) <= 8 for text in ended)


NUM_IDS = 4  # besides the end of the document, which is the last


def allowed(low: tuple[int, ...], high: tuple[int, ...], drawn: tuple[int, ...]) -> list[int]:
    """The ids that may follow those drawn."""
    padded = jnp.array([*drawn, *[NUM_IDS] * (6 - len(drawn))], jnp.int32)
    bounds = (jnp.array([*end, 0]) for end in (low, high))  # of another text one more id is within limits
    logits = within(jnp.zeros(NUM_IDS + 1), padded, jnp.int32(len(drawn)), *bounds, jnp.int32(len(low)), NUM_IDS)
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
    seen, sampler = set(), make_sampler(model, Pairs())
    for seed in range(12):
        text = sample(sampler, b"pel", max_tokens=6, temperature=temperature, seed=seed)
        # A text that does not begin with the prompt comes back whole.
        text = text if text[:2] == b"pe" else b"pel" + text
        assert b"pelx" <= text[:4] <= b"penc" and 4 <= len(text) <= 2 + 2 + 6
        seen.add(text[2:4])
    assert len(seen) > 1 or temperature == 0


def test_limits_that_leave_one_choice_are_kept_whatever_the_model_likes(model):
    class Certain(Pairs):
        low = high = tuple(b"lo")

    text = sample(make_sampler(model, Certain()), b"hel", max_tokens=3, temperature=1.0, top_k=1, top_p=0.1)
    assert text.startswith(b"o") and len(text) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "--temperature is -1.0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"temperature": float("inf")}, "--temperature is inf"),
        ({"top_k": -1}, "--top-k is -1"),
        ({"seed": 12345678901234567890}, "--seed is 12345678901234567890; it must be at most 4294967295"),
        ({"top_p": 0.0}, "--top-p is 0.0"),
        ({"top_p": 1.5}, "--top-p is 1.5"),
    ],
)
def test_options_that_no_text_can_be_drawn_with_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Draw(**options)
