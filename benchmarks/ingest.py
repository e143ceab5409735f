"""How fast, and in how much memory, JSON lines become a corpus; and that kills change nothing of it.

    python benchmarks/ingest.py [--num-bytes 1000000000] [--workers 1 2] [--kills 10] [--document-bytes 1000 8000]

Makes files of JSON lines from the embedded text and ingests them, by so many processes, in turn. Prints a line for
each, with the rate and the memory of all processes together. Then ingests them again, kills all processes at random
moments, so often, and compares what the same command makes in the end, byte by byte. Where others use the machine too,
look at the rate by CPU time.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from data.embedded import embedded_documents
from train.commands.cli import leave_out_absent_tpus

_FILES = 8
_COMMAND = [sys.executable, "-m", "train.commands.cli", "ingest"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the ingest of JSON lines."""

    num_bytes: int = 1_000_000_000
    """Of all files together."""

    document_bytes: tuple[int, int] = (1000, 8000)
    """A document has so many at least, and fewer than so many."""

    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes."""

    runs: int = 3
    """How often to ingest with each."""

    kills: int = 10
    """How often to kill an ingest by the last number of processes."""

    folder: pathlib.Path | None = None
    """Where to work; a temporary folder by default."""

    json: pathlib.Path | None = None
    """Also write the figures to this file."""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, corpus = pathlib.Path(folder, "source"), pathlib.Path(folder, "corpus")
        num_documents = write_jsonl(source, options.num_bytes, options.document_bytes)
        figures, hashes = [], set()
        for _ in range(options.runs):
            for workers in options.workers:
                figures.append(measure(source, corpus, workers))
                hashes.add(hash_of(corpus))
                shutil.rmtree(corpus)
        assert len(hashes) == 1, "the number of processes has changed the corpus"
        show(figures, num_documents)
        killed = kill(source, corpus, options, min(figure["seconds"] for figure in figures))
        assert hashes == {hash_of(corpus)}, "kills have changed the corpus"
        Console().print(f"killed {killed} times, and the corpus is the same")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def write_jsonl(folder: pathlib.Path, num_bytes: int, document_bytes: tuple[int, int]) -> int:
    """Writes files of records of embedded text until they have `num_bytes` together. Returns how many records."""
    text = b"\n".join(document for _, _, document in embedded_documents()).decode(errors="replace")
    rng, num_documents = random.Random(0), 0
    folder.mkdir()
    for number in range(_FILES):
        with (folder / f"{number}.jsonl").open("w") as file:
            while file.tell() < num_bytes // _FILES:
                for _ in range(1000):
                    start = rng.randrange(len(text))
                    record = {"id": num_documents, "text": text[start : start + rng.randrange(*document_bytes)]}
                    file.write(json.dumps(record) + "\n")
                    num_documents += 1
    return num_documents


def start(source: pathlib.Path, corpus: pathlib.Path, workers: int) -> subprocess.Popen[bytes]:
    arguments = [str(source), "--out", str(corpus), "--on-empty", "skip", "--workers", str(workers)]
    return subprocess.Popen([*_COMMAND, *arguments], stdout=subprocess.DEVNULL, start_new_session=True)


def measure(source: pathlib.Path, corpus: pathlib.Path, workers: int) -> dict[str, Any]:
    """The figures of one ingest."""
    begin, before = time.perf_counter(), os.times()
    process, peak_bytes = start(source, corpus, workers), 0
    watcher = threading.Thread(target=process.wait)
    watcher.start()
    while watcher.is_alive():
        peak_bytes = max(peak_bytes, memory_of(process.pid))
        watcher.join(0.2)
    assert process.returncode == 0, process.returncode
    after = os.times()
    return {
        "workers": workers,
        "input_bytes": sum(path.stat().st_size for path in source.iterdir()),
        "stored_bytes": sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": sum(after[2:4]) - sum(before[2:4]),
        "peak_bytes": peak_bytes,
    }


def memory_of(pid: int) -> int:
    """Of a process and those that it started: what is their own, and their share of the rest."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        pass
    return total


def show(figures: list[dict[str, Any]], num_documents: int) -> None:
    table = Table("workers", "documents", "MB", "stored MB", "seconds", "MB/s", "CPU s", "MB/CPU s", "peak MB")
    for figure in sorted(figures, key=lambda figure: figure["workers"]):
        megabytes, seconds, cpu = figure["input_bytes"] / 1e6, figure["seconds"], figure["cpu_seconds"]
        numbers = megabytes, figure["stored_bytes"] / 1e6, seconds, megabytes / seconds, cpu, megabytes / cpu
        row = [f"{number:.1f}" for number in (*numbers, figure["peak_bytes"] / 1e6)]
        table.add_row(str(figure["workers"]), f"{num_documents:,}", *row)
    Console().print(table)


def kill(source: pathlib.Path, corpus: pathlib.Path, options: Options, seconds: float) -> int:
    """Ingests, killed at random moments, until it is done. Returns how often it was killed."""
    rng, num_killed = random.Random(time.time()), 0
    while True:
        process = start(source, corpus, options.workers[-1])
        try:
            process.wait(rng.uniform(0, 1.5 * seconds / options.kills * 2) if num_killed < options.kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            num_killed += 1
            continue
        assert process.returncode == 0, process.returncode
        return num_killed


def hash_of(folder: pathlib.Path) -> str:
    """Over the names and contents of all files, hidden ones included."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options))
