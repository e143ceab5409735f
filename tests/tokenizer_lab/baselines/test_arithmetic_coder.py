"""Exactness, code length, and what of a text which bits of its code determine."""

import concurrent.futures
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tokenizer_lab.baselines.arithmetic_coder import END, FREQUENCY_SUM, NUM_SYMBOLS, Decoder, decode, encode

SPARE = FREQUENCY_SUM - NUM_SYMBOLS  # Points that a model is free to place: every symbol has one already.
MAX_SYMBOLS_PER_BIT = 178  # Stated in the module's docstring.

symbols_ = st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255])), max_size=60)


def peaked(points: dict[int, int]) -> np.ndarray:
    """i32[1, 257]: one point a symbol and so many more for some, the rest to symbol 255."""
    frequencies = np.ones(NUM_SYMBOLS, dtype=np.int32)
    for symbol, more in points.items():
        frequencies[symbol] += more
    frequencies[255] += FREQUENCY_SUM - frequencies.sum()
    return frequencies[None]


def random_rows(seed: int, num_rows: int) -> np.ndarray:
    """i32[rows, 257], from nearly even to nearly all points on one symbol."""
    random = np.random.default_rng(seed)
    weights = [random.dirichlet(np.full(NUM_SYMBOLS, 10.0 ** random.integers(-3, 2))) for _ in range(num_rows)]
    return np.array([1 + random.multinomial(SPARE, row) for row in weights], dtype=np.int32).reshape(-1, NUM_SYMBOLS)


