"""An exact arithmetic coder in integers (Witten, Neal & Cleary 1987, CACM 30(6)), for any model of the next byte.

The model divides 2^16 points among 257 symbols, the 256 bytes and END, at least one each: its *frequencies*. A symbol
narrows the interval [low, high] to its share. Both ends are 32-bit numbers, and whenever the interval fits into one
half of the register, or into the two middle quarters, it is doubled; so it is always longer than a quarter, and every
share has at least 2^14 points. The paper calls the three doublings E1, E2 and E3.

A text's code is the shortest string of bits that, whatever bits follow it, stays inside the interval of its symbols.
Hence the decoder never guesses: it gives a symbol as soon as the bits so far leave no other, and ends with END or with
the bits. That makes it total, and bounds it: n symbols narrow the interval to at most (1 - 256 / 2^16 + 2^-30)^n, which
is to hold the 2^-m of m bits, so n <= 178 m.

Codes are packed: u8[ceil(m / 8)], the first bit highest. Everything is i64; the largest product is below 2^48.
"""

from typing import NamedTuple

import numpy as np

from tokenizer_lab.compiled import compiled

END = 256
NUM_SYMBOLS = 257
FREQUENCY_BITS = 16
FREQUENCY_SUM = 1 << FREQUENCY_BITS

_REGISTER_BITS = 32
_TOP = (1 << _REGISTER_BITS) - 1
_HALF = 1 << (_REGISTER_BITS - 1)
_QUARTER = _HALF >> 1
_MAX_BITS_PER_SYMBOL = FREQUENCY_BITS + 1  # 16, and what rounding the shares to whole points can add.
_MAX_END_BITS = 2  # Of `_pin_down`.
_NO_DOUBLING = -1
_UNDETERMINED = -1


def encode(symbols: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, int]:
    """Symbols i[n] and their frequencies, i32[n, 257] or i32[1, 257] for all -> code u8[ceil(m / 8)], number of bits m.

    m is less than the ideal, the sum of -log2(frequency / 2^16), plus 2, but for the rounding of shares (below 2^-13
    bits a symbol). END is a symbol like the others: who decodes without knowing n puts it last.
    """
    symbols = np.asarray(symbols, dtype=np.int32)
    assert len(frequencies) in (1, len(symbols)), f"{len(frequencies)} rows of frequencies, {len(symbols)} symbols"
    assert ((symbols >= 0) & (symbols <= END)).all(), "not symbols"
    return _encode(symbols, _cumulative(frequencies))


