"""The corpus store: what goes in comes out, in any order, from any thread; and it is whole or it is not there."""

import errno
import json
import pathlib
import pickle
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import grain
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import example, given, settings, strategies as st

import data.store
from data import corpus_writer
from data.corpus_writer import write_corpus
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import sha256_of_parts

DOCUMENTS = [b"one", b"", b"\xff\x00 not UTF-8", b"three " * 1000]


def write(folder, documents=DOCUMENTS, domain="text", split="train", test_fraction=0.5, **options):
    with write_corpus(pathlib.Path(folder), test_fraction, **options) as writer:
        for document in documents:
            writer.add(domain, split, document)
        return writer.commit()


def everything(folder):
    """File name -> content, hidden files included."""
    return {path.relative_to(folder): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


def edit_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def hash_of(documents, split="train", domain="text"):
    return sha256_of_parts([domain.encode(), split.encode(), sha256_of_parts(documents).encode()])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["train", "test"]), st.binary(max_size=200)),
        min_size=1,
        max_size=30,
    ),
    st.integers(0, 300),
)
@example([("a", "train", b"")], 0)
def test_round_trip(documents, shard_bytes):
    with tempfile.TemporaryDirectory() as folder:
        with write_corpus(pathlib.Path(folder), 0.5, shard_bytes) as writer:
            for document in documents:
                writer.add(*document)
            assert writer.commit()
        corpus = Corpus.open(folder)
        assert corpus.num_documents == len(documents)
        assert corpus.num_bytes == sum(len(content) for _, _, content in documents)
        assert corpus.domains == tuple(sorted({domain for domain, _, _ in documents}))
        hash_parts = []
        for domain in corpus.domains:
            for split in ("test", "train"):
                contents = [x for d, s, x in documents if (d, s) == (domain, split)]
                hash_parts += [domain.encode(), split.encode(), sha256_of_parts(contents).encode()] if contents else []
        assert corpus.content_hash == sha256_of_parts(hash_parts)
        for split in {split for _, split, _ in documents}:
            expected = sorted(
                [(domain, content) for domain, s, content in documents if s == split], key=lambda pair: pair[0]
            )
            stored = corpus.documents(split)
            assert [(stored.domain(i), stored[i]) for i in range(len(stored))] == expected
            assert stored.num_bytes == sum(len(content) for _, content in expected)


def test_content_hash_is_over_documents_and_not_over_shards(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "many", shard_bytes=1)
    one, many = Corpus.open(tmp_path / "one"), Corpus.open(tmp_path / "many")
    assert (len(one.shards), len(many.shards)) == (1, 4)
    assert one.content_hash == many.content_hash == one.documents("train").content_hash == hash_of(DOCUMENTS)
    write(tmp_path / "border", documents=[b"on", b"e", *DOCUMENTS[1:]])
    assert Corpus.open(tmp_path / "border").content_hash != one.content_hash


def test_a_shard_ends_before_it_gets_too_large(tmp_path):
    write(tmp_path, documents=[b"12345", b"12345", b"1", b"123456789012"], shard_bytes=10)
    assert [(shard.num_documents, shard.num_bytes) for shard in Corpus.open(tmp_path).shards] == [
        (2, 10),
        (1, 1),
        (1, 12),
    ]


def test_documents_are_a_pickled_grain_source_for_many_threads(tmp_path):
    contents = [random.Random(i).randbytes(i) for i in range(300)]
    write(tmp_path, documents=contents, shard_bytes=3000)
    documents = pickle.loads(pickle.dumps(Corpus.open(tmp_path).documents("train")))
    assert documents.content_hash == hash_of(contents)
    order = random.Random(0).choices(range(300), k=3000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(documents.__getitem__, order)) == [contents[i] for i in order]
    assert list(grain.MapDataset.source(documents).shuffle(seed=0)) != contents
    assert sorted(grain.MapDataset.source(documents).shuffle(seed=0)) == sorted(contents)


def test_threads_that_ask_at_once_open_a_shard_once(tmp_path, monkeypatch):
    write(tmp_path)
    opened, open_reader = [], data.store._open_reader

    def slowly(*arguments):
        opened.append(arguments[0])
        time.sleep(0.05)
        return open_reader(*arguments)

    monkeypatch.setattr(data.store, "_open_reader", slowly)
    documents = Corpus.open(tmp_path).documents("train")
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(documents.__getitem__, [0, 1, 2, 3] * 2)) == DOCUMENTS * 2
    assert len(opened) == 1


