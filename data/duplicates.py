"""A look at the keys of all documents of an ingest, between its phases: which of them are the same, and in two splits.

A document's key is its hash, so that the same documents have the same key. Workers look at some buckets of keys each
(`data/runs.py`), in all texts: those of the runs, and those that are in the corpus already.

Of documents that are the same, one stays: one in the corpus already, else the first by its split (test, valid, train)
and domain. So held-out text is not trained on.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from data.manifest import SPLITS, StoredText, Text
from data.runs import Columns, Histogram, RunFile, merged, sum_of
from data.store import AGAIN, Documents
from tokenizer_lab.errors import UserError

_TASK_DOCUMENTS = 4 << 20  # whose keys are looked at together
NO_KEYS = np.zeros(0, "S16")


@dataclasses.dataclass
class Drops:
    """What does not become part of the corpus.

    Attributes:
      histograms: of each text of the runs, without it.
      gone: of each text, the keys of documents of which none stays, S16[g]; of others one does.
      num_exact, num_near: how many documents are dropped, as the same as another or as near copies.
    """

    histograms: dict[Text, Histogram]
    gone: dict[Text, np.ndarray]
    num_exact: int = 0
    num_near: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is to drop in some buckets, and two texts of different splits that have a document in common, as
    (text, text, key)."""

    removed: dict[Text, Histogram]
    gone: dict[Text, np.ndarray]
    num_exact: int
    num_near: int
    overlap: tuple[Text, Text, bytes] | None


@dataclasses.dataclass(frozen=True)
class LookAtKeys:
    """Looks at the keys in some buckets; what an engine's workers do.

    Attributes:
      folder, there: of the corpus, and what it holds of other texts than the runs.
      partial, runs, texts: the runs and what they hold.
      drop: whether documents are dropped that are the same.
      near: S16[d], sorted, the keys of near copies to be dropped.
    """

    folder: epath.Path
    there: tuple[StoredText, ...]
    partial: epath.Path
    runs: tuple[RunFile, ...]
    texts: tuple[Text, ...]
    drop: bool
    near: np.ndarray

    def __call__(self, buckets: tuple[int, int]) -> Iterator[Found]:
        ordered = [*(text.text for text in self.there), *sorted(self.texts, key=_rank)]
        keys_of = [*(_stored_keys(self.folder, text, buckets) for text in self.there)]
        keys_of += [_keys(merged(self.partial, self.runs, text, *buckets)) for text in ordered[len(self.there) :]]
        number = np.concatenate([np.full(len(keys.name), place) for place, keys in enumerate(keys_of)])
        keys = _Keys(*(np.concatenate(column) for column in zip(*keys_of, strict=True)))
        order = np.lexsort((number, keys.part, keys.name))
        keys, number = _Keys(*(column[order] for column in keys)), number[order]
        repeats = np.append(False, (keys.name[1:] == keys.name[:-1]) & (keys.part[1:] == keys.part[:-1]))
        yield self._found(ordered, keys, number, repeats)

    def _found(self, ordered: Sequence[Text], keys: "_Keys", number: np.ndarray, repeats: np.ndarray) -> Found:
        is_new = number >= len(self.there)
        is_near = is_new & np.isin(keys.name, self.near)
        is_exact = is_new & repeats & ~is_near if self.drop else np.zeros(len(number), bool)
        removed, gone = {}, {}
        for place in range(len(self.there), len(ordered)):
            mine = number == place
            out = mine & (is_near | is_exact)
            if out.any():
                removed[ordered[place]] = _histogram(keys.take(out))
                gone[ordered[place]] = np.setdiff1d(keys.name[out], keys.name[mine & ~out])
        stays = ~(is_near | is_exact)
        overlap = _overlap(ordered, keys.name[stays], number[stays])
        return Found(removed, gone, int(is_exact.sum()), int(is_near.sum()), overlap)


class _Keys(NamedTuple):
    """Documents by key S16[n], part number i64[n] and size in bytes i64[n]."""

    name: np.ndarray
    part: np.ndarray
    size: np.ndarray

    def take(self, chosen: np.ndarray) -> "_Keys":
        return _Keys(*(column[chosen] for column in self))


