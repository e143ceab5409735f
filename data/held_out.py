"""The documents of corpora that are held out, and fixed parts of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain

from data.rows import Documents
from data.store import Corpus
from tokenizer_lab import metrics

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
    """Documents in a fixed random order, `max_bytes` of text in all: the last one is cut there, not inside of a
    character. No document behind it is read, and the order is not laid out either, however many there are."""
    subset, left = [], max_bytes
    order = grain.MapDataset.range(len(documents)).shuffle(seed=seed)
    for place in range(len(documents)):
        document = documents[int(order[place])]
        subset.append(document if len(document) <= left else _beginning(document, left))
        left -= len(subset[-1])
        if left == 0 or len(subset[-1]) < len(document):
            break
    return subset


def _beginning(text: bytes, num_bytes: int) -> bytes:
    """At most the first bytes of a longer text, without the half of a character; the half, where there is no other."""
    is_whole = lambda end: text[end] & 0xC0 != 0x80
    end = next((end for end in range(num_bytes, max(0, num_bytes - 4), -1) if is_whole(end)), num_bytes)
    return text[:end]
