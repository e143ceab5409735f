"""The exact window code: a tree that gives every number of W bits its own byte string.

A window has a grid of 2^W points. A node of the tree is the bytes since the window began and a range of points; the
root has them all. At a node with two points or more, the first is STOP, and the others are divided among the 256 next
bytes in proportion to a language model's probabilities. At the root there is no STOP, and every byte has a point at
least. A node with one point is a leaf.

Encoding walks down from the root along the text; the window ends at a leaf, or where the next byte has no points, or
where the text ends. Its number is the first point of the node reached. Since that is the node's STOP point (or the
leaf's only one), every number stands for one node, in the order of a walk that takes a node before its children: so the
tree is two arrays, and encoding is the longest match with a set of byte strings that has every prefix of its members.

The tables here are for windows of at most 24 bits. In wider ones the language model stays in the loop:
`tokenizer_lab/equal_info/window_stream.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tokenizer_lab.compiled import borrowed, compiled, concatenate
from tokenizer_lab.equal_info.byte_lm import PROBABILITY_BITS
from tokenizer_lab.errors import UserError
from tokenizer_lab.memory import available_bytes
from tokenizer_lab.representation import together

MIN_WINDOW_BITS, MAX_TABLE_BITS = 9, 24
_PIECE_BYTES = 1 << 20  # of a document that is encoded at once
_BATCH_NODES = 256  # a power of 16, or the language model pads it

Shares = Callable[[np.ndarray], np.ndarray]  # u8[N, n] contexts -> i32[N, 256], rows summing to 2^16


def divide(points_n: np.ndarray, shares_nb: np.ndarray) -> np.ndarray:
    """Divides points in proportion to shares, by largest remainder; ties go to the lower byte.

    Args:
      points_n: i64[N], at most 2^24 each.
      shares_nb: i32[N, 256], rows summing to 2^16.

    Returns:
      i64[N, 256], rows summing to `points_n`.
    """
    products_nb = points_n[:, None] * shares_nb
    whole_nb, remainder_nb = products_nb >> PROBABILITY_BITS, products_nb & ((1 << PROBABILITY_BITS) - 1)
    left_over_n = points_n - whole_nb.sum(axis=1)
    order_nb = np.argsort(-remainder_nb, axis=1, kind="stable")
    rank_nb = np.empty_like(order_nb)
    np.put_along_axis(rank_nb, order_nb, np.arange(256)[None], axis=1)
    return whole_nb + (rank_nb < left_over_n[:, None])


@dataclasses.dataclass(frozen=True)
class Tree:
    """All byte strings of a code, by number.

    Attributes:
      depths: u16[2^W], bytes of each string.
      last_bytes: u8[2^W], the last byte of each.
    """

    depths: np.ndarray
    last_bytes: np.ndarray

    def __post_init__(self) -> None:
        """Raises UserError unless the arrays are such a tree, so that whatever they came from, the code is lossless."""
        depths, last_bytes = self.depths, self.last_bytes
        good = depths.shape == last_bytes.shape and depths.dtype == np.uint16 and last_bytes.dtype == np.uint8
        good = good and depths.ndim == 1 and len(depths) >= 256 and len(depths) & (len(depths) - 1) == 0
        good = good and bool(depths[0] == 1 and depths.min() == 1 and (np.diff(depths.astype(np.int32)) <= 1).all())
        good = good and np.array_equal(last_bytes[depths == 1], np.arange(256))
        if not (good and (self.parents < np.arange(len(depths))).all() and self._children_ascend()):
            raise UserError("the tree of windows is not one of a window code; fit the representation again")

    @property
    def window_bits(self) -> int:
        return len(self.depths).bit_length() - 1

    @functools.cached_property
    def parents(self) -> np.ndarray:
        """i32[2^W], the number of each string without its last byte; -1 for a string of one byte."""
        return _parents(self.depths)

    @functools.cached_property
    def is_leaf(self) -> np.ndarray:
        """bool[2^W], whether a string has no longer one in the code."""
        return np.append(self.depths[1:] <= self.depths[:-1], True)

    def _children_ascend(self) -> bool:
        """Whether the children of a node are in the order of their bytes, and so all different."""
        keys = (self.parents.astype(np.int64) << 8 | self.last_bytes)[np.argsort(self.parents, kind="stable")]
        return bool((np.diff(keys) > 0).all())

    def text(self) -> tuple[np.ndarray, np.ndarray]:
        """All strings one after the other, u8[sum of depths], and where each begins, i64[2^W + 1]."""
        starts = np.concatenate([[0], np.cumsum(self.depths, dtype=np.int64)])
        return _join(self.depths, self.last_bytes, self.parents, starts), starts


@compiled
def _parents(depths):
    parents = np.full(len(depths), -1, np.int32)
    path = np.full(int(depths.max()) + 2, -1, np.int32)
    for number in range(len(depths)):
        parents[number] = path[depths[number] - 1]
        path[depths[number]] = number
    return parents


@compiled
def _join(depths, last_bytes, parents, starts):
    text = np.empty(starts[-1], np.uint8)
    for number in range(len(depths)):
        start, depth, parent = starts[number], depths[number], parents[number]
        if parent >= 0:
            text[start : start + depth - 1] = text[starts[parent] : starts[parent] + depth - 1]
        text[start + depth - 1] = last_bytes[number]
    return text


# ---- Building ------------------------------------------------------------------------------------


def build_tree(
    shares: Shares, window_bits: int, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Tree:
    """Walks the tree of a language model, depth by depth.

    Args:
      shares: the language model.
      window_bits: W, from 9 to 24.
      on_progress: called with the points that are settled, and all there are.

    Raises:
      UserError: W is out of range.
    """
    check_table_bits(window_bits)
    size = 1 << window_bits
    depths, last_bytes = np.zeros(size, np.uint16), np.zeros(size, np.uint8)
    settled = 0
    # Inner nodes of one depth: the bytes of each, its first point and how many points it has.
    contexts, first, points = np.zeros((1, 0), np.uint8), np.zeros(1, np.int64), np.full(1, size, np.int64)
    while len(contexts):
        levels = [_children(shares, *part) for part in _parts(contexts, first, points)]
        contexts, first, points = (np.concatenate(column) for column in zip(*levels, strict=True))
        depths[first], last_bytes[first] = contexts.shape[1], contexts[:, -1]
        settled += len(first)
        on_progress(settled, size)
        inner = points > 1
        contexts, first, points = contexts[inner], first[inner], points[inner]
    assert settled == size, (settled, size)
    return Tree(depths, last_bytes)


def check_table_bits(window_bits: int) -> None:
    """Raises UserError for windows that have no table."""
    if not MIN_WINDOW_BITS <= window_bits <= MAX_TABLE_BITS:
        raise UserError(
            f"a window of {window_bits} bits has no table; one has {MIN_WINDOW_BITS} to {MAX_TABLE_BITS} bits, e.g. 16"
        )


def check_memory(window_bits: int) -> None:
    """Raises UserError where a table would not fit this machine's free memory."""
    needed = 64 << window_bits  # measured: strings, hash table, and what it takes to build them
    free = available_bytes()
    if needed > free:
        raise UserError(
            f"a table for windows of {window_bits} bits takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB of"
            " memory are free; use --window-bits 16, or 32, which needs no table"
        )


