"""The input pipeline alone: documents in, batches out, bytes of text a second, beside what a step of a run consumes.

python benchmarks/pipeline.py ARTIFACT... --corpus CORPUS [--encoded IDS...] [--run RUN] [--seconds 5]
python benchmarks/pipeline.py ARTIFACT... --corpus CORPUS --threads 1 2 --processes 2

All ways take turns, so that a machine's other work falls on all of them. Beside the clock's, the second rate is by CPU
seconds of this process, which other work on the machine changes less; it is none of other processes.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Iterator

import rich.box
import rich.console
import rich.table
import tyro
from etils import epath

import tokenizer_lab
from data.encoded import bring_ids, read_ids_store
from data.rows import RowStreams, Source
from data.store import Corpus
from train.commands.cli import leave_out_absent_tpus
from train.run.folder import RunFolder

_TURNS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draws batches for a while from each representation."""

    artifacts: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Artifact folders, as `toklab fit` writes them."""
    corpus: pathlib.Path
    """What is read, over and over."""
    encoded: tuple[pathlib.Path, ...] = ()
    """Folders of ids, as `toklab encode` writes them: then their artifacts are also measured with those."""
    run: pathlib.Path | None = None
    """A run whose bytes a second the pipeline has to keep up with."""
    batch_rows: int = 32
    sequence_length: int = 2048
    threads: tuple[int, ...] = (1,)
    """Numbers of threads to measure."""
    processes: tuple[int, ...] = ()
    """Numbers of processes to measure."""
    seconds: float = 5.0
    """Of each, in ten turns; after some batches that do not count."""


def main(options: Options) -> None:
    table = rich.table.Table(
        title=f"Batches of {options.batch_rows} x {options.sequence_length}", box=rich.box.SIMPLE_HEAD
    )
    consumed = json.loads(RunFolder(options.run).summary.read_text())["bytes_per_second"] if options.run else None
    columns = ["MB/s (min / median / max)", "MB per CPU second"]
    for name in ("representation", "workers", *columns, *(["times what the run consumes"] if consumed else [])):
        table.add_column(name)
    with contextlib.ExitStack() as stack:
        ways = {key: iter(streams) for key, streams in all_ways(options)}
        for batches in ways.values():
            stack.callback(batches.close)
            for _ in range(10):
                next(batches)
        speeds = {key: [] for key in ways}
        for _, (key, batches) in itertools.product(range(_TURNS), ways.items()):
            speeds[key].append(measure(batches, options.seconds / _TURNS))
    for (representation, workers), measured in speeds.items():
        shown = [
            " / ".join(f"{speed / 1e6:.3g}" for speed in (min(rates), sorted(rates)[_TURNS // 2], max(rates)))
            for rates in zip(*measured)
        ]
        shown[1] = "" if "process" in workers else shown[1]
        times = [f"{sorted(measured)[_TURNS // 2][0] / consumed:.3g}"] if consumed else []
        table.add_row(representation, workers, *shown, *times)
    rich.console.Console().print(table)


def all_ways(options: Options) -> Iterator[tuple[tuple[str, str], RowStreams]]:
    """What is measured, each with its names."""
    ids_of = {read_ids_store(epath.Path(folder))[0].fingerprint: folder for folder in options.encoded}
    workers = {f"{count} threads" if count > 1 else "1 thread": {"num_workers": count} for count in options.threads}
    workers |= {f"{count} processes": {"num_processes": count} for count in options.processes}
    for artifact in options.artifacts:
        representation, corpus = tokenizer_lab.load(artifact), Corpus.open(options.corpus)
        sources = {artifact.name: corpus}
        if representation.fingerprint in ids_of:
            [sources[f"{artifact.name}, ids made before"]] = bring_ids(
                [corpus], [ids_of[representation.fingerprint]], representation
            )
        for (name, source), (how, number) in itertools.product(sources.items(), workers.items()):
            yield (
                (name, how),
                RowStreams(
                    [Source(source.documents("train"))],
                    representation,
                    batch_rows=options.batch_rows,
                    sequence_length=options.sequence_length,
                    seed=0,
                    **number,
                ),
            )


def measure(batches: Iterator[dict], seconds: float) -> tuple[float, float]:
    """Bytes a second, by the clock and by the CPU seconds of this process."""
    start, cpu_start, num_bytes = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        num_bytes += int(next(batches)["num_bytes"].sum())
    return num_bytes / elapsed, num_bytes / (time.process_time() - cpu_start)


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
