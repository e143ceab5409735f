"""A sample to learn from: documents of the train split by their hashes, whatever store they are in."""

import pathlib

import pytest

from data.sample import Sample
from data.split import document_key
from data.store import Corpus

OLD = pathlib.Path(__file__).parents[1] / "fixtures" / "commit_9e6ecbd" / "corpus"


@pytest.fixture
def corpora(ingest_from, write_files, jsonl, tmp_path):
    """The same 400 documents, in two domains and held out in part; and as published train splits."""
    for name in ("a", "b"):
        write_files(tmp_path, {f"{name}.jsonl": jsonl(*(f"{name} {number} " + "x" * 90 for number in range(200)))})
        ingest_from(tmp_path, f"{name}.jsonl", domain=name, test_fraction=0.25)
    (tmp_path / "corpus").rename(tmp_path / "by_hash")
    for name in ("a", "b"):
        ingest_from(tmp_path, f"{name}.jsonl", domain=name, split="train")
    return Corpus.open(tmp_path / "by_hash"), Corpus.open(tmp_path / "corpus")


@pytest.mark.parametrize("given", [False, True])
def test_a_sample_is_what_has_the_lowest_hashes(corpora, given):
    corpus = corpora[given]
    documents = corpus.documents("train")
    every, wanted = list(documents), documents.num_bytes // 4
    sample = list(Sample(corpus, wanted).read())
    assert 0.7 * wanted < sum(map(len, sample)) < 1.3 * wanted
    assert sorted(sample, key=document_key) == sorted(every, key=document_key)[: len(sample)]
    assert {text[:1] for text in sample} == {b"a", b"b"}
    larger = list(Sample(corpus, 2 * wanted).read())
    assert set(sample) < set(larger)


def test_all_of_a_small_corpus_is_read(corpora):
    documents = corpora[0].documents("train")
    sample, told = Sample(corpora[0], documents.num_bytes), []
    assert sample.is_all and list(sample.read(lambda *progress: told.append(progress))) == list(documents)
    assert told[-1] == (documents.num_bytes, documents.num_bytes) and told == sorted(told)


def test_no_more_is_read_than_the_sample(corpora, monkeypatch):
    corpus = corpora[0]
    read = []
    get = type(corpus.documents("train")).__getitem__
    monkeypatch.setattr(
        type(corpus.documents("train")), "__getitem__", lambda self, index: read.append(index) or get(self, index)
    )
    num_sampled = len(list(Sample(corpus, 2000).read()))
    assert len(read) == num_sampled < 40


def test_a_corpus_of_the_old_format_is_gone_through():
    """Its documents are not sorted: their hashes say which are in the sample."""
    corpus = Corpus.open(OLD)
    documents = corpus.documents("train")
    told, wanted = [], documents.num_bytes // 2
    sample = list(Sample(corpus, wanted).read(lambda *progress: told.append(progress)))
    every = sorted({document_key(document) for document in documents})
    keys = sorted({document_key(document) for document in sample})
    assert 0 < len(sample) < len(documents) and keys == every[: len(keys)]
    assert told[-1] == (documents.num_bytes, documents.num_bytes)
