"""Superword BPE: merges that go on across spaces (SuperBPE; Liu et al. 2025, arXiv 2503.13423).

Its first stage is ordinary BPE, up to the transition. The second is here: the text is cut anew by the first stage's
merges, now only at digits, runs of punctuation and trailing spaces, and merging goes on. `tokenizers` trains from
single characters only (the authors use a fork), and so this stage has a trainer of its own; what it adds is an ordinary
BPE vocabulary, and the library encodes with it.

The rules are those of the published code (`SUPERWORD_SPLIT`, `is_allowed`). Tokens are strings in the byte-level
alphabet throughout, where "Ġ" is a space.
"""

import hashlib
import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers

# Where tokens of the second stage may not cross; DIGITS as in `pretokenization.PRETOKENIZATIONS`.
SUPERWORD_SPLIT = r"DIGITS| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"
MAX_WORDS = 4
MIN_COUNT = 2  # Seen once is not worth an id.

BORDER = -1  # Among ids: no token crosses it.
_GONE = -2  # The right part of a merge.

_BATCH_TEXTS = 16


class TextSample:
    """Of many texts, so many that they have at most `max_bytes`: those with the lowest hashes, in whatever order they
    come."""

    def __init__(self, max_bytes: int):
        self._free_bytes = max_bytes
        self._by_highest_hash: list[tuple[int, bytes]] = []
        self._lowest_dropped = 1 << 256

    def passing(self, texts: Iterable[str]) -> Iterator[str]:
        """`texts`, of which the sample is taken as they go by."""
        for text in texts:
            self._take(text.encode())
            yield text

    def texts(self) -> Iterator[str]:
        return (text.decode() for _, text in self._by_highest_hash)

    def _take(self, text: bytes) -> None:
        hash_ = int.from_bytes(hashlib.sha256(text).digest())
        if hash_ < self._lowest_dropped:
            heapq.heappush(self._by_highest_hash, (-hash_, text))
            self._free_bytes -= len(text)
        while self._free_bytes < 0:
            negative_hash, dropped = heapq.heappop(self._by_highest_hash)
            self._lowest_dropped = -negative_hash
            self._free_bytes += len(dropped)


