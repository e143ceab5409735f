"""The input pipeline alone: documents in, batches out, bytes of text a second on one core, beside what a step of a run
consumes.

python benchmarks/pipeline.py ARTIFACT... --corpus CORPUS [--run RUN] [--seconds 5]
"""

import dataclasses
import json
import pathlib
import time

import rich.box
import rich.console
import rich.table
import tyro

import tokenizer_lab
from data.rows import RowStreams, Source
from data.store import Corpus
from train.commands.cli import leave_out_absent_tpus
from train.run.folder import RunFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Draws batches for a while from each representation."""

    artifacts: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Artifact folders, as `toklab fit` writes them."""
    corpus: pathlib.Path
    """What is read, over and over."""
    run: pathlib.Path | None = None
    """A run whose bytes a second the pipeline has to keep up with."""
    batch_rows: int = 16
    sequence_length: int = 256
    seconds: float = 5.0
    """Of each, in three parts; after a batch that does not count."""


def main(options: Options) -> None:
    table = rich.table.Table(
        title=f"Batches of {options.batch_rows} x {options.sequence_length}, one thread", box=rich.box.SIMPLE_HEAD
    )
    consumed = json.loads(RunFolder(options.run).summary.read_text())["bytes_per_second"] if options.run else None
    for name in ("representation", "MB/s (min / median / max)", *(["times what the run consumes"] if consumed else [])):
        table.add_column(name)
    for artifact in options.artifacts:
        speeds = sorted(measure(artifact, options))
        table.add_row(
            str(artifact),
            " / ".join(f"{speed / 1e6:.3g}" for speed in speeds),
            *([f"{speeds[1] / consumed:.3g}"] if consumed else []),
        )
    rich.console.Console().print(table)


def measure(artifact: pathlib.Path, options: Options) -> list[float]:
    """Bytes a second, three times."""
    streams = RowStreams(
        [Source(Corpus.open(options.corpus).documents("train"), 1.0)],
        tokenizer_lab.load(artifact),
        batch_rows=options.batch_rows,
        sequence_length=options.sequence_length,
        seed=0,
    )
    batches = iter(streams)
    next(batches)
    speeds = []
    for _ in range(3):
        start, num_bytes = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < options.seconds / 3:
            num_bytes += int(next(batches)["num_bytes"].sum())
        speeds.append(num_bytes / elapsed)
    return speeds


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
