"""Who writes a corpus: all of it or nothing, one at a time, and a line where it cannot be."""

import errno
import pathlib
import subprocess
import sys
import textwrap

import pytest

from data import corpus_writer, storage
from data.corpus_writer import write_corpus
from data.split import document_key
from data.store import Corpus
from tokenizer_lab.errors import UserError


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_without_commit_nothing_changes(write, everything, tmp_path, error):
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
from etils import epath
from data.corpus_writer import write_corpus
Path = type(epath.Path("/"))
real, count = Path.replace, int(sys.argv[2])
def replace(self, target):
    global count
    if count == 0:
        os.kill(os.getpid(), 9)
    count -= 1
    return real(self, target)
Path.replace = replace
with write_corpus(pathlib.Path(sys.argv[1]), 0.5, 1) as writer:
    for document in (b"first", b"second"):
        writer.add("killed", "train", document)
    writer.commit()
"""


@pytest.mark.parametrize("num_renames", [1, 3, 6])
@pytest.mark.parametrize("old", [True, False])
def test_killed_between_two_renames(write, everything, four_documents, tmp_path, num_renames, old):
    """A run, what may be written, a shard, its note, a shard, its note, the manifest."""
    if old:
        write(tmp_path)
    before = everything(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_AT_A_RENAME), str(tmp_path), str(num_renames)]
    )
    assert killed.returncode == -9
    assert len(list((tmp_path / "killed").glob("[!.]*"))) == num_renames // 3  # so this was a test
    if old:
        assert list(Corpus.open(tmp_path).documents("train")) == sorted(four_documents, key=document_key)
        assert not write(tmp_path)
        assert everything(tmp_path) == before
    else:
        with pytest.raises(UserError, match="the ingest into it was cut off"):
            Corpus.open(tmp_path)
        assert write(tmp_path, documents=[b"new"])
        assert {path.parts[0] for path in everything(tmp_path)} == {"manifest.json", "text"}


def test_two_writers(write, tmp_path):
    folder = tmp_path / "corpus"
    with write_corpus(folder, 0.5) as writer:
        writer.add("text", "train", b"first")
        with pytest.raises(UserError, match="another ingest is writing into .*; wait"):
            write(folder)
        writer.commit()
    assert list(Corpus.open(folder).documents("train")) == [b"first"]
    assert write(folder, domain="second")


def test_a_writer_that_ends_while_another_begins(write, tmp_path, monkeypatch):
    """The other then has locked a file that is no longer there, which keeps nobody out."""

    def flock(file, how):
        pathlib.Path(file.name).unlink()

    monkeypatch.setattr(corpus_writer.fcntl, "flock", flock)
    with pytest.raises(UserError, match="another ingest is writing"):
        write(tmp_path)


def test_disk_full(write, everything, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path)
    before = everything(tmp_path)
    monkeypatch.setattr(storage.os, "fsync", fail)
    for documents in ([b"small"], [b"large" * 1000] * 5000):
        with pytest.raises(UserError, match=f"cannot write {tmp_path}: No space left on device; free some space"):
            write(tmp_path, documents=documents, domain="more")
        assert everything(tmp_path) == before
    assert not write(tmp_path)  # what is there already needs no space


def test_disk_full_at_the_manifest(write, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus_writer, "write_manifest", fail)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        write(tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_a_file_is_in_the_way(write, tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(UserError, match="cannot write"):
            write(folder)


@pytest.mark.parametrize("domain", ["", "a/b", "..", "-x", "x" * 129])
def test_a_domain_must_be_a_plain_name(write, tmp_path, domain):
    with pytest.raises(UserError, match="not a plain name"):
        write(tmp_path / "corpus", domain=domain)
    assert not (tmp_path / "corpus").exists()