HALVES = peaked({0: FREQUENCY_SUM // 2 - 1})  # Symbol 0 is the lower half of every interval.
MIDDLE = peaked({128: SPARE})  # Symbol 128 is all but the ends of every interval, which then stays around the half.
fixed_models = st.sampled_from([HALVES, MIDDLE, peaked({END: SPARE})])
models = st.one_of(fixed_models, st.builds(random_rows, st.integers(0), st.just(1)))


def ideal_bits(symbols: list[int], frequencies: np.ndarray) -> float:
    rows = np.broadcast_to(frequencies, (len(symbols), NUM_SYMBOLS))
    return -np.log2(rows[np.arange(len(symbols)), symbols] / FREQUENCY_SUM).sum()


def assert_exact(symbols: list[int], frequencies: np.ndarray) -> None:
    code, num_bits = encode(symbols, frequencies)
    assert len(code) == -(-num_bits // 8)
    decoded, num_bits_needed = decode(code, num_bits, frequencies)
    assert decoded.tolist() == symbols
    assert num_bits_needed[-1:].tolist() == [num_bits] * bool(symbols)
    rounding = 2**-13 * len(symbols)
    assert abs(num_bits - ideal_bits(symbols, frequencies) - 1) <= 1 + rounding


@given(text=symbols_, frequencies=models)
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back_at_its_ideal_length(text, frequencies):
    assert_exact([*text, END], frequencies)


@given(symbols=st.lists(st.integers(0, END - 1), max_size=30), end=st.booleans(), seed=st.integers(0))
@settings(max_examples=60, deadline=None)
def test_every_symbol_may_have_its_own_frequencies(symbols, end, seed):
    symbols = symbols + [END] * end
    assert_exact(symbols, random_rows(seed, len(symbols)))


@pytest.mark.parametrize("num_symbols", [1, 1_000, 100_000])
def test_an_interval_that_stays_around_the_half_is_exact(num_symbols):
    assert_exact([128] * num_symbols + [END], MIDDLE)  # Hundreds of bits are pending when the last symbol sets them.
    assert_exact([128] * num_symbols + [0, END], MIDDLE)


@given(text=symbols_, frequencies=models)
@settings(max_examples=60, deadline=None)
def test_a_decoder_gives_the_same_symbol_by_symbol(text, frequencies):
    code, num_bits = encode([*text, END], frequencies)
    decoder = Decoder(code, num_bits)
    steps = [(decoder.next(frequencies[0]), decoder.num_bits_needed) for _ in [*text, END]]
    symbols, num_bits_needed = decode(code, num_bits, frequencies)
    assert steps == list(zip(symbols.tolist(), num_bits_needed.tolist(), strict=True))


def test_a_decoder_waits_where_the_bits_end():
    code, num_bits = encode([1, 2, END], HALVES)
    decoder = Decoder(code, num_bits - 1)
    steps = [decoder.next(HALVES[0]) for _ in range(5)]
    assert steps == [1, 2, None, None, None]


@given(code=st.binary(max_size=60), frequencies=models, data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_bits_decode_and_each_prefix_to_what_it_determines(code, frequencies, data):
    code = np.frombuffer(code, dtype=np.uint8)
    symbols, num_bits_needed = decode(code, 8 * len(code), frequencies)
    assert len(symbols) <= MAX_SYMBOLS_PER_BIT * 8 * len(code)
    assert (np.diff(num_bits_needed) >= 0).all() and END not in symbols[:-1]
    num_bits = data.draw(st.integers(0, 8 * len(code)))
    cut, _ = decode(code, num_bits, frequencies)
    assert cut.tolist() == symbols[num_bits_needed <= num_bits].tolist()


@given(text=symbols_, frequencies=models, rest=st.binary(max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_prefix_determines_does_not_depend_on_the_bits_after_it(text, frequencies, rest, data):
    code, num_bits = encode([*text, END], frequencies)
    kept = data.draw(st.integers(0, num_bits))
    bits = np.concatenate([np.unpackbits(code)[:kept], np.unpackbits(np.frombuffer(rest, dtype=np.uint8))])
    determined, _ = decode(code, kept, frequencies)
    symbols, _ = decode(np.packbits(bits), len(bits), frequencies)
    assert symbols[: len(determined)].tolist() == determined.tolist()


@pytest.mark.parametrize("symbols", [[END], [0, END], [0, 0, END], [255], [0], [0, 255], [255, 0], [255] * 4, [0, 128]])
@pytest.mark.parametrize("frequencies", [HALVES, MIDDLE, peaked({0: SPARE // 4, END: SPARE // 4})])
def test_no_shorter_string_is_a_code(symbols, frequencies):
    _, num_bits = encode(symbols, frequencies)
    for length in range(min(num_bits, 9)):
        for bits in itertools.product([0, 1], repeat=length):
            found, _ = decode(np.packbits(np.array(bits, dtype=np.uint8)), length, frequencies)
            assert found[: len(symbols)].tolist() != symbols


def test_codes_are_those_of_the_textbook():
    def code_of(symbols: list[int]) -> str:
        code, num_bits = encode(symbols, HALVES)
        return "".join(map(str, np.unpackbits(code)[:num_bits]))

    # 0 is [0, 1/2). 255 is [1/2 + 254 points, 1 - 1 point); END is the last point of 2^16.
    assert code_of([]) == ""
    assert code_of([0, 0, 0]) == "000"
    assert code_of([END]) == "1" * 16
    assert code_of([0, END]) == "0" + "1" * 16
    assert code_of([1]) == "1000000000000000"  # The point at the half.
    assert code_of([2]) == "1000000000000001"
    assert code_of([255]) == "101"  # [5/8, 6/8) is inside, and no half or quarter is.


@pytest.mark.parametrize("wrong", [{0: -1}, {0: 1}, {3: 1 - FREQUENCY_SUM}])
def test_what_are_no_frequencies_is_our_mistake(wrong):
    frequencies = HALVES.copy()
    for symbol, more in wrong.items():
        frequencies[0, symbol] += more
    with pytest.raises(AssertionError, match="not frequencies"):
        encode([0], frequencies)


def test_threads_do_not_disturb_each_other():
    texts = [np.random.default_rng(seed).integers(0, 256, 20_000).tolist() + [END] for seed in range(6)]
    alone = [encode(text, HALVES)[0].tobytes() for text in texts]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: encode(text, HALVES)[0].tobytes(), texts * 3))
    assert together == alone * 3
