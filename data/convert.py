"""A corpus as the source of another one: `toklab ingest OLD --out NEW` makes one of the format that is written now of
one of an earlier format, with the same documents, domains and splits."""

import dataclasses
import os
from collections.abc import Iterator

from etils import epath

from data.ingest_options import IngestOptions
from data.manifest import MANIFEST, Rule, Split
from data.reading import Document, Portion
from data.shards import WHOLE
from data.split import is_held_out
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import remote_errors

_DOCUMENTS_TOGETHER = 256


@dataclasses.dataclass(frozen=True)
class CorpusUnit:
    """The documents of a shard, which one worker reads at a time: `first` to `end - 1` of a split.

    Attributes:
      fingerprint: another one means that there is something else to read.
      test_fraction: of the corpus.
    """

    folder: str
    file: str
    split: Split
    rule: Rule
    first: int
    end: int
    num_bytes: int
    fingerprint: str
    test_fraction: float

    @property
    def name(self) -> str:
        """No other unit of an ingest has it."""
        return f"{self.folder}/{self.file}"

    def portions(self) -> Iterator[Portion]:
        """Yields all documents. Raises UserError, also for those that the hash rule would put into another split."""
        documents = Corpus.open(self.folder).documents(self.split)
        for start in range(self.first, self.end, _DOCUMENTS_TOGETHER):
            numbers = range(start, min(start + _DOCUMENTS_TOGETHER, self.end))
            made = []
            for number, text in zip(numbers, documents.read_many(numbers)):
                part = documents.part(number)
                if self.rule == "given":
                    split = self.split
                elif part != WHOLE or is_held_out(text, self.test_fraction) == (self.split == "test"):
                    split = None
                else:
                    raise UserError(
                        f"{documents.place(number)} is in split {self.split}, where its hash does not put it; ingest"
                        " the text again, each split by --split"
                    )
                whole = None if part == WHOLE else (documents.key(number), part)
                made.append(Document(documents.domain(number), split, text, whole))
            yield Portion(made, sum(len(document.text) for document in made), {"records": len(made)}, [])


def corpus_to_convert(options: IngestOptions) -> Corpus | None:
    """The corpus that is the source. Raises UserError where there are others beside it."""
    corpora = [source for source in options.sources if _is_corpus(source)]
    if corpora and len(options.sources) > 1:
        raise UserError(f"{corpora[0]} is a corpus, which is read alone; ingest the other sources by another command")
    return Corpus.open(corpora[0]) if corpora else None


def _is_corpus(source: str) -> bool:
    if not (os.path.isdir(source) or source.startswith(("gs://", "s3://"))):
        return False
    with remote_errors(source):
        path = epath.Path(source) / MANIFEST
        return path.exists() and b'"tokenizer-lab corpus ' in path.read_bytes()[:100]


def units_of(corpus: Corpus) -> list[CorpusUnit]:
    """The shards of a corpus, in order."""
    units, firsts = [], dict[str, int]()
    for text in corpus.manifest.texts:
        for shard in text.shards:
            first = firsts.get(text.split, 0)
            firsts[text.split] = first + shard.num_documents
            units.append(
                CorpusUnit(
                    folder=os.fspath(corpus.folder),
                    file=shard.file,
                    split=text.split,
                    rule=text.rule,
                    first=first,
                    end=firsts[text.split],
                    num_bytes=shard.num_bytes,
                    fingerprint=f"{corpus.content_hash} {shard.content_hash}",
                    test_fraction=corpus.test_fraction,
                )
            )
    return units
