"""What a store of very many short documents costs to make, to open and to read in shuffled order.

    python benchmarks/store.py [--num-documents 10000000] [--processes 1 2 4] [--folder FOLDER]

Makes a text of short lines and a corpus of them, by so many processes, of which all are killed once in the middle, and
the same command goes on. Then it opens the corpus in so many processes at once, and each reads blocks of its own in
shuffled order: from the disk, and from an object store of this machine that counts requests
(pip install 'tokenizer-lab[test]'). Prints a line for each.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import grain
import psutil
import tyro
from etils import epath
from ingest import hash_of, memory_of
from rich.console import Console
from rich.table import Table

from data.embedded import embedded_documents
from data.store import Corpus
from tokenizer_lab.files import copy_folder
from train.commands.cli import leave_out_absent_tpus

_FILES = 8
_LINES = 40, 160  # bytes of a document, about
_SPAWN = multiprocessing.get_context("spawn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a store of many documents."""

    num_documents: int = 10_000_000
    processes: tuple[int, ...] = (1, 2, 4)
    """That make the corpus, and that read it."""
    read_blocks: int = 2_000
    """Of each process that reads."""
    folder: pathlib.Path | None = None
    """Where to work; a temporary folder by default."""


def main(options: Options) -> None:
    console = Console(width=140)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = pathlib.Path(name)
        write_lines(folder / "text", options.num_documents)
        made = Table("processes", "seconds", "of them after a kill", "peak MB", "MB of text", "MB stored", title="made")
        hashes = set()
        for processes in options.processes:
            shutil.rmtree(folder / "corpus", ignore_errors=True)
            made.add_row(str(processes), *make(folder, processes))
            hashes.add(hash_of(folder / "corpus"))
        console.print(made)
        assert len(hashes) == 1, "kills or processes have changed the corpus"
        corpus = Corpus.open(folder / "corpus")
        documents = corpus.documents("train")
        console.print(
            f"{corpus.num_documents:,} documents, {len(corpus.shards)} shards, blocks of {documents.block_documents},"
            f" units of {corpus.manifest.texts[-1].unit_documents}"
        )
        read = Table("from", "processes", "opened s", "documents/s", "MB/s", "open files", "peak MB", "requests")
        for processes in options.processes:
            read.add_row("disk", *read_by(str(folder / "corpus"), processes, options, lambda: 0))
        for address, count in bucket(folder / "corpus"):
            for processes in options.processes:
                read.add_row("bucket", *read_by(address, processes, options, count))
        console.print(read)


def write_lines(folder: pathlib.Path, num_documents: int) -> None:
    """Files of different lines of the embedded text, cut to different lengths."""
    text = b" ".join(b" ".join(document.split()) for _, _, document in embedded_documents())
    rng = random.Random(0)
    folder.mkdir()
    for number in range(_FILES):
        with (folder / f"{number}.txt").open("wb") as file:
            for line in range(num_documents // _FILES):
                start = int(rng.random() * (len(text) - _LINES[1]))
                size = int(_LINES[0] + rng.random() * (_LINES[1] - _LINES[0]))
                file.write(b"%d-%d %s\n" % (number, line, text[start : start + size]))


def make(folder: pathlib.Path, processes: int) -> list[str]:
    """Ingests, killed once. Returns the cells of a row."""
    arguments = [
        str(folder / "text"),
        "--separator",
        "\\n",
        "--out",
        str(folder / "corpus"),
        "--workers",
        str(processes),
    ]
    command = [sys.executable, "-m", "train.commands.cli", "ingest", *arguments]
    begin, peak_bytes, killed_at = time.perf_counter(), 0, 0.0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None:
            peak_bytes = max(peak_bytes, memory_of(process.pid))
            if not killed_at and len(list((folder / "corpus").glob(".partial/*/*.run"))) >= _FILES:
                os.killpg(process.pid, signal.SIGKILL)
                killed_at = time.perf_counter()
            time.sleep(0.1)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.returncode
    end = time.perf_counter()
    sizes = [
        sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
        for pattern in ("text/*.txt", "corpus/**/*")
    ]
    return [
        f"{number:,.1f}" for number in (end - begin, end - killed_at, peak_bytes / 1e6, *(size / 1e6 for size in sizes))
    ]


def read_by(address: str, processes: int, options: Options, count_requests: Any) -> list[str]:
    """Reads by some processes at once. Returns the cells of a row."""
    before = count_requests()
    tasks = [(address, part, processes, options.read_blocks) for part in range(processes)]
    with _SPAWN.Pool(processes) as pool:
        figures = pool.map(read_part, tasks, chunksize=1)
    opened, seconds, files, peak = (max(figure[number] for figure in figures) for number in (0, 1, 4, 5))
    num_documents, num_bytes = (sum(figure[number] for figure in figures) for number in (2, 3))
    row = [f"{opened:.2f}", f"{num_documents / seconds:,.0f}", f"{num_bytes / 1e6 / seconds:.1f}"]
    return [str(processes), *row, str(files), f"{peak / 1e6:,.0f}", f"{count_requests() - before:,}"]


def read_part(task: tuple[str, int, int, int]) -> tuple[float, float, int, int, int, int]:
    """Seconds to open, seconds to read, documents, bytes, open files at most and memory of one process."""
    address, part, parts, read_blocks = task
    begin = time.perf_counter()
    documents = Corpus.open(address).documents("train")
    opened, files, num_documents, num_bytes = time.perf_counter(), 0, 0, 0
    num_blocks = len(documents) // documents.block_documents
    order = grain.MapDataset.range(num_blocks).shuffle(seed=1)
    for number in range(0, read_blocks, 50):
        blocks = [int(order[(number + at) * parts + part]) for at in range(50)]
        size = documents.block_documents
        texts = documents.read_many([block * size + at for block in blocks for at in range(size)])
        num_documents, num_bytes = num_documents + len(texts), num_bytes + sum(map(len, texts))
        files = max(files, psutil.Process().num_fds())
    # (That of `getrusage` includes the process that it was forked from.)
    peak = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return opened - begin, time.perf_counter() - opened, num_documents, num_bytes, files, peak


def bucket(corpus: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """An object store with a corpus, and what counts the requests it has had."""
    from gcp_storage_emulator import server as emulator

    handled = [0]

    class Counting(emulator.Router):
        def handle(self, method: Any) -> Any:
            handled[0] += 1
            return super().handle(method)

    emulator.Router = Counting
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    os.environ |= {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    copy_folder(epath.Path(corpus), epath.Path("gs://bucket/corpus"))
    yield "gs://bucket/corpus", lambda: handled[0]
    server.stop()


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options))
