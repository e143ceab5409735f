"""Ingest in bounded memory, on full and closed disks, and cut off: each in a process of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap

import pytest

from data.store import Corpus
from tokenizer_lab.errors import UserError


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


INGEST_IN_LITTLE_MEMORY = """
import pathlib, sys
from data.corpus_writer import Sizes
from data.ingest import IngestOptions, UserError, ingest
def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
folder = pathlib.Path(sys.argv[1])
(folder / "small.txt").write_bytes(b"x")
ingest(IngestOptions(sources=(str(folder / "small.txt"),), out=folder / "small"))
before = peak_bytes()
try:
    options = dict(separator=sys.argv[3]) if len(sys.argv) > 3 else {}
    options |= dict(domain=pathlib.Path(sys.argv[2]).name, max_document_bytes=8 << 20, max_part_bytes=0)
    sizes = Sizes(run=4 << 20, merge=4 << 20, shard=4 << 20)
    ingest(IngestOptions(sources=(sys.argv[2],), out=folder / "corpus", **options), sizes=sizes)
except UserError as error:
    print(error)
print(peak_bytes() - before)
"""


def growth_of_memory(folder, name, *separator):
    """Peak memory of the ingest of a file above that of a tiny one, in MiB, and what it printed."""
    ran = run_python(INGEST_IN_LITTLE_MEMORY, folder, folder / name, *separator)
    assert ran.returncode == 0, ran.stderr
    *printed, growth_bytes = ran.stdout.splitlines()
    return int(growth_bytes) / 2**20, printed


only_with_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak memory from /proc")


@only_with_proc
def test_memory_is_flat(write_files, jsonl, write_parquet, tmp_path):
    texts = [f"{number} " + "text " * 1000 for number in range(10_000)]
    write_files(tmp_path, {"a.jsonl": jsonl(*texts), "a.txt": "|".join(texts).encode()})
    # Arrow takes some 65 MiB for such pages, however many there are.
    write_parquet(tmp_path / "a.parquet", texts * 2, row_group_size=1 << 20, use_dictionary=False, compression="none")
    for name, separator, limit in (("a.jsonl", [], 40), ("a.txt", ["|"], 40), ("a.parquet", [], 90)):
        growth, printed = growth_of_memory(tmp_path, name, *separator)
        assert growth < limit < (tmp_path / name).stat().st_size / 2**20 and not printed


@only_with_proc
@pytest.mark.parametrize("name", ["line.jsonl", "one.txt", "bomb.txt.zst", "bomb.jsonl.gz", "bomb.txt.xz"])
def test_a_document_that_is_too_large_is_not_read(write_files, compress, tmp_path, name):
    write_files(tmp_path, {name: compress(pathlib.Path(name).suffix if "bomb" in name else "", b"x" * (80 << 20))})
    growth, printed = growth_of_memory(tmp_path, name)
    assert growth < 40
    assert f"{name}, record 1, has " in printed[0]
    assert "over the limit of 8388608; split it (text: --separator) or raise --max-document-bytes" in printed[0]


INGEST_WITH_SMALL_FILES_ONLY = """
import pathlib, resource, sys
from data.ingest import IngestOptions, UserError, ingest
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    ingest(IngestOptions(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), domain="large"))
except UserError as error:
    print(error)
"""


def test_a_shard_that_cannot_be_written(ingest_from, everything, write_files, jsonl, tmp_path):
    write_files(tmp_path, {"a.txt": b"a", "large.jsonl": jsonl(*(os.urandom(1000).hex() for _ in range(2000)))})
    ingest_from(tmp_path, "a.txt", test_fraction=1 / 16)
    before = everything(tmp_path)
    ran = run_python(INGEST_WITH_SMALL_FILES_ONLY, tmp_path / "large.jsonl", tmp_path / "corpus")
    assert ran.stdout == f"cannot write {tmp_path / 'corpus'}: File too large; choose another folder\n", ran.stderr
    assert everything(tmp_path) == before


INGEST_AS_NOBODY = """
import os, pathlib, sys
from data.ingest import IngestOptions, UserError, ingest
options = IngestOptions(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), domain="more")
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    ingest(options)
except UserError as error:
    print(error)
"""


def test_a_folder_that_is_read_only(ingest_from, everything, write_files):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_files(folder, {"a.txt": b"a"})
        ingest_from(folder, "a.txt", test_fraction=1 / 16)
        before = everything(folder)
        folder.chmod(0o555)
        (folder / "corpus").chmod(0o555)
        for out in ("corpus", "new"):
            ran = run_python(INGEST_AS_NOBODY, folder / "a.txt", folder / out)
            assert ran.stdout.startswith(f"cannot write {folder / out}: Permission denied; no permission;"), ran.stderr
        assert everything(folder) == before
        folder.chmod(0o755)
        (folder / "corpus").chmod(0o755)


def test_a_source_that_cannot_be_read(write_files):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_files(folder, {"in/a.txt": b"a", "in/closed/b.txt": b"b"})
        folder.chmod(0o777)
        for closed, message in (
            ("in/closed", "cannot read"),
            ("in/a.txt", "a.txt cannot be read on after record 0: Permission denied"),
        ):
            (folder / closed).chmod(0)
            ran = run_python(INGEST_AS_NOBODY, folder / "in", folder / "corpus")
            assert message in ran.stdout, ran.stderr
            assert not (folder / "corpus").exists()
            (folder / closed).chmod(0o755)


INGEST_SLOWLY = """
import pathlib, sys, time
import data.ingest
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it
from data.ingest import IngestOptions, ingest
def report(num_bytes, total):
    if num_bytes > total // 4:
        print("half", flush=True)
        time.sleep(60)
ingest(IngestOptions(sources=(sys.argv[1],), out=pathlib.Path(sys.argv[2]), domain="cut"), report)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("old", [True, False])
def test_stopped_in_the_middle(ingest_from, stored, everything, write_files, jsonl, tmp_path, number, old):
    write_files(tmp_path, {"a.txt": b"a", "large.jsonl": jsonl(*(f"{i} " * 200 for i in range(4000)))})
    if old:
        ingest_from(tmp_path, "a.txt", test_fraction=1 / 16)
    before = everything(tmp_path)
    command = [sys.executable, "-c", INGEST_SLOWLY, str(tmp_path / "large.jsonl"), str(tmp_path / "corpus")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(number)
    if number == signal.SIGINT:
        assert everything(tmp_path) == before
    else:
        assert (tmp_path / "corpus" / ".lock").exists()  # so it was killed while it worked
    if old:
        assert stored(tmp_path) == [b"a"]
    else:
        with pytest.raises(UserError, match="is not a corpus"):
            Corpus.open(tmp_path / "corpus")
    ingest_from(tmp_path, "large.jsonl", domain="next", test_fraction=1 / 16)
    assert Corpus.open(tmp_path / "corpus").num_documents == 4000 + old
    assert not [path for path in (tmp_path / "corpus").iterdir() if path.name.startswith(".")]
