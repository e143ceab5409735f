"""Compiled loops that go along a text: its valid UTF-8, its added tokens, and the pieces that split patterns make."""

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir

from tokenizer_lab.compiled import compiled
from tokenizer_lab.subword.split_patterns import ASCII, END, GIVE_UP, LENGTH_SHIFT, MATCH_BIT, STATE_BITS

PADDING_BYTES = 16
"""So many bytes have to be there behind the end of a text."""

_U = np.uintp  # An index without a sign is not asked whether it counts from the end.
_STATE = (1 << STATE_BITS) - 1
_HIGH_BITS = np.uint64(0x8080808080808080)


class Splits(NamedTuple):
    """L split patterns, each of which splits the pieces of the one before.

    Attributes:
      classes: u8[L, 0x110000], as `split_patterns.Automaton` has it.
      cells: i32[sum of sizes], the automata's one after the other.
      offsets: i64[L], where each begins.
      widths: i64[L], the columns of each.
      starts: i32[L, 256].
      keeps_gaps: bool[L], whether what a pattern does not match is a piece of its own; else the text is given up.
    """

    classes: Any
    cells: Any
    offsets: Any
    widths: Any
    starts: Any
    keeps_gaps: Any


def _eight_bytes(typing_context, text, at):
    """The eight bytes at a place of a u8 array, as a u64; the array has to have them."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)

    return numba.uint64(text, numba.int64), generate


eight_bytes: Any = numba.extending.intrinsic(_eight_bytes)


@compiled(inline=True)
def character_bytes(text, at, end):
    """How many bytes the UTF-8 character has that begins here; 0 where none does (Unicode 15.0, table 3-7)."""
    first = text[at]
    if first < 0x80:
        return 1
    if first < 0xC2 or first > 0xF4:
        return 0
    size = 2 + (first >= 0xE0) + (first >= 0xF0)
    if end - at < size:
        return 0
    low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
    high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
    if not low <= text[at + 1] <= high:
        return 0
    for place in range(at + 2, at + size):
        if text[place] & 0xC0 != 0x80:
            return 0
    return size


@compiled
def valid_end(text, at, end):
    """Where the valid UTF-8 ends that begins at `at`."""
    while at < end:
        if at + 8 <= end and not eight_bytes(text, at) & _HIGH_BITS:
            at += 8
            continue
        size = character_bytes(text, at, end)
        if size == 0:
            break
        at += size
    return at


@compiled(inline=True)
def code_point(text, at):
    """The character that begins here, and its bytes; of valid UTF-8."""
    first = np.int64(text[at])
    if first < 0x80:
        return first, 1
    second = np.int64(text[at + 1] & 0x3F)
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, 2
    third = np.int64(text[at + 2] & 0x3F)
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(text[at + 3] & 0x3F), 4


@compiled(inline=True)
def _class_before(splits, level, text, at, start):
    if at == start:
        return np.int64(END)
    at -= 1
    while text[at] & 0xC0 == 0x80:
        at -= 1
    point, _ = code_point(text, at)
    return np.int64(splits.classes[level, point])


@compiled(inline=True)
def match_end(splits, level, text, start, at, end):
    """Where the match ends that begins at `at` in the piece from `start` to `end`; `at` if none does, -1 if not
    known."""
    cells, offset, width = splits.cells, splits.offsets[level], splits.widths[level]
    state, place, found = np.int64(splits.starts[level, END]), at, at
    if splits.starts[level, END + 1] != state:
        state = np.int64(splits.starts[level, _class_before(splits, level, text, at, start)])
    while True:
        row = offset + state * width
        if place >= end:
            cell, size = cells[row + ASCII + END], 0
        elif text[_U(place)] < ASCII:
            cell, size = cells[_U(row + text[_U(place)])], 1
        else:
            point, size = code_point(text, place)
            cell = cells[row + ASCII + splits.classes[level, point]]
        following = np.int64(cell & _STATE)
        if following == state and size == 1:  # In a word: this loop waits for no step before.
            while place + 1 < end and text[_U(place + 1)] < ASCII and cells[_U(row + text[_U(place + 1)])] == cell:
                place += 1
        if cell & MATCH_BIT:
            length = cell >> LENGTH_SHIFT
            found = at if length else place
            for _ in range(length):
                found += code_point(text, found)[1]
        if following <= GIVE_UP or size == 0:
            return -1 if following == GIVE_UP else found
        state = following
        place += size


@compiled(inline=True)
def piece_end(splits, level, text, start, at, end):
    """Where the piece ends that begins at `at`: a match, or what stands before the next one; -1 if not known."""
    gap_end = at
    while True:
        found = match_end(splits, level, text, start, gap_end, end)
        if found != gap_end:
            return gap_end if found > gap_end > at else found
        if not splits.keeps_gaps[level]:
            return -1
        gap_end += code_point(text, gap_end)[1]
        if gap_end >= end:
            return end