def decode(code: np.ndarray, num_bits: int, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symbols i32[n] that the first `num_bits` of a code determine, up to END if it is there, and i64[n], for each
    the number of bits from the code's start that determine it.

    Frequencies are i32[1, 257] for all symbols, or i32[k, 257], and then n <= k.
    """
    return _decode(_checked_code(code, num_bits), num_bits, _cumulative(frequencies))


class Decoder:
    """`decode` symbol by symbol, for a model that must see each byte before it gives the next frequencies.

    Attributes:
      num_bits_needed: the number of bits, from the code's start, that determine the symbols so far.
    """

    def __init__(self, code: np.ndarray, num_bits: int):
        self._code = _checked_code(code, num_bits)
        self._num_bits = num_bits
        self._state = _start(self._code, num_bits)

    @property
    def num_bits_needed(self) -> int:
        return self._state.num_needed

    def next(self, frequencies: np.ndarray) -> int | None:
        """The next symbol under i32[257], or None where the bits do not determine it."""
        [cumulative] = _cumulative(frequencies[None])
        symbol, self._state = _decode_symbol(self._code, self._num_bits, cumulative, self._state)
        return None if symbol == _UNDETERMINED else symbol


def _checked_code(code: np.ndarray, num_bits: int) -> np.ndarray:
    assert code.dtype == np.uint8 and 0 <= num_bits <= 8 * len(code), f"{num_bits} bits of {code.dtype}[{len(code)}]"
    return code


def _cumulative(frequencies: np.ndarray) -> np.ndarray:
    """Frequencies i[rows, 257] -> i32[rows, 258], the points before each symbol, and 2^16."""
    assert frequencies.ndim == 2 and frequencies.shape[1] == NUM_SYMBOLS, f"frequencies are {frequencies.shape}"
    assert (frequencies >= 1).all() and (frequencies.sum(axis=1) == FREQUENCY_SUM).all(), "not frequencies"
    cumulative = np.zeros((len(frequencies), NUM_SYMBOLS + 1), dtype=np.int32)
    np.cumsum(frequencies, axis=1, out=cumulative[:, 1:])
    return cumulative


@compiled
def _narrow(low, high, cumulative, symbol):
    """A symbol's share of [low, high]."""
    length = high - low + 1
    symbol_low = low + (length * cumulative[symbol] >> FREQUENCY_BITS)
    return symbol_low, low + (length * cumulative[symbol + 1] >> FREQUENCY_BITS) - 1


@compiled
def _doubling(low, high):
    """What to take off both ends before they are doubled, or _NO_DOUBLING."""
    if high < _HALF:
        return 0
    if low >= _HALF:
        return _HALF
    if low >= _QUARTER and high < _HALF + _QUARTER:
        return _QUARTER
    return _NO_DOUBLING


@compiled
def _encode(symbols, cumulative):
    code = np.zeros((len(symbols) * _MAX_BITS_PER_SYMBOL + _MAX_END_BITS + 7) // 8, dtype=np.uint8)
    low, high, num_bits, num_pending = 0, _TOP, 0, 0
    for position, symbol in enumerate(symbols):
        low, high = _narrow(low, high, cumulative[min(position, len(cumulative) - 1)], symbol)
        offset = _doubling(low, high)
        while offset != _NO_DOUBLING:
            if offset == _QUARTER:
                num_pending += 1  # The bit is the opposite of the next one that is known.
            else:
                num_bits, num_pending = _write_bit(code, num_bits, offset // _HALF, num_pending), 0
            low, high = 2 * (low - offset), 2 * (high - offset) + 1
            offset = _doubling(low, high)
    num_bits = _pin_down(code, num_bits, num_pending, low, high)
    return code[: (num_bits + 7) // 8], num_bits


@compiled
def _pin_down(code, num_bits, num_pending, low, high):
    """Writes the fewest bits that name a part of the interval: the whole, else a half, else a quarter of the register.

    Without a doubling to do, low is below the half and high is not, and one middle quarter is inside.
    """
    if low == 0 and high == _TOP and num_pending == 0:
        return num_bits
    if low == 0 or high == _TOP:
        return _write_bit(code, num_bits, int(low > 0), num_pending)
    bit = int(low > _QUARTER)
    num_bits = _write_bit(code, num_bits, bit, num_pending)
    return _write_bit(code, num_bits, 1 - bit, 0)


@compiled
def _write_bit(code, num_bits, bit, num_pending):
    """Writes a bit and then its opposite `num_pending` times; the number of bits after that."""
    for index in range(num_bits, num_bits + 1 + num_pending):
        code[index >> 3] |= (bit if index == num_bits else 1 - bit) << (7 - (index & 7))
    return num_bits + 1 + num_pending


class _State(NamedTuple):
    """Where a decoder is.

    `num_doubled` bits of the code have left the register, the next 32 are `value`; low and high are the encoder's.
    """

    low: int
    high: int
    value: int
    num_doubled: int
    num_needed: int


@compiled
def _start(code, num_bits):
    value = 0
    for index in range(_REGISTER_BITS):
        value = 2 * value + _read_bit(code, num_bits, index)
    return _State(0, _TOP, value, 0, 0)


@compiled
def _read_bit(code, num_bits, index):
    """A bit of the code; 0 past its end, where its value is not relied upon."""
    return (code[index >> 3] >> (7 - (index & 7))) & 1 if index < num_bits else 0


@compiled
def _decode(code, num_bits, cumulative):
    symbols, num_bits_needed = np.empty(256, dtype=np.int32), np.empty(256, dtype=np.int64)
    state, count = _start(code, num_bits), 0
    while len(cumulative) == 1 or count < len(cumulative):
        row = cumulative[min(count, len(cumulative) - 1)]
        symbol, state = _decode_symbol(code, num_bits, row, state)
        if symbol == _UNDETERMINED:
            break
        if count == len(symbols):
            symbols = np.concatenate((symbols, np.empty_like(symbols)))
            num_bits_needed = np.concatenate((num_bits_needed, np.empty_like(num_bits_needed)))
        symbols[count], num_bits_needed[count] = symbol, state.num_needed
        count += 1
        if symbol == END:
            break
    return symbols[:count], num_bits_needed[:count]


@compiled
def _decode_symbol(code, num_bits, cumulative, state):
    """The next symbol and the state after it, or _UNDETERMINED and the state as it was."""
    value, num_doubled, num_needed = state.value, state.num_doubled, state.num_needed
    symbol = _symbol_at(value, state.low, state.high, cumulative)
    low, high = _narrow(state.low, state.high, cumulative, symbol)
    while not _determines(value, num_needed - num_doubled, low, high):
        num_needed += 1
        if num_needed > num_bits:
            return _UNDETERMINED, state
    offset = _doubling(low, high)
    while offset != _NO_DOUBLING:
        low, high = 2 * (low - offset), 2 * (high - offset) + 1
        value = 2 * (value - offset) + _read_bit(code, num_bits, num_doubled + _REGISTER_BITS)
        num_doubled += 1
        offset = _doubling(low, high)
    return symbol, _State(low, high, value, num_doubled, num_needed)


@compiled
def _symbol_at(value, low, high, cumulative):
    """The symbol whose share of [low, high] holds `value`."""
    length, first, last = high - low + 1, 0, NUM_SYMBOLS - 1
    while first < last:
        middle = (first + last + 1) // 2
        if low + (length * cumulative[middle] >> FREQUENCY_BITS) <= value:
            first = middle
        else:
            last = middle - 1
    return first


@compiled
def _determines(value, num_known, low, high):
    """Whether [low, high] holds every number that begins with the first `num_known` bits of `value`."""
    num_open = _REGISTER_BITS - num_known
    first = value >> num_open << num_open
    return low <= first and first + (1 << num_open) - 1 <= high
