"""What continuations cost, against the probabilities of all ids written out."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from models.decoder import DecoderConfig
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import OpenPrompt, Representation
from train.evaluate.likelihood import Likelihoods, beginnings, boxes
from train.sharding import MeshConfig, make_mesh

CONFIG = DecoderConfig(
    num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=48, compute_dtype="float32"
)
LENGTH = 12


class Windows(Representation):
    """Texts of a and b. Four letters are a number of four bits, written as two ids of two bits; fewer at the end leave
    a window open."""

    kind, vocab_size, eod_id = "windows", 5, 4

    def open_prompt(self, text):
        low, high = (self.encode(text + end * (-len(text) % 4)) for end in (b"a", b"b"))
        return (
            OpenPrompt(low, (), ())
            if len(text) % 4 == 0
            else OpenPrompt(low[:-2], tuple(low[-2:].tolist()), tuple(high[-2:].tolist()))
        )

    def encode(self, text):
        bits = [byte - ord("a") for byte in text]
        return np.array([2 * first + second for first, second in zip(bits[::2], bits[1::2])], np.int32)

    decode = byte_lengths = to_files = from_files = None


def scorer(representation: Representation, num_devices: int = 1) -> tuple[Likelihoods, nnx.Module]:
    """An untrained decoder's likelihoods, and the decoder."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:num_devices])
    module = CONFIG.build(representation.vocab_size, nnx.Rngs(0))
    model_def, state = nnx.split(module, nnx.Param)
    recipe = types.SimpleNamespace(
        name="tiny",
        model=CONFIG,
        kernels="auto",
        data=types.SimpleNamespace(trained_length=LENGTH),
        evaluation=types.SimpleNamespace(batch_rows=4),
    )
    setup = types.SimpleNamespace(
        recipe=recipe, representation=representation, mesh=mesh, program=types.SimpleNamespace(model_def=model_def)
    )
    return Likelihoods(types.SimpleNamespace(setup=setup, params=nnx.to_pure_dict(state))), module


@pytest.fixture(scope="module")
def of_bytes():
    return scorer(ByteRepresentation())


@pytest.fixture(scope="module")
def of_windows():
    return scorer(Windows())


def log_probabilities(module: nnx.Module, ids: list[int]) -> np.ndarray:
    """f[T, V] of the ids behind the first 1, 2, ... of `ids`."""
    row = jnp.asarray([ids + [0] * (LENGTH + 2 - len(ids))])
    return np.asarray(log_softmax_of(module)(row), np.float64)[: len(ids)]


@functools.cache
def log_softmax_of(module: nnx.Module):
    """The function i32[1, T] -> f[T, V], compiled once."""

    def log_softmax(row):
        hidden = module(row, jnp.ones_like(row), jnp.arange(row.shape[1])[None])
        return jax.nn.log_softmax(module.logits(hidden)[0], axis=-1)

    return jax.jit(log_softmax)


def joint(module: nnx.Module, eod_id: int, ids: list[int]) -> float:
    rows = log_probabilities(module, [eod_id, *ids])
    return sum(rows[place, id_] for place, id_ in enumerate(ids))


@given(st.integers(0, 3), st.data())
@settings(deadline=None)
def test_boxes_hold_every_tuple_of_a_range_once(count, data):
    last = 2
    every = sorted(itertools.product(range(last + 1), repeat=count))
    low, high = sorted(data.draw(st.lists(st.sampled_from(every), min_size=2, max_size=2)))
    held = [
        choice
        for box in boxes(low, high, last)
        for choice in every
        if all(a <= id_ <= b for id_, (a, b) in zip(choice, box))
    ]
    assert sorted(held) == [choice for choice in every if low <= choice <= high]


def test_bytes_cost_the_sum_over_the_continuation_s_ids(of_bytes):
    likelihoods, module = of_bytes
    pairs = [(b"to be", b" or"), (b"", b"not"), (b"to be", b" and"), (b"a", b"")]
    rows = log_probabilities(module, [256, *b"to be or"])
    expected = sum(rows[place, byte] for place, byte in enumerate(b"to be or") if place >= 5)
    found = likelihoods.continuations(pairs)
    assert found[0][0] == pytest.approx(expected, abs=1e-4)
    assert found[1][0] == pytest.approx(joint(module, 256, list(b"not")), abs=1e-4)
    assert found[3] == (0.0, True)
    assert [likelihoods.continuations([pair])[0][0] for pair in pairs] == pytest.approx(
        [each for each, _ in found], abs=1e-4
    )


def test_the_likeliest_continuation_is_said_to_be_it(of_bytes):
    likelihoods, module = of_bytes
    ids = [256, *b"to"]
    for _ in range(3):
        ids.append(int(log_probabilities(module, ids)[-1].argmax()))
    likeliest = bytes(id_ for id_ in ids[3:])
    other = likeliest[:-1] + bytes([likeliest[-1] ^ 1])
    assert [said for _, said in likelihoods.continuations([(b"to", likeliest), (b"to", other)])] == [True, False]


def test_an_open_end_counts_everything_that_goes_on_with_it(of_windows):
    likelihoods, module = of_windows

    def begins(text):
        """The log-probability that a document begins so, by all windows that do; behind an id that may be several, the
        next may be any."""
        letters = -len(text) % 4
        ends = [Windows().encode(text + bytes(end)).tolist() for end in itertools.product(b"ab", repeat=letters)]
        ends += [[*ids[:-1], Windows.eod_id] for ids in ends if letters >= 2 and ids[-1] == 0]
        return np.log(sum(np.exp(joint(module, Windows.eod_id, ids)) for ids in ends))

    pairs = [(b"abab", b"b"), (b"aba", b"b"), (b"ababa", b"ab"), (b"ab", b"babba"), (b"", b"a")]
    for pair, (found, _) in zip(pairs, likelihoods.continuations(pairs)):
        assert found == pytest.approx(begins(b"".join(pair)) - begins(pair[0]), abs=1e-4), pair


def test_continuations_of_one_letter_are_all_there_is(of_windows):
    found = of_windows[0].continuations([(b"aba", b"a"), (b"aba", b"b")])
    assert np.exp([each for each, _ in found]).sum() == pytest.approx(1, abs=1e-4), (
        "the window's last letter is one of two"
    )


def test_long_contexts_are_cut_from_their_left(of_bytes):
    likelihoods, module = of_bytes
    context = bytes(range(65, 90))
    [(found, _)] = likelihoods.continuations([(context, b"xyz")])
    kept = (context + b"xyz")[-LENGTH - 1 :]
    rows = log_probabilities(module, list(kept[:-1]))
    assert found == pytest.approx(sum(rows[place, kept[place + 1]] for place in range(LENGTH - 3, LENGTH)), abs=1e-4)


def test_a_continuation_longer_than_a_row_is_refused(of_bytes):
    with pytest.raises(UserError, match="13 ids and the run's rows take 12"):
        of_bytes[0].continuations([(b"a", b"b" * 13)])


def test_beginnings_of_nothing_say_nothing():
    assert beginnings(ByteRepresentation(), b"") == (0, [()])


def test_several_devices_change_nothing():
    pairs = [(b"to be", b" or"), (b"x", b"yz")]
    one, four = (scorer(ByteRepresentation(), count)[0].continuations(pairs) for count in (1, 4))
    np.testing.assert_allclose([each for each, _ in one], [each for each, _ in four], atol=1e-4)
