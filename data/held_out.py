"""The documents of corpora that a run trains on, those that are held out, and fixed parts of them."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import grain

from data.documents import Documents
from data.manifest import Split
from data.rows import Source
from data.split import kept_share, key_is_held_out
from data.store import AnyDocuments, Corpus
from tokenizer_lab import metrics
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import is_remote

MAX_COMPARED_BYTES = 4 << 30
"""Of text, beyond which it is not read to look for copies of held-out documents."""
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


class _Chosen:
    """Some of a corpus's documents, read as `data.store.Documents` are."""

    def __init__(self, documents: Any, size_of: Mapping[int, int]):
        """`size_of`: number -> bytes, of those chosen."""
        self._documents, self._numbers, self.num_bytes = documents, list(size_of), sum(size_of.values())

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> bytes:
        return self._documents[self._numbers[index]]

    def domain(self, index: int) -> str:
        return self._documents.domain(self._numbers[index])


def run_sources(corpora: Sequence[Corpus], weights: Sequence[float], trained_from: float) -> list[Source]:
    """The train splits of a run's corpora, without what the run holds out: `trained_from` is of its `data.split`.

    A corpus that draws some documents in vain draws that much more often, so that `weights` are shares of what is read.
    """
    return [
        Source(
            corpus.documents("train"),
            weight / kept_share(corpus.test_fraction, trained_from),
            trained_from if trained_from > corpus.test_fraction else 0.0,
        )
        for corpus, weight in zip(corpora, weights, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class TrainText:
    """The train split of a corpus; what the run holds out is empty there."""

    documents: AnyDocuments
    trained_from: float

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, number: int) -> bytes:
        held_out = key_is_held_out(self.documents.key(number), self.trained_from)
        return b"" if held_out else self.documents[number]


def tuning_documents(corpora: Sequence[Corpus], scored_below: float) -> HeldOut | None:
    """What a run is judged by while it is trained: the valid documents of each corpus, else its test documents. None
    where there are neither."""
    parts = []
    for corpus in corpora:
        if own := [split for split in ("valid", "test") if split in corpus.splits]:
            parts.append(_held_out_part(corpus, scored_below, cast(Split, own[0])))
    return HeldOut(parts) if parts else None


def held_out_documents(corpora: Sequence[Corpus], scored_below: float | None = None, split: Split = "test") -> HeldOut:
    """The documents that corpora hold out.

    Args:
      corpora: whose documents. Of those that have none of the split nothing is scored, if others have.
      scored_below: of a run's split (`data/split.py`); what it does not hold out is then left out, for which the text
        of a corpus that holds out more is read.
      split: which documents; what is tuned on is valid, and what is reported is test.

    Raises:
      UserError: no corpus holds such documents out, or none that the run holds out too.
    """
    having = [corpus for corpus in corpora if split in corpus.splits]
    if not having:
        others = " or ".join(f"--split {each}" for each in ("valid", "test") if any(each in c.splits for c in corpora))
        raise UserError(
            f"there are no {split} documents in {', '.join(str(corpus.folder) for corpus in corpora)}; score"
            f" {others + ', or ' if others else ''}another text, e.g. a published test set that is ingested with"
            " --split test: toklab eval RUN --corpus OTHER --whole-corpus"
        )
    return HeldOut([_held_out_part(corpus, scored_below, split) for corpus in having])


def _held_out_part(corpus: Corpus, scored_below: float | None, split: Split) -> Any:
    documents = corpus.documents(split)
    if scored_below is None or corpus.test_fraction <= scored_below:
        return documents
    numbers = (number for number in range(len(documents)) if key_is_held_out(documents.key(number), scored_below))
    size_of = {number: len(documents[number]) for number in numbers}
    if not size_of:
        raise UserError(
            f"none of the {len(documents):,} {split} documents of {corpus.folder} is surely new to the run, which may"
            f" be trained on any document but {scored_below:.3%} of them by their hashes; give more text, or score all"
            " with toklab eval --whole-corpus"
        )
    return _Chosen(documents, size_of)


def count_seen_by_fit(fitted_on: Corpus, corpora: Sequence[Corpus], scored_below: float) -> int | None:
    """How many documents that a run over `corpora` scores are also in the train split of the one on which its
    representation was fitted, byte for byte. None where that is too much text to read, or far away."""
    may_be_seen = lambda key: key_is_held_out(key, scored_below) and not key_is_held_out(key, fitted_on.test_fraction)
    others = [corpus for corpus in corpora if corpus.test_fraction > fitted_on.test_fraction]
    if not others:
        return 0
    held_out, train = held_out_documents(others), fitted_on.documents("train")
    size_bytes = sum(part.num_bytes for part in [*held_out.parts, train])
    if size_bytes > MAX_COMPARED_BYTES or any(is_remote(corpus.folder) for corpus in corpora):
        return None
    numbered = ((part, number) for part in held_out.parts for number in range(len(part)))
    scored = {digest(part[number]) for part, number in numbered if may_be_seen(part.key(number))}
    trained = (digest(train[number]) for number in _numbers_below(fitted_on, scored_below)) if scored else ()
    return len(scored.intersection(trained))


def _numbers_below(corpus: Corpus, place: float) -> Iterator[int]:
    """Of the documents of a train split that have a place below this, of which alone the text is read where they are
    sorted."""
    documents, first = corpus.documents("train"), 0
    for text in corpus.texts_of("train"):
        for number in range(first, first + text.num_documents):
            if key_is_held_out(documents.key(number), place):
                yield number
            elif corpus.is_sorted:
                break
        first += text.num_documents


def digest(document: bytes) -> bytes:
    """What stands for a document where copies are looked for."""
    return hashlib.blake2b(document, digest_size=16).digest()


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
