"""Splits that others have published: as they are, several in one corpus, and no document in two of them."""

import numpy as np
import pytest

from data.held_out import held_out_documents, run_sources, tuning_documents
from data.store import Corpus
from tokenizer_lab.errors import UserError


@pytest.fixture
def published(ingest_from, write_files, jsonl, tmp_path):
    """A corpus of three splits, as WikiText-2 has them."""
    write_files(
        tmp_path,
        {
            "train.jsonl": jsonl(*(f"train {number}" for number in range(100))),
            "valid.jsonl": jsonl(*(f"valid {number}" for number in range(10))),
            "test.jsonl": jsonl(*(f"test {number}" for number in range(12))),
        },
    )
    for split in ("train", "valid", "test"):
        result = ingest_from(tmp_path, f"{split}.jsonl", split=split, test_fraction=1 / 16)
        assert result.changed and "warning" not in str(result)
    return tmp_path


def test_each_document_is_in_the_split_it_was_given(published, stored, ingest_from):
    for split, count in (("train", 100), ("valid", 10), ("test", 12)):
        assert sorted(stored(published, split)) == sorted(f"{split} {number}".encode() for number in range(count))
    corpus = Corpus.open(published / "corpus")
    assert corpus.test_fraction == 0 and corpus.splits == {"train", "valid", "test"}
    assert not ingest_from(published, "test.jsonl", split="test").changed


def test_a_document_in_two_splits_is_refused(published, ingest_from, write_files, jsonl, everything):
    write_files(published, {"more.jsonl": jsonl("new", "train 7"), "both.jsonl": jsonl("test 3", "other")})
    before = everything(published / "corpus")
    for name, split, message in (
        (
            "more.jsonl",
            "test",
            r"in test \(domain more\) and also in train \(domain text\), .* SHA-256 begins with [0-9a-f]{32}",
        ),
        ("both.jsonl", "train", r"in test \(domain text\) and also in train \(domain both\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            ingest_from(published, name, split=split, domain=name.partition(".")[0])
        assert "\n" not in str(caught.value)
    assert everything(published / "corpus") == before
    ingest_from(published, "both.jsonl", split="train", domain="both", drop_duplicates="exact")
    assert [
        text.num_documents for text in Corpus.open(published / "corpus").manifest.texts if text.domain == "both"
    ] == [1]


def test_the_same_split_with_other_text(published, ingest_from, write_files, jsonl):
    write_files(published, {"other.jsonl": jsonl("another test text")})
    with pytest.raises(UserError, match="already has other documents under domain 'text'"):
        ingest_from(published, "other.jsonl", split="test")


def test_splits_by_hash_and_given_ones_are_two_corpora(published, ingest_from):
    with pytest.raises(
        UserError, match="has published splits, by --split, .*; give their --split too, or choose another"
    ):
        ingest_from(published, "test.jsonl", domain="new", test_fraction=1 / 16)


def test_valid_is_what_a_run_is_tuned_on_and_test_what_is_reported(published):
    corpus = Corpus.open(published / "corpus")
    tuned_on, reported = tuning_documents([corpus], 0.0), held_out_documents([corpus], 0.0)
    assert {tuned_on[number][:5] for number in range(len(tuned_on))} == {b"valid"} and len(tuned_on) == 10
    assert {reported[number][:4] for number in range(len(reported))} == {b"test"} and len(reported) == 12
    assert len(held_out_documents([corpus], 0.0, "valid")) == 10
    [source] = run_sources([corpus], [1.0], 0.0)
    assert len(source.documents) == 100 and source.trained_from == 0


def test_a_corpus_without_held_out_text(ingest_from, write_files, jsonl, tmp_path):
    write_files(tmp_path, {"a.jsonl": jsonl("a", "b")})
    ingest_from(tmp_path, "a.jsonl", split="train")
    corpus = Corpus.open(tmp_path / "corpus")
    assert tuning_documents([corpus], 0.0) is None
    with pytest.raises(
        UserError, match="no test documents in .*; score another text, .* --corpus OTHER --whole-corpus"
    ):
        held_out_documents([corpus])


def test_with_a_corpus_split_by_hash_nothing_that_it_holds_out_is_trained_on(published, ingest_from, tmp_path):
    corpus = Corpus.open(published / "corpus")
    [source] = run_sources([corpus], [1.0], 0.25)
    assert source.trained_from == 0.25 and np.isclose(source.weight, 1 / 0.75)


def test_enwik8_as_it_is_usually_cut(ingest_from, write_files, tmp_path):
    """The first 90 % of one long text for training, then 5 % each, here of a small one."""
    text = b"".join(b"<page>%d\n  some text\n</page>\n\n" % number for number in range(900))
    ends = len(text) * 90 // 100, len(text) * 95 // 100
    parts = {"train": text[: ends[0]], "valid": text[ends[0] : ends[1]], "test": text[ends[1] :]}
    write_files(tmp_path, {f"{split}.txt": part for split, part in parts.items()})
    for split in parts:
        ingest_from(tmp_path, f"{split}.txt", split=split, read_as="text", max_part_bytes=1000)
    corpus = Corpus.open(tmp_path / "corpus")
    for split, part in parts.items():
        documents = corpus.documents(split)
        assert b"".join(documents[number] for number in range(len(documents))) == part
