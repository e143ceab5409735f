"""The order in which documents are read: a shuffle of each source, and which source a row draws from next.

All of it are pure functions of seeds and numbers, so that nothing about the order needs to be saved.

Documents are shuffled in blocks of K neighbours, which storage far away gives in one request: the blocks, and within a
block its documents. Slot s of the endless order is in block `s // K` of the shuffled blocks. The last block of a source
may be short, and a slot that it has no document for is passed over. With K = 1 it is a shuffle of documents.
"""

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from data.index_shuffle import index_shuffle
from tokenizer_lab.compiled import compiled

NO_DOCUMENT = -1


@dataclasses.dataclass(frozen=True)
class Order:
    """The endless order of one source.

    Attributes:
      num_documents: of the source.
      seed: u32, of `shuffle_seed`.
      block_documents: K.
    """

    num_documents: int
    seed: int
    block_documents: int = 1

    @property
    def num_blocks(self) -> int:
        return -(-self.num_documents // self.block_documents)

    def slots(self, row_n: np.ndarray, number_n: np.ndarray, batch_rows: int) -> np.ndarray:
        """i64[n], of rows' slots with these numbers: row r of B has the blocks r, r + B, ... of the order."""
        block_n, within_n = np.divmod(number_n, self.block_documents)
        return (row_n + batch_rows * block_n) * self.block_documents + within_n

    def documents(self, slots_n: np.ndarray) -> np.ndarray:
        """i64[n], the documents in these slots; `NO_DOCUMENT` where there is none."""
        place_n, within_n = np.divmod(slots_n, self.block_documents)
        epoch_n, place_n = np.divmod(place_n, self.num_blocks)
        block_n = np.empty_like(place_n)
        for epoch in np.unique(epoch_n).tolist():
            of_epoch = epoch_n == epoch
            block_n[of_epoch] = index_shuffle(place_n[of_epoch], self.num_blocks, self._seed_of(epoch))
        if self.block_documents > 1:
            within_n = _within_blocks(block_n, within_n, epoch_n, np.uint64(self.seed), self.block_documents)
        document_n = block_n * self.block_documents + within_n
        return np.where(document_n < self.num_documents, document_n, NO_DOCUMENT)

    def _seed_of(self, epoch: int) -> int:
        return (self.seed + epoch) % 2**32


@compiled
def _within_blocks(block_n, place_n, epoch_n, seed, block_documents):
    """The document within its block that stands at each place: in each epoch, a block's documents in the order of a
    hash."""
    out_n = np.empty(len(block_n), np.int64)
    order_k = np.empty(0, np.int64)
    for n in range(len(block_n)):
        if n == 0 or block_n[n] != block_n[n - 1] or epoch_n[n] != epoch_n[n - 1]:
            of_block = _mixed(_mixed(_mixed(seed) ^ np.uint64(epoch_n[n])) ^ np.uint64(block_n[n]))
            keys_k = np.empty(block_documents, np.uint64)
            for k in range(block_documents):
                keys_k[k] = _mixed(of_block ^ np.uint64(k))  # all of them different: `_mixed` is one to one
            order_k = np.argsort(keys_k)
        out_n[n] = order_k[place_n[n]]
    return out_n


@compiled
def _mixed(value):
    """64 bits that stand for chance, by 64 bits: the finalizer of splitmix64 (Steele, Lea & Flood 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def draw_source(seed: int, row: int, draw: int, weights: Sequence[float]) -> int:
    """The source that a row's `draw`-th document comes from: a pure function, so that a cursor need not remember it."""
    if len(weights) == 1:
        return 0
    uniform = (draw_hash(seed, row, draw) >> 11) / 2**53  # 53 bits, as 64 would round up to 1
    cumulative = list(itertools.accumulate(weights))
    return bisect.bisect_right(cumulative, uniform * cumulative[-1])


def draw_hash(seed: int, row: int, draw: int, *what: str) -> int:
    """64 bits that stand for chance."""
    digest = hashlib.blake2b("/".join(map(str, (seed, row, draw, *what))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def shuffle_seed(seed: int, source_number: int) -> int:
    digest = hashlib.blake2b(f"shuffle/{seed}/{source_number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