@pytest.mark.parametrize("index", [-1, 4])
def test_index_out_of_range(tmp_path, index):
    write(tmp_path)
    with pytest.raises(IndexError, match=f"document {index} of 4"):
        Corpus.open(tmp_path).documents("train")[index]


def test_domains_can_be_added_in_any_order(tmp_path):
    for name, domains in (("ab", "ab"), ("ba", "ba")):
        for domain in domains:
            assert write(tmp_path / name, documents=[domain.encode()], domain=domain)
    assert everything(tmp_path / "ab") == everything(tmp_path / "ba")
    assert list(Corpus.open(tmp_path / "ab").documents("train")) == [b"a", b"b"]


def test_the_same_domain_again(tmp_path):
    write(tmp_path, shard_bytes=1)
    before = everything(tmp_path)
    assert not write(tmp_path)
    assert everything(tmp_path) == before
    with pytest.raises(
        UserError, match=r"other documents under domain 'text': 4 documents of 6015 bytes there, 3 documents .* given"
    ):
        write(tmp_path, documents=DOCUMENTS[:3])
    with pytest.raises(UserError, match="other documents"):
        write(tmp_path, split="test")
    assert everything(tmp_path) == before


def test_one_holdout_for_a_corpus(tmp_path):
    write(tmp_path, test_fraction=0.25)
    with pytest.raises(UserError, match="holds out 0.25 of its documents, not 0.5; use --test-fraction 0.25"):
        write(tmp_path, domain="more", test_fraction=0.5)


def test_a_split_without_documents(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="no test documents; ingest more"):
        Corpus.open(tmp_path).documents("test")


def test_a_folder_that_is_no_corpus(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="is not a corpus: it has no manifest.json; make one with `toklab ingest"):
            Corpus.open(folder)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="not a corpus and not empty"):
        write(tmp_path)
    assert everything(tmp_path) == {pathlib.Path("letter.txt"): b"mine"}


def test_a_missing_shard(tmp_path):
    write(tmp_path)
    (tmp_path / "text-train-00000.array_record").unlink()
    with pytest.raises(UserError, match="text-train-00000.array_record is missing"):
        Corpus.open(tmp_path)


def test_a_truncated_shard(tmp_path):
    write(tmp_path)
    path = tmp_path / "text-train-00000.array_record"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"has {len(content) - 1} bytes, the manifest says {len(content)}"):
        Corpus.open(tmp_path)
    path.write_bytes(bytes(len(content)))
    with pytest.raises(
        UserError, match="text-train-00000.array_record is damaged: 0 documents can be found, 4 should be there"
    ):
        Corpus.open(tmp_path).documents("train")[0]


def test_a_flipped_byte_is_found_or_harmless(tmp_path):
    contents = [random.Random(i).randbytes(3000) for i in range(50)]
    write(tmp_path, documents=contents)
    path = tmp_path / "text-train-00000.array_record"
    whole = path.read_bytes()
    num_found = 0
    for offset in random.Random(0).sample(range(len(whole)), 150):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        documents = Corpus.open(tmp_path).documents("train")
        for record, content in enumerate(contents):
            try:
                assert documents[record] == content
            except UserError as error:
                num_found += 1
                assert "text-train-00000.array_record" in str(error) and "is damaged" in str(error)
                assert f"record {record}, " in str(error) or "documents can be found" in str(error)
    assert num_found > 50  # the rest is padding


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(data.store.epath.Path(tmp_path)), "exists", fail)
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Permission denied; check its permissions"):
        Corpus.open(tmp_path)


def test_too_many_open_files(tmp_path, monkeypatch):
    write(tmp_path)
    documents = Corpus.open(tmp_path).documents("train")

    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(type(documents._folder), "open", fail)
    with pytest.raises(UserError, match="Too many open files; allow more open files with `ulimit -n`"):
        documents[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(format="tokenizer-lab corpus 1"),
            "format 'tokenizer-lab corpus 1', this version reads 'tokenizer-lab corpus 2'",
        ),
        (lambda m: m.update(num_bytes=5), "contradict each other"),
        (lambda m: m.update(content_hash="0" * 64), "contradict each other"),
        (lambda m: m.update(shards=[]), "contradict each other"),
        (lambda m: m.update(shards=None), "damaged or was changed"),
        (lambda m: m.pop("holdout"), "damaged or was changed"),
        (lambda m: m["holdout"].update(test_fraction=float("nan")), "contradict each other"),
        (lambda m: m["holdout"].update(test_fraction=10**400), "damaged or was changed"),
        (lambda m: m["shards"][0].update(file="../text-train-00000.array_record"), "not a plain name"),
        (lambda m: m["shards"][0].update(domain="../x"), "not a plain name"),
        (lambda m: m["shards"][0].update(split="dev"), "not train or test"),
        (lambda m: m["shards"][0].update(num_documents=10**12), "not 1000000000000 documents"),
        (lambda m: m["shards"][0].update(num_documents=-1), "not -1 documents"),
        (lambda m: m["shards"][0].update(num_bytes=2**70), "not 4 documents"),
        (lambda m: m["shards"][0].update(num_documents=True), "not described by"),
        (lambda m: m["shards"][0].update(extra=1), "not described by"),
        (lambda m: m["shards"].append(3), "not described by"),
    ],
)
def test_a_manifest_of_a_stranger(tmp_path, change, message):
    write(tmp_path)
    edit_manifest(tmp_path, change)
    with pytest.raises(UserError, match=message):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}', "null", "[" * 100_000])
