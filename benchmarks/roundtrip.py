"""Whether every document comes back: encode, decode, compare.

    python benchmarks/roundtrip.py ARTIFACT... --sources PATH... [--max-bytes-a-source N]

A source is a file or a folder of files; each file is a document. One line an artifact and source; exit code 1 if a
document differs.
"""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Iterator

import tyro

import tokenizer_lab
from tokenizer_lab import Representation
from train.commands.cli import leave_out_absent_tpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Encodes, decodes and compares."""

    artifacts: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Artifact folders, as `toklab fit` writes them."""
    sources: tuple[pathlib.Path, ...]
    """Files, and folders of files."""
    max_bytes_a_source: int = 1 << 62
    """Stop a source after this many bytes."""


def main(options: Options) -> int:
    num_different = 0
    for artifact, source in itertools.product(options.artifacts, options.sources):
        representation, started = tokenizer_lab.load(artifact), time.perf_counter()
        num_documents, num_bytes, different = 0, 0, 0
        for texts in _batches(_documents(source, options.max_bytes_a_source), representation.batch_documents):
            different += sum(
                not _comes_back(representation, *pair) for pair in zip(texts, representation.encode_many(texts))
            )
            num_documents, num_bytes = num_documents + len(texts), num_bytes + sum(map(len, texts))
        print(
            f"{artifact}  {source}: {num_documents:,} documents, {num_bytes:,} bytes, {different} different, "
            f"{time.perf_counter() - started:.1f} s",
            flush=True,
        )
        num_different += different
    return int(num_different > 0)


def _comes_back(representation: Representation, text: bytes, encoded) -> bool:
    ids, lengths = encoded
    return representation.decode(ids) == text and lengths.sum() == len(text)


def _documents(source: pathlib.Path, max_bytes: int) -> Iterator[bytes]:
    for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        text = file.read_bytes()[:max_bytes]
        max_bytes -= len(text)
        yield text
        if max_bytes == 0:
            return


def _batches(documents: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(documents, size)):
        yield batch


if __name__ == "__main__":
    leave_out_absent_tpus()
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
