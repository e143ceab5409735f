"""The order in which documents are read: shuffles, and draws from several sources."""

import grain
import numpy as np
import pytest

from data import document_order
from data.document_order import draw_source
from data.index_shuffle import index_shuffle
from data.rows import RowStreams, Source
from tokenizer_lab.byte import ByteRepresentation

ORDER_CHANGED = (
    "the order in which documents are trained on has changed, by this code or by a new version of grain: a run that was"
    " begun before goes on with other data, and its numbers no longer compare with new runs'. If that is what you want,"
    " copy the new order from below."
)


def open_rows(sources, batch_rows: int, sequence_length: int, seed: int = 0, **options) -> RowStreams:
    return RowStreams(
        sources, ByteRepresentation(), batch_rows=batch_rows, sequence_length=sequence_length, seed=seed, **options
    )


def test_epochs_and_seeds_are_shuffled_differently(read_until):
    numbered = [bytes([n]) for n in range(100)]

    def order(seed):
        [documents] = read_until(open_rows([Source(numbered)], 1, 50, seed), 200)
        return documents

    first, second = order(0)[:100], order(0)[100:]
    assert first != second != numbered != first
    assert order(1)[:100] not in (first, second)  # a seed is not the epochs of another one, shifted


def test_golden_order(read_until):
    source, other = ([name + bytes([n]) for n in range(10)] for name in (b"a", b"b"))
    streams = open_rows([Source(source, 2.0), Source(other, 1.0)], 3, 16, seed=17)
    order = [" ".join(f"{chr(document[0])}{document[1]}" for document in row) for row in read_until(streams, 12)]
    assert order == [
        "a4 a0 a8 a5 a8 a4 a7 a2 a6 b6 b2 a5",
        "a7 a2 a3 b4 a1 a3 b1 a6 a0 a7 b5 a9",
        "a9 a1 a6 a9 b7 a2 a5 a8 a1 a3 b0 a0",
    ], f"{ORDER_CHANGED}\n{order}"


def test_draws_are_near_their_weights_in_every_row():
    for row in range(3):
        draws = np.array([draw_source(1, row, draw, (1.0, 0.5, 2.5)) for draw in range(20_000)])
        np.testing.assert_allclose(np.bincount(draws) / len(draws), [0.25, 0.125, 0.625], atol=0.015)  # > 4 sigma
        neighbours = np.corrcoef(draws[1:], draws[:-1])[0, 1]
        assert abs(neighbours) < 0.03


def test_draws_depend_on_seed_row_and_draw_only():
    def draws(seed, row, numbers=range(64), weights=(1, 1)):
        return [draw_source(seed, row, n, weights) for n in numbers]

    assert draws(1, 2) == draws(1, 2)
    assert draws(1, 2) == draws(1, 2, range(63, -1, -1))[::-1]
    assert draws(1, 2) == draws(1, 2, weights=(0.5, 0.5))
    assert len({tuple(draws(seed, row)) for seed in (1, 2, 11) for row in (1, 2, 12)}) == 9
    assert not any(draws(1, 2, weights=(3.0,)))


@pytest.mark.parametrize("digest", [b"\0" * 8, b"\xff" * 8])
def test_a_draw_at_either_end_is_a_source(monkeypatch, digest):
    class Digest:
        def __init__(self, *args, **options): ...

        def digest(self):
            return digest

    monkeypatch.setattr(document_order.hashlib, "blake2b", Digest)
    for weights in [(1.0, 1.0), (0.1, 0.2, 0.3), (3.0, 1e-9)]:
        assert draw_source(0, 0, 0, weights) == (0 if digest[0] == 0 else len(weights) - 1)


# Around its table's size, around blocks of 16 and of 18 bits, and a size that no run has. 2^16 + 1 and 2^18 + 1 have an
# item that a block of so few bits cannot say.
SIZES = [1, 2, 4095, 4096, 4097, 65_535, 65_536, 65_537, 65_538, 262_144, 262_145, 10**6, 2**31 - 1, 2**40 + 3]


@pytest.mark.parametrize("size", SIZES)
def test_many_places_of_a_shuffle_are_grains(size):
    rng = np.random.default_rng(size)
    places = np.unique(np.append(rng.integers(0, size, 5), [0, size - 1]))
    for seed in (0, 1, 2**32 - 1, int(rng.integers(2**32))):
        shuffled = grain.MapDataset.range(size).shuffle(seed=seed)
        few = places[: 1 if size < 3 else None]  # of which grain takes long
        assert index_shuffle(few, size, seed).tolist() == [shuffled[int(place)] for place in few], seed
