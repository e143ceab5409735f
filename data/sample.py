"""A part of a corpus to learn from: the documents of its train split with the lowest hashes, which are a random sample
and the same one wherever and however often it is taken."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from data.split import key_is_held_out
from data.store import Corpus
from tokenizer_lab.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sample:
    """Documents of the train split of a corpus.

    Attributes:
      max_bytes: how much text, about: the hash decides, not the size of what it brings. All of it where there is less.
    """

    corpus: Corpus
    max_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise UserError(f"--sample-bytes is {self.max_bytes}; it must be at least 1")

    @property
    def documents(self) -> Any:
        """All documents that there are."""
        return self.corpus.documents("train")

    @property
    def is_all(self) -> bool:
        return self.documents.num_bytes <= self.max_bytes

    def read(self, update: Callable[[int, int], None] = lambda done, total: None) -> Iterator[bytes]:
        """Yields the sample. `update` is told how many bytes have been gone through, and how many there are to."""
        documents, num_documents, done = self.documents, 0, 0
        is_sorted = self.corpus.is_sorted
        total = min(self.max_bytes, documents.num_bytes) if is_sorted else documents.num_bytes
        share = self.max_bytes / max(1, documents.num_bytes)
        for text in self.corpus.texts_of("train"):
            lowest = 0.0 if text.rule == "given" else self.corpus.test_fraction
            below = 1.0 if self.is_all else lowest + (1 - lowest) * share
            for number in range(num_documents, num_documents + text.num_documents):
                is_in = below >= 1 or key_is_held_out(documents.key(number), below)
                if not is_in and is_sorted:
                    break
                document = documents[number]
                if is_in:
                    yield document
                done += len(document)
                update(min(done, total), total)
            num_documents += text.num_documents
