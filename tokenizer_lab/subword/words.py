"""Compiled: a memory of words and their ids, of a fixed size."""

from typing import Any, NamedTuple

import numpy as np

from tokenizer_lab.compiled import compiled
from tokenizer_lab.subword.scanning import eight_bytes

MAX_WORD_BYTES = 128
"""Longer words are not kept."""
_MULTIPLIER, _OTHER_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_INLINE_BYTES = 16
_WORD, _HALF = np.uint64(64), np.uint64(32)
_LOW = np.uint64(2**32 - 1)


class Words(NamedTuple):
    """An open-addressed table. A word of up to 16 bytes is in its slot, a longer one in `keys`.

    Attributes:
      slots: u64[2^n, 4]: the word (or its hash and its place in `keys`), ids << 32 | bytes, and its one id (or the
        place of its ids).
      keys: u8[...], the long words, with padding behind the last.
      ids: i32[...], of words of several ids.
      used: i64[3], how many slots, keys and ids are in use.
    """

    slots: Any
    keys: Any
    ids: Any
    used: Any


def empty_words(slot_bits: int) -> Words:
    """A memory for 2^(slot_bits - 1) words. It takes about 56 bytes a slot, of which untouched pages cost nothing."""
    size = 1 << slot_bits
    return Words(
        np.zeros((size, 4), np.uint64),
        np.zeros(8 * size + MAX_WORD_BYTES + 8, np.uint8),
        np.zeros(4 * size + MAX_WORD_BYTES, np.int32),
        np.zeros(3, np.int64),
    )


@compiled(inline=True)
def _masked(text, at, size):
    return eight_bytes(text, at) & (~np.uint64(0) >> (_WORD - np.uint64(8 * size)))


@compiled(inline=True)
def _key(text, start, size):
    """The first two fields of a slot; the second is not known of a long word."""
    if size <= 8:
        return _masked(text, start, size), np.uint64(0)
    if size <= _INLINE_BYTES:
        return eight_bytes(text, start), _masked(text, start + 8, size - 8)
    hash_ = np.uint64(size)
    for at in range(start, start + size - 8, 8):
        hash_ = (hash_ ^ eight_bytes(text, at)) * _MULTIPLIER
        hash_ ^= hash_ >> _HALF
    return (hash_ ^ eight_bytes(text, start + size - 8)) * _MULTIPLIER, np.uint64(0)


@compiled
def _is_same(text, start, size, keys, at):
    for place in range(size):
        if text[start + place] != keys[at + place]:
            return False
    return True


@compiled(inline=True)
def slot_of(text, start, end, words):
    """The slot of a word, or the free one where it belongs: one that says it has no bytes."""
    size = end - start
    first, second = _key(text, start, size)
    hash_ = (first ^ second * _OTHER_MULTIPLIER ^ np.uint64(size)) * _MULTIPLIER
    mask = np.uint64(len(words.slots) - 1)
    place = (hash_ ^ hash_ >> _HALF) & mask
    while True:
        slot = words.slots[place]
        size_there = np.int64(slot[2] & _LOW)
        if size_there == 0:
            return place
        if size_there == size and slot[0] == first:
            if size <= _INLINE_BYTES:
                if slot[1] == second:
                    return place
            elif _is_same(text, start, size, words.keys, np.int64(slot[1])):
                return place
        place = (place + np.uint64(1)) & mask


@compiled(inline=True)
def recall(words, place, out, count):
    """Writes the ids of the word in a slot behind `count` others; returns how many there are then, or -1 if the slot is
    free."""
    num_ids = np.int64(words.slots[place, 2] >> _HALF)
    if num_ids == 1:
        out[count] = np.int32(words.slots[place, 3])
        return count + 1
    if num_ids == 0:
        return np.int64(-1)
    at = np.int64(words.slots[place, 3])
    for number in range(num_ids):
        out[count + number] = words.ids[at + number]
    return count + num_ids


@compiled
def keep(text, start, end, ids, num_ids, place, words):
    """Keeps a word and its ids in a free slot. A memory that is full forgets all it has first."""
    size, used = end - start, words.used
    if size > MAX_WORD_BYTES:
        return
    if 2 * used[0] >= len(words.slots) or used[1] > len(words.keys) - size - 8 or used[2] > len(words.ids) - num_ids:
        words.slots[:] = 0
        used[:] = 0
        place = slot_of(text, start, end, words)
    slot = words.slots[place]
    slot[0], slot[1] = _key(text, start, size)
    slot[2] = np.uint64(num_ids) << _HALF | np.uint64(size)
    used[0] += 1
    if size > _INLINE_BYTES:
        slot[1] = np.uint64(used[1])
        words.keys[used[1] : used[1] + size] = text[start:end]
        used[1] += size
    if num_ids == 1:
        slot[3] = np.uint64(ids[0])
    else:
        slot[3] = np.uint64(used[2])
        words.ids[used[2] : used[2] + num_ids] = ids[:num_ids]
        used[2] += num_ids


@compiled
def keep_all(text, ends, ids, words):
    """Keeps many words, one after the other in a text, that each have one id."""
    start = 0
    for number in range(len(ends)):
        place = slot_of(text, start, ends[number], words)
        keep(text, start, ends[number], ids[number : number + 1], 1, place, words)
        start = ends[number]