def names_of(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Keys u64[n], by halves -> S16[n], in the same order."""
    return np.stack([high, low], axis=1).astype(">u8").view("S16")[:, 0]


def _keys(columns: Iterable[Columns]) -> _Keys:
    parts = [_Keys(names_of(each.high, each.low), each.part, each.sizes) for each in columns]
    nothing = _Keys(NO_KEYS, np.zeros(0, np.int64), np.zeros(0, np.int64))
    return _Keys(*(np.concatenate(column) for column in zip(nothing, *parts, strict=True)))


def _stored_keys(folder: epath.Path, text: StoredText, buckets: tuple[int, int]) -> _Keys:
    """Those of a text that is in the corpus, whose documents are in the order of their keys."""
    documents = Documents(folder, [text], 1, AGAIN)
    bucket_of = lambda index: int.from_bytes(documents.key(index)[:2])
    indices = range(len(documents))
    chosen = range(*(bisect.bisect_left(indices, bucket, key=bucket_of) for bucket in buckets))
    name = np.array([documents.key(index) for index in chosen], "S16")
    part = np.array([documents.part(index) for index in chosen], np.int64)
    return _Keys(name, part, np.zeros(len(chosen), np.int64))


def _histogram(keys: _Keys) -> Histogram:
    high, low = np.frombuffer(keys.name.tobytes(), ">u8").reshape(-1, 2).astype(np.uint64).T
    histogram = Histogram.empty()
    bucket = (high >> np.uint64(48)).astype(np.int64)
    np.add.at(histogram.documents, bucket, 1)
    np.add.at(histogram.num_bytes, bucket, keys.size)
    histogram.key_sum = ((sum_of(high) << 64) + sum_of(low)) % (1 << 128)
    return histogram


def _rank(text: Text) -> tuple[int, str]:
    domain, split = text
    return -SPLITS.index(split), domain


def _overlap(ordered: Sequence[Text], name: np.ndarray, number: np.ndarray) -> tuple[Text, Text, bytes] | None:
    """Two texts of different splits that have a key in common, of keys that are sorted."""
    splits = np.array([SPLITS.index(split) for _, split in ordered])[number]
    both = np.flatnonzero((name[1:] == name[:-1]) & (splits[1:] != splits[:-1]))
    if not len(both):
        return None
    first = int(both[0])
    one, other = sorted((ordered[number[first]], ordered[number[first + 1]]), key=_rank)
    return one, other, name[first].ljust(16, b"\0")


def bucket_ranges(histograms: Iterable[Histogram], there: Iterable[StoredText]) -> list[tuple[int, int]]:
    """Buckets that are looked at together: all of them, in order."""
    documents = np.sum([histogram.documents for histogram in histograms], axis=0)
    stored = sum(text.num_documents for text in there) / len(documents)
    together = np.cumsum(documents + stored) // _TASK_DOCUMENTS
    edges = [0, *(np.flatnonzero(together[1:] != together[:-1]) + 1).tolist(), len(documents)]
    return list(itertools.pairwise(edges))


def collect(found: Iterable[Found], histograms: Mapping[Text, Histogram]) -> Drops:
    """What all workers have found. Raises InTwoSplits."""
    drops = Drops({text: Histogram.empty() for text in histograms}, {})
    gone: dict[Text, list[np.ndarray]] = {}
    for text, histogram in histograms.items():
        drops.histograms[text].add(histogram)
    for each in found:
        if each.overlap:
            raise _overlap_error(*each.overlap)
        for text, removed in each.removed.items():
            drops.histograms[text].subtract(removed)
        for text, names in each.gone.items():
            gone.setdefault(text, []).append(names)
        drops.num_exact += each.num_exact
        drops.num_near += each.num_near
    drops.histograms = {text: each for text, each in drops.histograms.items() if each.documents.any()}
    drops.gone = {text: np.sort(np.concatenate(names)) for text, names in gone.items()}
    return drops


class InTwoSplits(UserError):
    """A document is in two splits, however often it is tried."""


def _overlap_error(one: Text, other: Text, key: bytes) -> InTwoSplits:
    return InTwoSplits(
        f"a document is in {one[1]} (domain {one[0]}) and also in {other[1]} (domain {other[0]}), the one whose SHA-256"
        f" begins with {key.hex()}; take it out of one of them, or drop it from {other[1]} with --drop-duplicates exact"
    )


def kept(columns: Iterable[Columns], gone: np.ndarray) -> Iterator[Columns]:
    """Documents in order, without those whose keys are gone, S16[g], and one of those that are the same."""
    before: tuple[int, int, int] | None = None
    for each in columns:
        places = np.stack([each.high, each.low, each.part.astype(np.uint64)])
        repeats = np.append(each.place(0) == before, (places[:, 1:] == places[:, :-1]).all(axis=0))
        before = each.place(-1)
        chosen = np.flatnonzero(~repeats & ~np.isin(names_of(each.high, each.low), gone))
        if len(chosen):
            yield each.take(chosen)
