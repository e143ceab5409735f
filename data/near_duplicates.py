"""Which documents are near copies of others: MinHash, by `rensa`, over all documents of an ingest.

A document is the set of its shingles, `SHINGLE_WORDS` words in a row. Of two documents that share a part s of theirs,
each of `ROWS` hashes agrees with probability s, and each of `BANDS` bands of them with s^ROWS. Those that agree in one
band at least are near copies: with the numbers here, 92 % of the pairs with s = 0.8, half of those with 0.71 and 5 % of
those with 0.5 (Lee et al. 2022, arXiv 2107.06499; the numbers of Penedo et al. 2024, arXiv 2406.17557).

Near copies of near copies are one group. Of a group one document stays: one that is held out where there is one, of
those the one with the lowest key. So no near copy of a held-out document is trained on.

    PARTIAL/<task>.near    u64[3 + BANDS, n], little-endian, of n documents: rank of the split, the halves of the key, a
                           hash of each band
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from etils import epath

from data.duplicates import NO_KEYS, names_of
from data.manifest import Split
from data.reading import Document
from data.split import document_key, key_is_held_out
from data.storage import Range, new_file, read_ranges
from tokenizer_lab.errors import UserError

BANDS, ROWS, SHINGLE_WORDS = 14, 8, 5
_HEAD_COLUMNS = 3  # before the bands'
_RANKS: dict[Split, int] = {"test": 0, "valid": 1, "train": 2}
_SEED = 0
_LONGEST_WORD = 32  # bytes; what is longer is of a script without spaces, and a word is a character
_CHARACTER = re.compile(rb"[\0-\x7f]|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf]")
_PARTITION_ROWS = 32 << 20  # of a band, looked at by one worker


def check_installed() -> None:
    """Raises UserError where `rensa` is missing."""
    try:
        import rensa  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--drop-duplicates near needs a package that is not installed: pip install 'tokenizer-lab[dedup]'"
        ) from error


def shingles(text: bytes) -> list[bytes]:
    """What of a document is compared: lower-case words in a row."""
    words: list[bytes] = []
    for word in text.lower().split():
        words += [word] if len(word) <= _LONGEST_WORD else _CHARACTER.findall(word)
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return [b" ".join(words[start : start + SHINGLE_WORDS]) for start in starts]


def band_hashes(texts: Sequence[bytes]) -> np.ndarray:
    """Documents -> u64[n, BANDS]: two with an equal number in a column are near copies."""
    import rensa

    digests = np.array(
        rensa.RMinHash.digests_from_token_sets([shingles(text) for text in texts], BANDS * ROWS, _SEED), "<u4"
    ).reshape(len(texts), BANDS, ROWS)
    hashes = [
        hashlib.blake2b(band.tobytes(), digest_size=8, salt=number.to_bytes(2)).digest()
        for document in digests
        for number, band in enumerate(document)
    ]
    return np.frombuffer(b"".join(hashes), "<u8").reshape(len(texts), BANDS)


class SketchWriter:
    """Takes documents and writes a file of their sketches. Parts of long documents are left out."""

    def __init__(self, test_fraction: float):
        """`test_fraction`: of documents that bring no split."""
        self._test_fraction = test_fraction
        self._sketches = [np.zeros((_HEAD_COLUMNS + BANDS, 0), np.uint64)]

    def add(self, documents: Iterable[Document]) -> None:
        whole = [document for document in documents if document.part is None]
        if whole:
            keys = [document_key(document.text) for document in whole]
            by_hash: dict[bool, Split] = {True: "test", False: "train"}
            splits = [
                document.split or by_hash[key_is_held_out(key, self._test_fraction)]
                for key, document in zip(keys, whole, strict=True)
            ]
            self._sketches.append(sketch(keys, splits, band_hashes([document.text for document in whole])))

    def write(self, folder: epath.Path, name: str) -> list[tuple[str, int]]:
        """Writes what there is: (file, documents). Raises OSError or UserError."""
        columns = np.concatenate(self._sketches, axis=1)
        if not columns.shape[1]:
            return []
        with new_file(folder / f"{name}.near") as file:
            file.write(columns.astype("<u8").tobytes())
        return [(f"{name}.near", columns.shape[1])]


def sketch(keys: Sequence[bytes], splits: Sequence[Split], bands: np.ndarray) -> np.ndarray:
    """u64[3 + BANDS, n], what a file has of documents, given their keys and u64[n, BANDS]."""
    halves = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)
    ranks = np.array([_RANKS[split] for split in splits], np.uint64)
    return np.concatenate([ranks[None], halves.T.astype(np.uint64), bands.T.astype(np.uint64)])


@dataclasses.dataclass(frozen=True)
class SketchFile:
    """A file of sketches, and how many documents it is about."""

    path: epath.Path
    num_documents: int

    def columns(self, first: int, count: int) -> Range:
        return Range(os.fspath(self.path), 8 * self.num_documents * first, 8 * self.num_documents * count)


@dataclasses.dataclass(frozen=True)
class BandPart:
    """A part of a band: hashes that are `number` modulo `count`."""

    band: int
    number: int
    count: int


def parts_of_bands(files: Sequence[SketchFile]) -> list[BandPart]:
    """What workers look at, one by one."""
    count = 1 + sum(file.num_documents for file in files) // _PARTITION_ROWS
    return [BandPart(band, number, count) for band in range(BANDS) for number in range(count)]


@dataclasses.dataclass(frozen=True)
class FindPairs:
    """Finds near copies; what an engine's workers do."""

    files: tuple[SketchFile, ...]

    def __call__(self, part: BandPart) -> Iterator[np.ndarray]:
        """Yields i64[p, 2]: documents, counted through all files, that are near copies. Each but one of several that
        are the same is in a pair."""
        hashes, rows, first = [], [], 0
        for file in self.files:
            [content] = read_ranges([file.columns(_HEAD_COLUMNS + part.band, 1)])
            column = np.frombuffer(content, "<u8")
            chosen = np.flatnonzero(column % np.uint64(part.count) == part.number)
            hashes.append(column[chosen])
            rows.append(first + chosen)
            first += file.num_documents
        yield pairs_of(np.concatenate(hashes), np.concatenate(rows))


