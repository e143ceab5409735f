"""Where shards, units and blocks begin: decided by the texts alone, whatever the inputs and the workers."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from data.manifest import Rule, Text
from data.runs import Histogram

SHARD_BYTES = 256 << 20  # of text
MIN_BLOCKS = 1 << 20  # of a split, as long as it has as many documents
_BLOCK_BYTES = 256 << 10  # of text, on average and at most
_UNIT_BYTES = 16 << 10  # of text, about, where a block is one document


def block_documents(num_documents: int, num_bytes: int) -> int:
    """How many consecutive documents are shuffled as one: a power of two, and 1 for fewer than two million."""
    most = min(num_documents // MIN_BLOCKS, _BLOCK_BYTES * num_documents // max(1, num_bytes))
    return _power_of_two(most)


def unit_documents(num_documents: int, num_bytes: int) -> int:
    """How many documents are compressed together: whole blocks, and a power of two."""
    most = _UNIT_BYTES * num_documents // max(1, num_bytes)
    return max(_power_of_two(min(most, num_documents)), block_documents(num_documents, num_bytes))


def _power_of_two(most: int) -> int:
    return 1 << max(1, most).bit_length() - 1


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: all documents of its text in buckets `first_bucket` to `end_bucket - 1`."""

    number: int
    first_bucket: int
    end_bucket: int
    first: int
    num_documents: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class PlannedText:
    """How a domain and split is divided into shards.

    Attributes:
      name: tells it from every other text; part of its files' names.
      rule: how its split was chosen.
    """

    text: Text
    rule: Rule
    name: str
    unit_documents: int
    num_documents: int
    num_bytes: int
    shards: tuple[PlannedShard, ...]


def plan_text(text: Text, rule: Rule, histogram: Histogram, shard_bytes: int = SHARD_BYTES) -> PlannedText:
    """Divides a text into shards, each of which ends before the bucket with which it would have more than
    `shard_bytes` of text. Every bucket is in one shard as a whole."""
    num_documents, num_bytes = int(histogram.documents.sum()), int(histogram.num_bytes.sum())
    filled = np.flatnonzero(histogram.documents)
    documents, sizes = np.cumsum(histogram.documents[filled]), np.cumsum(histogram.num_bytes[filled])
    shards: list[PlannedShard] = []
    at = 0
    while at < len(filled):
        first, before = (int(documents[at - 1]), int(sizes[at - 1])) if at else (0, 0)
        end = max(at + 1, int(np.searchsorted(sizes, before + shard_bytes, "right")))
        shards.append(
            PlannedShard(
                number=len(shards),
                first_bucket=int(filled[at]),
                end_bucket=int(filled[end - 1]) + 1,
                first=first,
                num_documents=int(documents[end - 1]) - first,
                num_bytes=int(sizes[end - 1]) - before,
            )
        )
        at = end
    return PlannedText(
        text=text,
        rule=rule,
        name=hashlib.sha256(f"{histogram.key_sum}/{num_documents}/{num_bytes}".encode()).hexdigest()[:8],
        unit_documents=unit_documents(num_documents, num_bytes),
        num_documents=num_documents,
        num_bytes=num_bytes,
        shards=tuple(shards),
    )


def merged_together(
    shards: Sequence[PlannedShard], num_runs: int, stretch_bytes: int
) -> Iterable[Sequence[PlannedShard]]:
    """Consecutive shards that one worker merges: so many that a run has `stretch_bytes` of text in them, on average, as
    each costs a look into every run."""
    start, num_bytes = 0, 0
    for end, shard in enumerate(shards, 1):
        num_bytes += shard.num_bytes
        if num_bytes >= num_runs * stretch_bytes or end == len(shards):
            yield shards[start:end]
            start, num_bytes = end, 0
