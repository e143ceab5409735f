"""Whether compiled code has the ids of Hugging Face's library, on real text.

    python benchmarks/exact_encoding.py TOKENIZER... --texts PATH... [--max-bytes 1000000]

A tokenizer is a tokenizer.json or a folder with one; a text a file, or a folder of files. Every file is a document, of
which the first `--max-bytes` are taken. A document on which the two differ is named, and the exit code is then 1.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordFit, SubwordRepresentation
from train.commands.cli import leave_out_absent_tpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compares the two ways to encode."""

    tokenizers: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Each a tokenizer.json, or a folder with one."""
    texts: tuple[pathlib.Path, ...]
    """Files, or folders of files."""
    max_bytes: int = 1_000_000
    """Of each file, so much."""


def documents(options: Comparison) -> Iterator[tuple[pathlib.Path, bytes]]:
    for path in options.texts:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield file, file.read_bytes()[: options.max_bytes]


def compare(representation: SubwordRepresentation, options: Comparison) -> tuple[str, int, int, list[pathlib.Path]]:
    """What encodes, how many bytes were compared, how many of them compiled code gives up, and the files that
    differ."""
    encoder, way = representation._exact_encoder
    num_bytes, given_up_bytes, different = 0, 0, []
    for file, text in documents(options) if encoder else ():
        ids, _, [is_given_up] = encoder.encode([text])
        num_bytes += len(text)
        given_up_bytes += len(text) * int(is_given_up)
        if not is_given_up and not np.array_equal(ids, representation.encode_by_library(text)):
            different.append(file)
    return way, num_bytes, given_up_bytes, different


def main() -> None:
    options = tyro.cli(Comparison, description=__doc__)
    table = Table("tokenizer", "way", "bytes", "given up", "files that differ")
    found: list[pathlib.Path] = []
    for path in options.tokenizers:
        try:
            representation = SubwordFit(from_file=path).fit([], "")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        way, num_bytes, given_up_bytes, different = compare(representation, options)
        share = f"{100 * given_up_bytes / num_bytes:.1f} %" if num_bytes else ""
        table.add_row(path.stem, way, f"{num_bytes:,}", share, ", ".join(map(str, different)) or "none")
        found += different
    Console().print(table)
    raise SystemExit(bool(found))


if __name__ == "__main__":
    leave_out_absent_tpus()
    main()