def pairs_of(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """u64[n] hashes of documents i64[n] -> i64[p, 2], neighbours of those that have the same."""
    order = np.argsort(hashes, kind="stable")
    hashes, rows = hashes[order], rows[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    return np.stack([rows[same], rows[same + 1]], axis=1)


def dropped_keys(files: Sequence[SketchFile], pairs: Iterable[np.ndarray]) -> np.ndarray:
    """S16[d], sorted: the keys of the documents that do not stay, given all pairs of near copies.

    Memory grows with the number of documents that have a near copy, not with all of them.
    """
    every_pair = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    rows, places = np.unique(every_pair, return_inverse=True)
    if not len(rows):
        return NO_KEYS
    left, right = places.reshape(-1, 2).T
    graph = scipy.sparse.coo_array((np.ones(len(left), bool), (left, right)), shape=(len(rows), len(rows)))
    _, groups = scipy.sparse.csgraph.connected_components(graph, directed=False)
    rank, high, low = _heads(files, rows)
    return _all_but_first(groups, rank, high, low)


def _heads(files: Sequence[SketchFile], rows: np.ndarray) -> np.ndarray:
    """u64[3, r], rank and key of documents i64[r], sorted, that are counted through all files."""
    heads, first = [], 0
    for file in files:
        start, end = np.searchsorted(rows, [first, first + file.num_documents])
        if end > start:
            [content] = read_ranges([file.columns(0, _HEAD_COLUMNS)])
            heads.append(np.frombuffer(content, "<u8").reshape(_HEAD_COLUMNS, -1)[:, rows[start:end] - first])
        first += file.num_documents
    return np.concatenate(heads, axis=1)


def _all_but_first(groups: np.ndarray, rank: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """S16[d], the keys of all documents but the first, by rank and key, of each group, and those that have its key."""
    order = np.lexsort((low, high, rank, groups))
    groups, keys = groups[order], names_of(high[order], low[order])
    is_first = np.append(True, groups[1:] != groups[:-1])
    kept = keys[is_first][np.cumsum(is_first) - 1]
    return np.unique(keys[keys != kept])
