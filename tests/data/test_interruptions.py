"""An ingest that is cut off, wherever that is, leaves a store as it was; and the same command goes on."""

import dataclasses
import errno
import os
import random
import shutil

import pytest

from data import storage
from data.corpus_writer import Sizes
from data.ingest import ingest
from data.ingest_options import IngestOptions
from data.merge import Merge
from data.process_engine import ProcessEngine
from data.reading import read_portions
from data.store import Corpus
from tokenizer_lab import files
from tokenizer_lab.errors import UserError

SIZES = Sizes(task=1, run=400, merge=400, shard=300)


@pytest.fixture
def options(tmp_path, write_files) -> IngestOptions:
    """Five files, of which each is a task, and a run or two."""
    lines = lambda number: b"".join(b"file %d line %d|" % (number, line) for line in range(10 * number + 10))
    write_files(tmp_path, {f"in/{number}.txt": lines(number) for number in range(5)})
    ingest(IngestOptions(sources=(str(tmp_path / "in" / "0.txt"),), out=tmp_path / "old", domain="old"))
    return IngestOptions(sources=(str(tmp_path / "in"),), out=tmp_path / "corpus", separator="|")


@pytest.fixture
def whole(tmp_path, options, everything):
    """What the ingest makes without interruption, beside the domain that was there."""
    shutil.copytree(tmp_path / "old", tmp_path / "whole")
    ingest(dataclasses.replace(options, out=tmp_path / "whole"), sizes=SIZES)
    return everything(tmp_path / "whole")


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_again_and_again(interrupted, tmp_path, options, whole, everything, monkeypatch, seed):
    shutil.copytree(tmp_path / "old", tmp_path / "corpus")
    made, make_shard = [], Merge._make
    monkeypatch.setattr(Merge, "_make", lambda self, *task: made.append(task[1]) or make_shard(self, *task))
    num_interruptions = 5
    for num_results in random.Random(seed).sample(range(17), num_interruptions):
        with pytest.raises(KeyboardInterrupt):
            ingest(options, engine=interrupted(num_results), sizes=SIZES)
        assert Corpus.open(tmp_path / "corpus").domains == ("old",)
    ingest(options, sizes=SIZES)
    assert everything(tmp_path / "corpus") == whole
    # All but the shard that was being made stayed.
    assert len(made) <= len(Corpus.open(tmp_path / "corpus").shards) - 1 + num_interruptions


def test_the_disk_is_full_at_every_write(tmp_path, options, whole, everything, monkeypatch):
    new_file, write_bytes, num_failures = storage.new_file, files.write_bytes, 0
    for limit in range(200):
        num_left = limit

        def failing(write, *arguments, **keywords):
            nonlocal num_left
            if num_left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            num_left -= 1
            return write(*arguments, **keywords)

        if limit % 10 == 0:  # begun anew, or gone on with
            shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
            shutil.copytree(tmp_path / "old", tmp_path / "corpus")
        with monkeypatch.context() as patch:
            for module in ("data.runs", "data.merge"):
                patch.setattr(f"{module}.new_file", lambda *a, **k: failing(new_file, *a, **k))
            for module in ("data.manifest", "tokenizer_lab.files"):
                patch.setattr(f"{module}.write_bytes", lambda *a, **k: failing(write_bytes, *a, **k))
            try:
                ingest(options, sizes=SIZES)
            except UserError as error:
                num_failures += 1
                assert f"cannot write {tmp_path / 'corpus'}: No space left on device; free some space" in str(error)
                assert Corpus.open(tmp_path / "corpus").domains == ("old",)
            else:
                assert everything(tmp_path / "corpus") == whole
                break
    assert num_failures > 7


def test_what_another_ingest_has_left_is_cleared_away(interrupted, tmp_path, options, everything):
    with pytest.raises(KeyboardInterrupt):
        ingest(options, engine=interrupted(14), sizes=SIZES)
    assert list((tmp_path / "corpus" / "text").iterdir()), "so shards were written"
    other = IngestOptions(sources=(str(tmp_path / "in" / "0.txt"),), out=tmp_path / "corpus", domain="old")
    ingest(other)
    assert everything(tmp_path / "corpus") == everything(tmp_path / "old")


def test_a_source_that_changes_is_read_again_and_the_others_are_not(
    interrupted, tmp_path, options, whole, everything, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        ingest(options, engine=interrupted(7), sizes=SIZES)
    (tmp_path / "in" / "0.txt").write_bytes(b"other|text|")
    read = []
    monkeypatch.setattr(
        "data.ingest.read_portions", lambda options, unit: read.append(unit) or read_portions(options, unit)
    )
    ingest(options, sizes=SIZES)
    assert 1 < len(read) < 5
    ingest(dataclasses.replace(options, out=tmp_path / "fresh"), sizes=SIZES)
    assert everything(tmp_path / "corpus") == everything(tmp_path / "fresh")


KILL_WORKERS = """
import data.merge, data.ingest, os, pathlib
from data.merge import Merge
class Killed:
    def __init__(self, function, folder):
        self.function, self.folder = function, folder
    def __call__(self, item):
        for number, result in enumerate(self.function(item)):
            if number == 1 and not (self.folder / type(self.function).__name__).exists():
                (self.folder / type(self.function).__name__).touch()
                os.kill(os.getpid(), 9)
            yield result
"""


class KillsWorkers(ProcessEngine):
    """One worker of each phase dies in the middle of its work."""

    def __init__(self, folder, wrap):
        super().__init__(2)
        self._folder, self._wrap = folder, wrap

    def stream(self, function, items, devices=None):
        return super().stream(self._wrap(function, self._folder), items, devices)


def test_workers_that_die_change_nothing(tmp_path, options, whole, everything, monkeypatch):
    (tmp_path / "kill_workers.py").write_text(KILL_WORKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import kill_workers

    shutil.copytree(tmp_path / "old", tmp_path / "corpus")
    ingest(options, engine=KillsWorkers(tmp_path, kill_workers.Killed), sizes=SIZES)
    assert everything(tmp_path / "corpus") == whole
    assert (tmp_path / "MakeRuns").exists()
