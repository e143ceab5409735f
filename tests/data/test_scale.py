"""Corpora far larger than these tests' others, as far as seconds go."""

import concurrent.futures
import itertools
import os
import random
import resource

import pytest

from data import manifest as manifests
from data.corpus_writer import write_corpus
from data.manifest import Manifest, Shard, StoredText, read_manifest, shard_file, write_manifest
from data.store import Corpus, Documents
from tokenizer_lab.errors import UserError


def many_shards(count):
    shards = tuple(
        Shard(
            file=shard_file("text", "train", number, "0123abcd"),
            domain="text",
            split="train",
            num_documents=1000,
            num_bytes=1 << 28,
            file_bytes=1 << 27,
            content_hash="ab" * 32,
        )
        for number in range(count)
    )
    text = StoredText(
        domain="text",
        split="train",
        rule="hash",
        name="0123abcd",
        unit_documents=8,
        num_parts=0,
        content_hash="cd" * 32,
        shards=shards,
    )
    return Manifest(0.0, {"train": 8}, (text,))


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_manifest_of_very_many_shards_is_read_as_it_was_written(count, tmp_path):
    write_manifest(tmp_path / "manifest.json", (manifest := many_shards(count)).to_json())
    assert (tmp_path / "manifest.json").stat().st_size < 120 * count
    assert read_manifest(tmp_path / "manifest.json") == manifest


def test_of_very_many_shards_a_document_is_found_with_two_reads(tmp_path, monkeypatch):
    manifest = many_shards(37_000)
    documents = Documents(tmp_path, manifest.texts, 8, "ingest it again")
    assert len(documents) == 37_000_000 and documents.place(36_999_999).endswith("document 999,")
    with pytest.raises(UserError, match="cannot read .*/text/train-36999-0123abcd.zst: No such file"):
        documents[36_999_999]


def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 5_000)
    with pytest.raises(UserError, match="for 100 shards, and 5,000 can be read; divide the text among several"):
        write_manifest(tmp_path / "manifest.json", many_shards(100).to_json())
    assert not (tmp_path / "manifest.json").exists()
    write_manifest(tmp_path / "manifest.json", many_shards(20).to_json())
    read_manifest(tmp_path / "manifest.json")


@pytest.fixture
def few_files():
    """How many files this process may open: some more than are open already."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 32
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


def test_a_corpus_of_more_shards_than_files_may_be_open_is_read_by_many_threads(few_files, tmp_path):
    count = 3 * few_files
    with write_corpus(tmp_path / "corpus", 0.0, shard_bytes=1) as writer:
        for number in range(count):
            writer.add("text", "train", b"%d" % number)
        writer.commit()
    documents = Corpus.open(tmp_path / "corpus").documents("train")
    assert len(Corpus.open(tmp_path / "corpus").shards) > 2.9 * few_files  # some are in one bucket
    texts = list(documents)
    assert sorted(texts) == sorted(b"%d" % number for number in range(count))
    order = random.Random(0).sample(range(count), count)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(documents.__getitem__, itertools.chain(order, order)))
    assert found == [texts[number] for number in order] * 2
    assert len(os.listdir("/proc/self/fd")) < few_files / 2 + 32
