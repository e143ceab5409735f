"""A corpus of an earlier format, or any other, becomes one of the format that is written now."""

import pathlib

import pytest

from data.corpus_writer import Sizes, write_corpus
from data.ingest import ingest
from data.ingest_options import IngestOptions
from data.local_engine import LocalEngine
from data.manifest import FORMAT
from data.split import document_key
from data.store import Corpus
from tokenizer_lab.errors import UserError

OLD = pathlib.Path(__file__).parents[1] / "fixtures" / "commit_9e6ecbd" / "corpus"


def texts(folder):
    """Of each split, its documents with their domains, in order."""
    corpus = Corpus.open(folder)
    splits = {split: corpus.documents(split) for split in sorted(corpus.splits)}
    return {
        split: [(documents.domain(n), documents[n], documents.part(n)) for n in range(len(documents))]
        for split, documents in splits.items()
    }


def test_a_corpus_of_an_earlier_format_is_converted_with_its_domains_and_splits(tmp_path):
    old = Corpus.open(OLD)
    assert old.manifest.format != FORMAT and old.test_fraction != 1 / 16
    result = ingest(IngestOptions(sources=(str(OLD),), out=tmp_path / "new"), sizes=Sizes(task=1000, shard=2000))
    new = Corpus.open(tmp_path / "new")
    assert (new.manifest.format, new.test_fraction) == (FORMAT, old.test_fraction)
    assert result.num_documents == {text.text: text.num_documents for text in old.manifest.texts}
    in_order = lambda document: (document[0], document_key(document[1]))
    assert texts(tmp_path / "new") == {split: sorted(of, key=in_order) for split, of in texts(OLD).items()}
    with pytest.raises(UserError, match="is of a format that is only read now; make a new one of it, toklab ingest"):
        ingest(IngestOptions(sources=("embedded",), out=OLD, test_fraction=old.test_fraction))


@pytest.mark.parametrize("split", [None, "valid"])
def test_a_corpus_is_the_same_when_it_is_made_of_itself(tmp_path, everything, split):
    (tmp_path / "long.txt").write_bytes(b"".join(b"line %d\n" % number for number in range(20_000)))
    options = IngestOptions(
        sources=(str(tmp_path / "long.txt"),), out=tmp_path / "one", split=split, max_part_bytes=1 << 16
    )
    ingest(options, engine=LocalEngine())
    ingest(IngestOptions(sources=(str(tmp_path / "one"),), out=tmp_path / "other"))
    assert everything(tmp_path / "one") == everything(tmp_path / "other")
    [documents] = texts(tmp_path / "one").values()
    assert [part for _, _, part in documents] == list(range(len(documents))) and len(documents) > 3


def test_splits_that_are_not_by_hash_are_refused(tmp_path):
    with write_corpus(tmp_path / "corpus", 0.0) as writer:
        writer.add("text", "test", b"which the rule would not hold out")
        writer.commit()
    with pytest.raises(
        UserError, match="document 0, is in split test, where its hash does not put it; ingest the text"
    ):
        ingest(IngestOptions(sources=(str(tmp_path / "corpus"),), out=tmp_path / "new"))
    with pytest.raises(UserError, match="is a corpus, which is read alone"):
        ingest(IngestOptions(sources=(str(tmp_path / "corpus"), "embedded"), out=tmp_path / "new"))