def _parts(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    for start in range(0, len(arrays[0]), _BATCH_NODES):
        yield tuple(array[start : start + _BATCH_NODES] for array in arrays)


def _children(shares: Shares, contexts: np.ndarray, first: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, ...]:
    """The children with points of some nodes of one depth: bytes, first point, number of points."""
    is_root = contexts.shape[1] == 0
    each, stop = (1, 0) if is_root else (0, 1)
    children_nb = each + divide(points - stop - 256 * each, shares(contexts))
    starts_nb = first[:, None] + stop + np.cumsum(children_nb, axis=1) - children_nb
    node, byte = np.nonzero(children_nb)
    longer = np.concatenate([contexts[node], byte[:, None].astype(np.uint8)], axis=1)
    return longer, starts_nb[node, byte], children_nb[node, byte]


# ---- Encoding ------------------------------------------------------------------------------------


class Matcher:
    """Texts <-> numbers. Finds the longest match of a tree's strings: (number, next byte) -> number, in a hash table of
    2^(W + 1) slots."""

    def __init__(self, tree: Tree):
        self._roots = np.flatnonzero(tree.depths == 1).astype(np.int32)
        self._slot_bits = tree.window_bits + 1
        self._slots = _hash_children(tree.parents, tree.last_bytes, tree.is_leaf, self._slot_bits)
        self._pairs = _entries_of_pairs(self._roots, self._slots, self._slot_bits)
        self._text, self._starts = tree.text()

    def encode(self, text: bytes) -> np.ndarray:
        """A document -> i32[n] window numbers. A long one in pieces, as a piece takes four times its memory: but for
        its last window, which may be longer in the whole, its windows are those of the document."""
        parts, start, size = [], 0, _PIECE_BYTES
        while len(text) - start > size:
            numbers = self._encode_all([text[start : start + size]])[0][:-1]
            parts.append(numbers)
            size = _PIECE_BYTES if len(numbers) else 2 * size
            start += int((self._starts[numbers + 1] - self._starts[numbers]).sum())
        return np.concatenate([*parts, self._encode_all([text[start:]])[0]])

    def encode_all(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Documents -> the window numbers of all, i32[n], and where those of each end, i64[d]."""
        if all(len(text) <= _PIECE_BYTES for text in texts):
            return self._encode_all(texts)
        return together([self.encode(text) for text in texts])

    def _encode_all(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        text = np.frombuffer(b"".join(texts), np.uint8)
        ends = np.cumsum([len(each) for each in texts], dtype=np.int64)
        numbers, ends_of_numbers = np.empty(len(text), np.int32), np.empty(len(texts), np.int64)
        tables = self._roots, self._pairs, self._slots, self._slot_bits
        count = _longest_matches(text, ends, *tables, numbers, ends_of_numbers)
        return numbers[:count].copy(), ends_of_numbers

    def decode(self, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        """i64[n] window numbers -> the bytes of all, and how many each has, i64[n]."""
        lengths = self._starts[numbers + 1] - self._starts[numbers]
        return concatenate(self._text, self._starts, numbers, int(lengths.sum())).tobytes(), lengths


_EMPTY = np.uint64(2**64 - 1)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio (Knuth, TAOCP 3, section 6.4)
_LEAF = np.uint64(1 << 31)
_NUMBER = np.uint64((1 << 31) - 1)


@compiled(inline=True)
def _slot(key, slots, slot_bits):
    """Where `key` is in an open-addressed table, or the empty slot where it belongs."""
    place = (key * _MULTIPLIER) >> np.uint64(64 - slot_bits)
    mask = np.uint64(len(slots) - 1)
    while slots[place] != _EMPTY and slots[place] >> np.uint64(32) != key:
        place = (place + np.uint64(1)) & mask
    return place


@compiled
def _hash_children(parents, last_bytes, is_leaf, slot_bits):
    """u64[2^slot_bits]: parent << 40 | byte << 32 | leaf << 31 | number, for every string of two bytes or more."""
    slots = np.full(1 << slot_bits, _EMPTY)
    for number in range(len(parents)):
        if parents[number] >= 0:
            key = np.uint64(parents[number]) << np.uint64(8) | np.uint64(last_bytes[number])
            leaf = _LEAF if is_leaf[number] else np.uint64(0)
            slots[_slot(key, slots, slot_bits)] = key << np.uint64(32) | leaf | np.uint64(number)
    return slots


@compiled
def _entries_of_pairs(roots, slots, slot_bits):
    """u64[256, 256]: the slot of a root's string and a byte, so that each window is spared its first search."""
    pairs = np.empty((256, 256), np.uint64)
    for first in range(256):
        for second in range(256):
            pairs[first, second] = slots[
                _slot(np.uint64(roots[first]) << np.uint64(8) | np.uint64(second), slots, slot_bits)
            ]
    return pairs


@compiled
def _longest_matches(text, ends, roots, pairs, slots, slot_bits, numbers, ends_of_numbers):
    """Writes the window numbers of texts that end at `ends`, and where those of each end; returns how many."""
    text, roots, pairs, slots, numbers = borrowed((text, roots, pairs, slots, numbers))
    count, at = 0, 0
    for document in range(len(ends)):
        end = ends[document]
        while at < end:
            number = np.uint64(roots[text[at]])
            at += 1
            entry = pairs[text[at - 1], text[at]] if at < end else _EMPTY
            while entry != _EMPTY:
                number = entry & _NUMBER
                at += 1
                if entry & _LEAF or at == end:
                    break
                entry = slots[_slot(number << np.uint64(8) | np.uint64(text[at]), slots, slot_bits)]
            numbers[count] = number
            count += 1
        ends_of_numbers[document] = count
    return count
