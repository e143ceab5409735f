"""Corpora far larger than these tests' others, as far as seconds go."""

import concurrent.futures
import itertools
import os
import random
import resource

import pytest

from data import manifest as manifests
from data.corpus_writer import write_corpus
from data.manifest import Shard, make_manifest, read_manifest, write_manifest
from data.store import Corpus, max_open_readers
from tokenizer_lab.errors import UserError


def many_shards(count):
    return tuple(
        Shard(
            file=f"text-train-{number:05d}.array_record",
            domain="text",
            split="train",
            num_documents=1000,
            num_bytes=1 << 28,
            file_bytes=1 << 27,
            content_hash="ab" * 32,
        )
        for number in range(count)
    )


@pytest.mark.parametrize("count", [300_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_manifest_of_very_many_shards_is_read_as_it_was_written(count, tmp_path):
    shards = many_shards(count)
    write_manifest(tmp_path / "manifest.json", manifest := make_manifest(shards, 0.0))
    assert (tmp_path / "manifest.json").stat().st_size > 64 << 20, "more than other JSON files may have"
    assert read_manifest(tmp_path / "manifest.json") == (manifest, shards)


def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_MANIFEST_BYTES", 10_000)
    with pytest.raises(UserError, match="for 100 shards, and 10,000 can be read; divide the text among several"):
        write_manifest(tmp_path / "manifest.json", make_manifest(many_shards(100), 0.0))
    assert not (tmp_path / "manifest.json").exists()
    write_manifest(tmp_path / "manifest.json", make_manifest(many_shards(20), 0.0))
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
    assert len(Corpus.open(tmp_path / "corpus").shards) == count
    order = random.Random(0).sample(range(count), count)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(documents.__getitem__, itertools.chain(order, order)))
    assert found == [b"%d" % number for number in order] * 2
    assert len(documents._readers) <= max_open_readers() < few_files / 3
