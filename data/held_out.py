"""The documents of corpora that are held out, and fixed parts of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.rows import Documents
from data.store import Corpus
from tokenizer_lab import metrics

_MAX_MISSES = 64
_SCRIPT_BYTES = 1 << 14  # of a document, by which its script is told


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The test documents of some corpora, one after the other."""

    parts: list[Any]
    """`data.store.Documents` of each corpus."""

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, number: int) -> bytes:
        part, index = self._find(number)
        return part[index]

    def domain(self, number: int) -> str:
        part, index = self._find(number)
        return part.domain(index)

    def script(self, number: int) -> str:
        """The script of a document, by its beginning."""
        return metrics.script(self[number][:_SCRIPT_BYTES])

    def _find(self, number: int) -> tuple[Any, int]:
        for part in self.parts:
            if number < len(part):
                return part, number
            number -= len(part)
        raise IndexError(number)


def held_out_documents(corpora: Sequence[Corpus]) -> HeldOut:
    """Raises UserError where a corpus holds nothing out."""
    return HeldOut([corpus.documents("test") for corpus in corpora])


def fixed_subset(documents: Documents, max_bytes: int, seed: int = 0) -> list[bytes]:
    """Whole documents, taken in a fixed random order where they still fit in `max_bytes` (the first with text in any
    case); as many as `_MAX_MISSES` one after the other do not fit, and no more are read."""
    subset, total, misses = [], 0, 0
    for number in np.random.default_rng(seed).permutation(len(documents)):
        document = documents[int(number)]
        if total == 0 or total + len(document) <= max_bytes:
            subset.append(document)
            total += len(document)
            misses = 0
        else:
            misses += 1
        if total >= max_bytes or misses == _MAX_MISSES:
            break
    return subset