def add_superwords(tokenizer: tokenizers.Tokenizer, texts: Iterable[str], vocab_size: int) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE tokenizer whose merges have gone on, on `texts`, to `vocab_size` tokens.

    There are fewer where the texts do not support so many.

    Args:
      tokenizer: of the first stage, but its pre-tokenizer splits as in the second.
    """
    spec = json.loads(tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    tokens = sorted(vocab, key=vocab.__getitem__)
    for left, right in learn_merges(_ids_with_borders(tokenizer, texts), tokens, vocab_size, is_allowed):
        vocab[tokens[left] + tokens[right]] = len(tokens)
        merges.append([tokens[left], tokens[right]])
        tokens.append(tokens[left] + tokens[right])
    return spec


def is_allowed(token: str) -> bool:
    """Whether the second stage may make this token: four words at most, and none that goes on behind a colon and a
    space."""
    return ":Ġ" not in token and sum(map(bool, token.split("Ġ"))) <= MAX_WORDS


def learn_merges(
    ids: np.ndarray, tokens: Sequence[str], vocab_size: int, is_allowed: Callable[[str], bool]
) -> list[tuple[int, int]]:
    """The merges (left id, right id) by which BPE goes on from a text in tokens; the k-th makes the id len(tokens) + k.

    Each time the pair that occurs most often becomes a token, of pairs that occur equally often the one with the lowest
    ids, as in `tokenizers`. It ends with `vocab_size` tokens, or where no pair that is allowed occurs twice.

    A pair has all its occurrences from the moment its younger token is made, and can only lose some. So each is in the
    queue once, with its positions, and is counted again when it comes out. Takes about 50 bytes of memory an id.

    Args:
      ids: i32[n], begins and ends with BORDER.
    """
    assert ids[0] == ids[-1] == BORDER, f"{ids[0]=} {ids[-1]=}"
    text, tokens, merges = _Text(ids), list(tokens), []
    at_first = text.pairs_at_first()
    queue: list[_QueueEntry] = []
    following = next(at_first, None)
    while len(tokens) < vocab_size and (queue or following):
        if following and (not queue or following[:2] < queue[0][:2]):
            heapq.heappush(queue, following)
            following = next(at_first, None)
            continue
        negative_count, pair, positions = heapq.heappop(queue)
        left, right = divmod(pair, 1 << 32)
        if not is_allowed(tokens[left] + tokens[right]):
            continue
        positions = text.still_there(left, right, positions)
        if len(positions) == -negative_count:
            for entry in text.merge(left, right, positions, len(tokens)):
                heapq.heappush(queue, entry)
            merges.append((left, right))
            tokens.append(tokens[left] + tokens[right])
        elif len(positions) >= MIN_COUNT:
            heapq.heappush(queue, (-len(positions), pair, positions))
    return merges


# In the queue: minus the count, the pair as left << 32 | right, and i[count], ascending, where its left id is.
_QueueEntry = tuple[int, int, np.ndarray]


class _Text:
    """A text in ids, linked both ways, so that a merge leaves the others where they are."""

    def __init__(self, ids: np.ndarray):
        self._ids = ids.copy()
        self._before = np.arange(-1, len(ids) - 1, dtype=np.int32)
        self._after = np.arange(1, len(ids) + 1, dtype=np.int32)

    def pairs_at_first(self) -> Iterator[_QueueEntry]:
        """The pairs of the text as it is now, in the order of the queue. Made one by one: most are never looked at."""
        positions = np.flatnonzero((self._ids[:-1] >= 0) & (self._ids[1:] >= 0)).astype(np.int32)
        return _grouped(self._pairs(positions), positions)

    def still_there(self, left: int, right: int, positions: np.ndarray) -> np.ndarray:
        return positions[(self._ids[positions] == left) & (self._ids[self._after[positions]] == right)]

    def merge(self, left: int, right: int, positions: np.ndarray, new: int) -> Iterator[_QueueEntry]:
        """Writes `new` for the pair at `positions`, from left to right where they overlap; yields the pairs this
        makes."""
        if left == right:
            positions = positions[_is_even_in_run(self._after[positions[:-1]] == positions[1:])]
        right_parts = self._after[positions]
        beyond = self._after[right_parts]
        self._ids[positions] = new
        self._ids[right_parts] = _GONE
        self._after[positions] = beyond
        self._before[beyond] = positions
        before = self._before[positions]
        before = before[(self._ids[before] >= 0) & (self._ids[before] != new)]
        starts = np.concatenate([before, positions[self._ids[beyond] >= 0]])
        return _grouped(self._pairs(starts), starts)

    def _pairs(self, positions: np.ndarray) -> np.ndarray:
        return self._ids[positions].astype(np.int64) << 32 | self._ids[self._after[positions]]


def _is_even_in_run(goes_on: np.ndarray) -> np.ndarray:
    """bool[n - 1], whether each item goes on the run of the one before -> bool[n], the 1st, 3rd, ... of each run."""
    order = np.arange(len(goes_on) + 1)
    run_starts = np.maximum.accumulate(np.where(np.append(False, goes_on), 0, order))
    return (order - run_starts) % 2 == 0


def _grouped(pairs: np.ndarray, positions: np.ndarray) -> Iterator[_QueueEntry]:
    """i64[n] pairs, i[n] positions -> the pairs that occur often enough, in the order of the queue."""
    by_pair = np.argsort(pairs, kind="stable")  # So the positions of each pair stay ascending.
    pairs, positions = pairs[by_pair], positions[by_pair]
    starts = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)])
    counts = np.diff(np.append(starts, len(pairs)))
    often = np.flatnonzero(counts >= MIN_COUNT)
    often = often[np.argsort(-counts[often], kind="stable")]
    for start, count in zip(starts[often], counts[often], strict=True):
        yield -int(count), int(pairs[start]), positions[start : start + count]


def _ids_with_borders(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """i32[n] ids of the texts, with a BORDER between any two pieces that the pre-tokenizer makes, and at both ends."""
    texts, parts = iter(texts), [np.array([BORDER], np.int32)]
    while batch := list(itertools.islice(texts, _BATCH_TEXTS)):
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            piece_of_id = np.array(encoding.word_ids, np.int32)
            borders = np.append(1 + np.flatnonzero(np.diff(piece_of_id)), len(piece_of_id))
            parts.append(np.insert(np.array(encoding.ids, np.int32), borders, BORDER))
    return np.concatenate(parts)
