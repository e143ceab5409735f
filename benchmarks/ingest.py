"""How fast, and in how much memory, a large jsonl becomes a corpus.

    python benchmarks/ingest.py [--num-bytes 1000000000] [--runs 3] [--json FILE]

Makes the jsonl from the embedded text, ingests it in a new process that may use one core, and prints a line a
run. Where others use the machine too, look at the rate by CPU time.
"""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import tyro
from rich.console import Console
from rich.table import Table

from data.embedded import embedded_documents
from data.ingest import IngestOptions, ingest
from train.commands.cli import leave_out_absent_tpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the ingest of a jsonl."""

    num_bytes: int = 1_000_000_000
    """Size of the jsonl."""

    runs: int = 3
    """How often to ingest it."""

    json: pathlib.Path | None = None
    """Also write the figures to this file."""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "source.jsonl")
        num_documents = write_jsonl(source, options.num_bytes)
        figures = [measure(source, pathlib.Path(folder, f"corpus{run}")) for run in range(options.runs)]
    table = Table("documents", "MB", "seconds", "MB/s", "CPU seconds", "MB/CPU s", "peak RSS MB")
    for figure in figures:
        num_megabytes, seconds, cpu_seconds = figure["input_bytes"] / 1e6, figure["seconds"], figure["cpu_seconds"]
        numbers = num_megabytes, seconds, num_megabytes / seconds, cpu_seconds, num_megabytes / cpu_seconds
        table.add_row(str(num_documents), *(f"{x:.1f}" for x in numbers), f"{figure['peak_rss_bytes'] / 1e6:.0f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def write_jsonl(path: pathlib.Path, num_bytes: int) -> int:
    """Writes records of 1 to 8 kB of embedded text until there are `num_bytes`. Returns how many."""
    text = b"\n".join(document for _, _, document in embedded_documents()).decode(errors="replace")
    rng = random.Random(0)
    num_documents = 0
    with path.open("w") as file:
        while file.tell() < num_bytes:
            for _ in range(1000):
                start = rng.randrange(len(text))
                record = {"id": num_documents, "text": text[start : start + rng.randrange(1000, 8000)]}
                file.write(json.dumps(record) + "\n")
                num_documents += 1
    return num_documents


def measure(source: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """The figures of one ingest in a process of its own."""
    command = [sys.executable, __file__, "--measured", str(source), str(out)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ingest_measured(source: pathlib.Path, out: pathlib.Path) -> None:
    """What runs in that process: prints the figures as JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    start, cpu_start = time.perf_counter(), time.process_time()
    ingest(IngestOptions(sources=(str(source),), out=out))
    figures = {
        "input_bytes": source.stat().st_size,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(figures))


def peak_rss_bytes() -> int:
    """Peak memory of this process. (That of `getrusage` includes the process that it was forked from.)"""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    leave_out_absent_tpus()
    if sys.argv[1:2] == ["--measured"]:
        ingest_measured(*map(pathlib.Path, sys.argv[2:]))
    else:
        main(tyro.cli(Options))