def test_a_manifest_that_is_garbage(tmp_path, content):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest.json"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_without_commit_nothing_changes(tmp_path, error):
    def interrupted(folder):
        with write_corpus(folder, 0.5) as writer:
            writer.add("more", "train", b"x")
            raise error("stop")

    with pytest.raises(error):
        interrupted(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write(tmp_path / "old")
    before = everything(tmp_path / "old")
    with pytest.raises(error):
        interrupted(tmp_path / "old")
    assert everything(tmp_path / "old") == before


KILLED_AT_A_RENAME = """
import os, pathlib, sys
from data.corpus_writer import write_corpus
real, count = pathlib.Path.rename, int(sys.argv[2])
def rename(self, target):
    global count
    if count == 0:
        os.kill(os.getpid(), 9)
    count -= 1
    return real(self, target)
pathlib.Path.rename = rename
with write_corpus(pathlib.Path(sys.argv[1]), 0.5, 1) as writer:
    for document in (b"first", b"second"):
        writer.add("killed", "train", document)
    writer.commit()
"""


@pytest.mark.parametrize("num_renames", [0, 1, 2])
@pytest.mark.parametrize("old", [True, False])
def test_killed_between_two_renames(tmp_path, num_renames, old):
    if old:
        write(tmp_path)
    before = everything(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_AT_A_RENAME), str(tmp_path), str(num_renames)]
    )
    assert killed.returncode == -9
    assert len(list(tmp_path.glob("killed-*"))) == num_renames  # so this was a test
    if old:
        assert list(Corpus.open(tmp_path).documents("train")) == DOCUMENTS
        assert not write(tmp_path)
        assert everything(tmp_path) == before
    else:
        with pytest.raises(UserError, match="the ingest into it was cut off"):
            Corpus.open(tmp_path)
        assert write(tmp_path, documents=[b"new"])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "text-train-00000.array_record"]


def test_two_writers(tmp_path):
    folder = tmp_path / "corpus"
    with write_corpus(folder, 0.5) as writer:
        writer.add("text", "train", b"first")
        with pytest.raises(UserError, match="another ingest is writing into .*; wait"):
            write(folder)
        writer.commit()
    assert list(Corpus.open(folder).documents("train")) == [b"first"]
    assert write(folder, domain="second")


def test_a_writer_that_ends_while_another_begins(tmp_path, monkeypatch):
    """The other then has locked a file that is no longer there, which keeps nobody out."""

    def flock(file, how):
        pathlib.Path(file.name).unlink()

    monkeypatch.setattr(corpus_writer.fcntl, "flock", flock)
    with pytest.raises(UserError, match="another ingest is writing"):
        write(tmp_path)


def test_disk_full(tmp_path, monkeypatch):
    write(tmp_path)
    before = everything(tmp_path)
    monkeypatch.setattr(corpus_writer, "ArrayRecordWriter", lambda _, options: ArrayRecordWriter("/dev/full", options))
    for documents in ([b"small"], [b"large" * 1000] * 5000):
        with pytest.raises(UserError, match=f"cannot write {tmp_path}: No space left on device; free some space"):
            write(tmp_path, documents=documents, domain="more")
        assert everything(tmp_path) == before
    assert not write(tmp_path)  # what is there already needs no space


def test_disk_full_at_the_manifest(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus_writer, "write_manifest", fail)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        write(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(UserError, match="cannot write"):
            write(folder)


@pytest.mark.parametrize("domain", ["", "a/b", "..", "-x", "x" * 120])
def test_a_domain_must_be_a_plain_name(tmp_path, domain):
    with pytest.raises(UserError, match="not a plain name"):
        write(tmp_path / "corpus", domain=domain)
    assert not (tmp_path / "corpus").exists()
