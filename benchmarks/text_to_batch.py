"""How fast text becomes ids: our representations beside public encoders, on the same documents, in one run.

    python benchmarks/text_to_batch.py ARTIFACT... --texts FILE... [--document-bytes 2000] [--repeats 5]

Public encoders read the tokenizer.json of the first subword artifact: `tokenizers`, which is always there, and those of
`gigatoken`, `tokie` and `fastokens` that are installed. "cold" is an encoder's first pass over a text, with nothing in
its caches. Passes are made in turns, so that what else the machine does falls on all alike. Figures of one thread are
MB (10^6 bytes) a second of processor time, min / median / max; those of several threads by the clock, beside one
thread's by the clock.
"""

import concurrent.futures
import dataclasses
import importlib
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers
import tyro
from rich.console import Console
from rich.table import Table

import tokenizer_lab
from tokenizer_lab import UserError
from tokenizer_lab.subword import SubwordRepresentation
from tokenizer_lab.subword.segments import valid_texts
from train.commands.cli import leave_out_absent_tpus

Encode = Callable[[Sequence[bytes]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measures encoding."""

    artifacts: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Artifact folders, as `toklab fit` writes them."""
    texts: tuple[pathlib.Path, ...]
    """Files of UTF-8; a few megabytes each are enough."""
    document_bytes: int = 2000
    """Length of the documents that a text is cut into."""
    repeats: int = 5
    """Passes over a text behind the cold one."""
    threads: int = 2
    """How many encode at once in the last column."""
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


# ---- Encoders ------------------------------------------------------------------------------------


def ours(artifact: pathlib.Path) -> Encode:
    return tokenizer_lab.load(artifact).encode_batch


def hugging_face(representation: SubwordRepresentation) -> Encode:
    tokenizer = representation.used_tokenizer
    return lambda documents: tokenizer.encode_batch_fast([x.decode() for x in documents], add_special_tokens=False)


def by_gigatoken(representation: SubwordRepresentation) -> Encode:
    tokenizer = importlib.import_module("gigatoken").Tokenizer(_tokenizer_of(representation))
    return lambda documents: [tokenizer.encode(document.decode()) for document in documents]


def by_tokie(representation: SubwordRepresentation) -> Encode:
    tokenizer = importlib.import_module("tokie").Tokenizer.from_json(_file_of(representation))
    return lambda documents: [tokenizer.encode(document.decode(), False) for document in documents]


def by_fastokens(representation: SubwordRepresentation) -> Encode:
    tokenizer = importlib.import_module("fastokens").Tokenizer.from_file(_file_of(representation))
    return lambda documents: [tokenizer.encode(document.decode()) for document in documents]


def _tokenizer_of(representation: SubwordRepresentation) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(representation.to_files()["tokenizer.json"].decode())


def _file_of(representation: SubwordRepresentation) -> str:
    path = pathlib.Path(f"/tmp/text_to_batch-{representation.fingerprint[:12]}.json")
    path.write_bytes(representation.to_files()["tokenizer.json"])
    return str(path)


def makers(artifacts: Sequence[pathlib.Path]) -> dict[str, Callable[[], Encode]]:
    """Name -> what makes a fresh encoder."""
    found: dict[str, Callable[[], Encode]] = {str(path): (lambda path=path: ours(path)) for path in artifacts}
    subwords = [(path, tokenizer_lab.load(path)) for path in artifacts]
    for path, representation in subwords:
        if isinstance(representation, SubwordRepresentation):
            for name, maker in PUBLIC.items():
                found[f"{name}, {path.name}"] = lambda maker=maker, of=representation: maker(of)
            break
    return found


PUBLIC = {"tokenizers": hugging_face, "gigatoken": by_gigatoken, "tokie": by_tokie, "fastokens": by_fastokens}


# ---- Measuring -----------------------------------------------------------------------------------


def measure(options: Benchmark, path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """MB/s of every encoder on one text, or why there are none."""
    documents, figures, encoders = documents_of(path, options.document_bytes), {}, {}
    num_megabytes = sum(map(len, documents)) / 1e6
    for name, maker in makers(options.artifacts).items():
        try:
            encode = maker()
            encode(documents[:1])  # what is compiled at the first call
            cold = timed(lambda encode=encode: encode(documents))
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            figures[name] = {"why_none": f"{type(error).__name__}: {error}"[:60]}
            continue
        encoders[name] = encode
        figures[name] = {"cold": num_megabytes / cold[0], "warm": [], "one": [], "threads": []}
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        for _ in range(options.repeats):
            for name, encode in encoders.items():
                processor, clock = timed(lambda: encode(documents))
                shares = [documents[number :: options.threads] for number in range(options.threads)]
                _, together = timed(lambda: list(pool.map(encode, shares)))
                for kind, seconds in (("warm", processor), ("one", clock), ("threads", together)):
                    figures[name][kind].append(num_megabytes / seconds)
    return figures


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time, and by the clock."""
    processor, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - clock


def documents_of(path: pathlib.Path, document_bytes: int) -> list[bytes]:
    text = path.read_bytes().decode(errors="ignore").encode()
    if not text:
        raise UserError(f"{path} is empty; choose a text of a few megabytes")
    parts = (text[start : start + document_bytes] for start in range(0, len(text), document_bytes))
    return ["".join(valid_texts([part])).encode() for part in parts]


def _show(results: dict[str, dict[str, dict[str, Any]]], threads: int) -> None:
    table = Table(title="MB/s")
    for column in ("text", "encoder", "cold", "warm, a core", "1 thread", f"{threads} threads"):
        table.add_column(column, justify="left" if column in ("text", "encoder") else "right")
    for text, figures in results.items():
        for name, found in figures.items():
            if "why_none" in found:
                table.add_row(text, name, found["why_none"])
                continue
            speeds = [f"{min(x):.3g} / {statistics.median(x):.3g} / {max(x):.3g}" for x in (found["warm"],)]
            clocks = [f"{statistics.median(found[kind]):.3g}" for kind in ("one", "threads")]
            table.add_row(text, name, f"{found['cold']:.3g}", *speeds, *clocks)
    Console().print(table)


def main() -> None:
    options = tyro.cli(Benchmark, description=__doc__)
    try:
        results = {path.name: measure(options, path) for path in options.texts}
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    _show(results, options.threads)
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    leave_out_absent_tpus()
    main()
