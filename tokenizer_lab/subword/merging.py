"""Compiled loops that make ids of words: BPE merges, the best path of a Unigram model, and a memory of words."""

import heapq
from typing import Any, NamedTuple

import numpy as np

from tokenizer_lab.compiled import compiled
from tokenizer_lab.subword.scanning import code_point

NONE = np.uint64(2**64 - 1)
_LOW = np.uint64(2**32 - 1)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth, TAOCP 3, section 6.4)
_SHORT = 40  # Up to so many symbols it is quicker to look at all pairs than to keep them in a heap.

# ---- Pairs ---------------------------------------------------------------------------------------


@compiled
def _place(key, table):
    """Where a key's entry is, in u64[2^n, 2] of keys and values, or the free one where it belongs."""
    mask = np.uint64(len(table) - 1)
    key_hash = key * _MULTIPLIER
    place = (key_hash ^ key_hash >> np.uint64(32)) & mask
    while table[place, 0] != key and table[place, 0] != NONE:
        place = (place + np.uint64(1)) & mask
    return place


@compiled
def table_of(keys, values):
    """u64[n] keys, all different, and their values -> a table for `_place`, at most half full."""
    size = 2
    while size < 2 * len(keys):
        size *= 2
    table = np.full((size, 2), NONE)
    for number in range(len(keys)):
        place = _place(keys[number], table)
        table[place, 0], table[place, 1] = keys[number], values[number]
    return table


@compiled
def _merge_of(left, right, merges):
    """rank << 32 | id of a merge, `NONE` where two ids have none."""
    return merges[_place(np.uint64(left) << np.uint64(32) | np.uint64(right), merges), 1]


@compiled
def merge(symbols, size, merges, end_rank):
    """Merges symbols i32[size] by the merges below a rank, lowest rank first, then from the left; returns how many are
    left."""
    limit = np.uint64(end_rank) << np.uint64(32)
    if size > _SHORT:
        return _merge_long(symbols, size, merges, limit)
    values = np.empty(_SHORT, np.uint64)
    for at in range(size - 1):
        values[at] = _merge_of(symbols[at], symbols[at + 1], merges)
    while size > 1:
        best = 0
        for at in range(1, size - 1):
            if values[at] < values[best]:
                best = at
        if values[best] >= limit:
            break
        symbols[best] = np.int32(values[best] & _LOW)
        size -= 1
        for at in range(best + 1, size):
            symbols[at] = symbols[at + 1]
            values[at - 1] = values[at]
        if best + 1 < size:
            values[best] = _merge_of(symbols[best], symbols[best + 1], merges)
        if best > 0:
            values[best - 1] = _merge_of(symbols[best - 1], symbols[best], merges)
    return size


@compiled
def _merge_long(symbols, size, merges, limit):
    before, behind = np.arange(-1, size - 1), np.arange(1, size + 1)
    values = np.full(size, NONE)
    heap = [np.uint64(0) for _ in range(0)]
    for at in range(size - 1):
        values[at] = _merge_of(symbols[at], symbols[at + 1], merges)
        if values[at] < limit:
            heap.append(values[at] & ~_LOW | np.uint64(at))
    heapq.heapify(heap)
    while heap:
        entry = heapq.heappop(heap)
        here = np.int64(entry & _LOW)
        if (values[here] ^ entry) >> np.uint64(32):
            continue  # What stands there now is another pair.
        symbols[here] = np.int32(values[here] & _LOW)
        gone = behind[here]
        values[gone], behind[here] = NONE, behind[gone]
        if behind[here] < size:
            before[behind[here]] = here
        for left in (before[here], here):
            if left >= 0:
                right = behind[left]
                values[left] = _merge_of(symbols[left], symbols[right], merges) if right < size else NONE
                if values[left] < limit:
                    heapq.heappush(heap, values[left] & ~_LOW | np.uint64(left))
    here, count = np.int64(0), np.int64(0)
    while here < size:
        symbols[count] = symbols[here]
        here, count = behind[here], count + np.int64(1)
    return count


# ---- Unigram -------------------------------------------------------------------------------------


class Unigram(NamedTuple):
    """The pieces of a Unigram model, as a tree of bytes whose node 0 is the root.

    Attributes:
      children: u64 table, node << 8 | byte -> node.
      ids: i32[nodes], of the pieces that end there, or -1.
      scores: f64[nodes], their log probabilities.
      unknown_score: of a character that is no piece.
      unknown_id: which stands for such characters.
    """

    children: Any
    ids: Any
    scores: Any
    unknown_score: Any
    unknown_id: Any


@compiled
def child(node, byte, children):
    """The child of a tree's node; -1 if there is none."""
    found = children[_place(np.uint64(node) << np.uint64(8) | np.uint64(byte), children), 1]
    return np.int64(-1) if found == NONE else np.int64(found)


@compiled
def best_path(text, start, end, unigram, by_character, symbols):
    """Writes the ids of the most probable pieces of a word; returns how many, or -1 where one is not known.

    Of paths that are equally probable, that with the longest last piece, as in the library.
    """
    size = end - start
    scores, begins = np.zeros(size + 1), np.full(size + 1, -1)
    ids = np.full(size + 1, np.int32(-1))
    for at in range(size):
        if at > 0 and begins[at] < 0:
            continue  # inside a character
        node, place, has_single = np.int64(0), at, False
        width = code_point(text, start + at)[1] if by_character else 1
        while place < size:
            node = child(node, text[start + place], unigram.children)
            if node < 0:
                break
            place += 1
            if unigram.ids[node] >= 0:
                has_single |= place - at == width
                score = scores[at] + unigram.scores[node]
                if begins[place] < 0 or score > scores[place]:
                    scores[place], begins[place], ids[place] = score, at, unigram.ids[node]
        place, score = at + width, scores[at] + unigram.unknown_score
        if not has_single and (begins[place] < 0 or score > scores[place]):
            scores[place], begins[place], ids[place] = score, at, unigram.unknown_id
    count, place = 0, size
    while place > 0:
        if ids[place] == unigram.unknown_id:
            return -1
        symbols[count] = ids[place]
        place, count = begins[place], count + 1
    symbols[:count] = symbols[:count][::-1].copy()
    return count
