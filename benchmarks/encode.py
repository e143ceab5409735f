"""How fast representations encode and decode, and how many bytes an id carries.

    python benchmarks/encode.py ARTIFACT... --corpus-file FILE [--document-bytes 4096] [--repeats 5] [--json-file FILE]

The file is cut into documents. "1 thread" encodes them one after the other; "all" has one thread a core take them from
a queue, as row streams do. Each figure is min / median / max over the repeats, after one that does not count.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import tyro
from rich.console import Console
from rich.table import Table

import tokenizer_lab
from tokenizer_lab import Representation, UserError
from train.commands.cli import leave_out_absent_tpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures encoding and decoding."""

    artifacts: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Artifact folders, as `toklab fit` writes them."""
    corpus_file: pathlib.Path
    """Text to encode; a few megabytes are enough."""
    document_bytes: int = 4096
    """Length of the documents that the text is cut into."""
    repeats: int = 5
    """Timed passes over the text."""
    json_file: pathlib.Path | None = None
    """Also write the figures here, in MB/s (10^6 bytes a second)."""


def measure(representation: Representation, documents: list[bytes], repeats: int) -> dict:
    """Bytes an id, and MB/s as [min, median, max] for encode and decode with one thread and with one a core."""
    ids = [representation.encode(document) for document in documents]
    assert all(representation.decode(x) == document for x, document in zip(ids, documents, strict=True))
    num_bytes = sum(map(len, documents))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        speeds = {
            "encode_1_thread": _speed(lambda: list(map(representation.encode, documents)), num_bytes, repeats),
            "encode_all": _speed(lambda: list(pool.map(representation.encode, documents)), num_bytes, repeats),
            "decode_1_thread": _speed(lambda: list(map(representation.decode, ids)), num_bytes, repeats),
            "decode_all": _speed(lambda: list(pool.map(representation.decode, ids)), num_bytes, repeats),
        }
    return {
        "kind": representation.kind,
        "vocab_size": representation.vocab_size,
        "bytes_per_id": num_bytes / sum(map(len, ids)),
        "megabytes_per_second": speeds,
    }


def _speed(work: Callable[[], object], num_bytes: int, repeats: int) -> list[float]:
    work()
    speeds = []
    for _ in range(repeats):
        start_seconds = time.perf_counter()
        work()
        speeds.append(num_bytes / 1e6 / (time.perf_counter() - start_seconds))
    return [min(speeds), statistics.median(speeds), max(speeds)]


def _documents(file: pathlib.Path, document_bytes: int) -> list[bytes]:
    text = file.read_bytes()
    if not text:
        raise UserError(f"{file} is empty; choose a text of a few megabytes")
    return [text[start : start + document_bytes] for start in range(0, len(text), document_bytes)]


def _print(results: dict[str, dict], num_threads: int) -> None:
    table = Table(title="MB/s, min / median / max")
    for column in ("artifact", "kind", "vocab", "bytes/id"):
        table.add_column(column)
    for what in ("encode", "decode"):
        table.add_column(f"{what}, 1 thread", justify="right")
        table.add_column(f"{what}, all {num_threads}", justify="right")
    for name, result in results.items():
        speeds = (" / ".join(f"{x:.3g}" for x in speed) for speed in result["megabytes_per_second"].values())
        table.add_row(name, result["kind"], f"{result['vocab_size']:,}", f"{result['bytes_per_id']:.2f}", *speeds)
    Console().print(table)


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    try:
        documents = _documents(options.corpus_file, options.document_bytes)
        results = {str(x): measure(tokenizer_lab.load(x), documents, options.repeats) for x in options.artifacts}
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    _print(results, os.cpu_count())
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    leave_out_absent_tpus()
    main()
