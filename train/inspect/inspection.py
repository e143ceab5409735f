"""What representations do to a text, before any model: `toklab inspect ARTIFACT... --corpus CORPUS --out FOLDER`.

The metrics of `tokenizer_lab/metrics.py` on held-out documents, on line-aligned translations and on words with morpheme
boundaries, as `metrics.json`, `metrics.csv` and `index.html`, a page that also shows a text as each representation cuts
it.
"""

import collections
import csv
import dataclasses
import io
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import rich.box
import rich.table
import rich.text
import tyro
from etils import epath

import tokenizer_lab
from data.held_out import fixed_subset
from data.store import Corpus
from tokenizer_lab import files, metrics
from tokenizer_lab.errors import UserError
from tokenizer_lab.metrics import MorphItem
from tokenizer_lab.representation import Representation
from train.inspect import inspection_page
from train.inspect.findings import METRICS, Inspected, Inspection
from train.report.page import csv_text, printable

Progress = Callable[[int, int], None]

SPEED_BYTES = 1 << 16
SHOWN_BYTES = 2_000
MAX_FILE_BYTES = 1 << 28
MORPH_SUFFIX, MORPH_COLUMNS = "_morph_data", ("full_word", "pt1", "rest")
SAMPLE = (
    """The tokenizers' 1,234,567 unbelievable re-encodings cost $3.50.

def area(radius):
    return 3.14159 * radius ** 2  # naïve

Donaudampfschifffahrt. Ещё раз! 東京タワーは高い。 مرحبا بالعالم 👩‍🚀
Not UTF-8: """.encode()
    + b"\xff\x00\n"
)

# Why a number is missing.
NO_UNITS = "an id does not stand for the same bytes wherever it is, so that tokens have no boundaries of their own"
NO_WORDS = "the text has no words"
FEW_IDS = "fewer than two ids occur"
NO_SPLIT_WORDS = "no word is more than one token"
EMPTY_PIVOT = "the pivot has no tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Compare what representations do to a text: metrics, and the text cut into tokens side by side."""

    artifacts: tyro.conf.Positional[tuple[epath.Path, ...]]
    """Artifact folders, as `toklab fit` makes them."""
    corpus: epath.Path
    """Corpus store; its held-out documents are measured."""
    out: epath.Path
    """Folder for metrics.json, metrics.csv and index.html."""
    max_bytes: int = 1_000_000
    """Text to measure at most: whole documents, in a fixed random order."""
    parallel: pathlib.Path | None = None
    """Folder of line-aligned .txt files, one a language (NTREX-128, FLORES), for the premium."""
    pivot: str = "eng"
    """The language of the folder that premiums are relative to."""
    morphscore: pathlib.Path | None = None
    """A MorphScore .csv file, or a folder of them: words with a morpheme boundary."""
    text: pathlib.Path | None = None
    """File of which the page shows the beginning, cut into tokens; by default a text of several languages."""

    def __post_init__(self):
        if self.max_bytes < 1:
            raise UserError(f"--max-bytes {self.max_bytes} is no text; use a positive number, e.g. 1000000")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """What the representations are measured on.

    Attributes:
      documents: held-out documents of a corpus.
      about: where they are from.
      lines: language -> its lines, aligned with those of the other languages; none where that was not asked.
      words: language -> words with a morpheme boundary; none where that was not asked.
      num_left_out: language -> entries that are not two parts of a word.
      shown: what the page shows, cut into tokens.
    """

    documents: list[bytes]
    about: dict[str, Any]
    lines: dict[str, list[bytes]]
    words: dict[str, list[MorphItem]]
    num_left_out: dict[str, int]
    shown: bytes

    @property
    def num_bytes(self) -> int:
        """That encoding and decoding all of it goes through."""
        lines = sum(len(line) for lines in self.lines.values() for line in lines)
        return (
            2 * sum(map(len, self.documents))
            + lines
            + sum(len(item.word) for items in self.words.values() for item in items)
        )


def inspect(options: InspectOptions, on_progress: Progress) -> Inspection:
    """Measures and writes the folder `out`.

    Raises:
      UserError: an artifact, the corpus or a file is not there or not what it should be; or `out` cannot be written.
    """
    labels = _labels(options.artifacts)
    representations = [tokenizer_lab.load(folder) for folder in options.artifacts]
    texts, done = read_texts(options), 0
    total = texts.num_bytes * len(representations)

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        on_progress(done, total)

    found = []
    for label, folder, representation in zip(labels, options.artifacts, representations, strict=True):
        about = {
            "artifact": label,
            "folder": printable(str(folder)),
            "kind": representation.kind,
            "fingerprint": representation.fingerprint,
            "fitted_on": _fitted_on(representation, texts.about["content_hash"]),
        }
        found.append(measure(representation, texts, options.pivot, about, advance))
        done = len(found) * texts.num_bytes  # what makes no sense for one is not gone through
    inspection = Inspection(
        representations=found,
        text=texts.about,
        pivot=options.pivot,
        languages=sorted(texts.lines),
        morph_languages=sorted(texts.words),
        num_left_out=texts.num_left_out,
        machine=machine(),
        shown=texts.shown,
    )
    files.write_bytes(options.out / "metrics.csv", _csv(inspection).encode())
    files.write_json(options.out / "metrics.json", _json(inspection))
    files.write_bytes(options.out / "index.html", inspection_page.render(inspection).encode())
    return inspection


def measure(
    representation: Representation,
    texts: Texts,
    pivot: str,
    about: dict[str, str],
    advance: metrics.Progress = lambda num_bytes: None,
) -> Inspected:
    """All metrics of one representation; `about` are its names, which become the beginning of the row."""
    text = metrics.encode(representation, texts.documents, advance)
    use, speed = metrics.vocabulary_use(text), metrics.speed(representation, _beginning(texts.documents, SPEED_BYTES))
    tokens = {
        language: metrics.encode(representation, lines, advance).num_tokens for language, lines in texts.lines.items()
    }
    premium = {
        language: metrics.premium(count, tokens[pivot]) for language, count in tokens.items() if language != pivot
    }
    scores = {}
    if text.units is not None:
        scores = {
            language: metrics.morph_score(representation, items, advance) for language, items in texts.words.items()
        }
    premiums = [value for value in premium.values() if value is not None]
    shares = [score.share for score in scores.values() if score.share is not None]
    row = about | {
        "vocab_size": representation.vocab_size,
        "num_tokens": text.num_tokens,
        "bytes_per_token": metrics.bytes_per_token(text.num_bytes, text.num_tokens),
        "fertility": metrics.fertility(text),
        "renyi_efficiency": metrics.renyi_efficiency(text.id_counts),
        "uniform_bits_per_byte": metrics.uniform_bits_per_byte(text.id_counts, text.num_bytes),
        "unigram_bits_per_byte": metrics.unigram_bits_per_byte(text.id_counts, text.num_bytes),
        "text_ids": use.size,
        "used_ids": use.used,
        "used_share": use.used / use.size,
        "dead_ids": use.size - use.used,
        "round_trip_share": metrics.round_trip_share(text, advance),
        "premium_median": statistics.median(premiums) if premiums else None,
        "premium_max": max(premiums, default=None),
        "morph_score": statistics.fmean(shares) if shares else None,
        "encode_megabytes_per_second": speed.encode_megabytes_per_second,
        "decode_megabytes_per_second": speed.decode_megabytes_per_second,
    }
    reasons = {
        "fertility": NO_WORDS,
        "renyi_efficiency": FEW_IDS,
        "premium_median": EMPTY_PIVOT if premium else None,
        "morph_score": None if not texts.words else NO_UNITS if text.units is None else NO_SPLIT_WORDS,
    }
    why = {name: reason for name, reason in reasons.items() if row[name] is None and reason}
    return Inspected(
        row=row, why=why, premium=premium, morph_score=scores, pieces=shown_pieces(representation, texts.shown)
    )


def shown_pieces(representation: Representation, text: bytes) -> list[tuple[list[int], bytes]]:
    """A text cut: ids, and the bytes they carry together. An id that carries none goes with the next that does; the
    last may remain."""
    [(ids, lengths)] = representation.encode_many([text])
    pieces: list[tuple[list[int], bytes]] = []
    waiting: list[int] = []
    for id_, piece in zip(ids.tolist(), metrics.cut(text, lengths), strict=True):
        waiting.append(id_)
        if piece:
            pieces.append((waiting, piece))
            waiting = []
    return pieces + ([(waiting, b"")] if waiting else [])


def machine() -> str:
    """The processor, as the system names it, and how many cores there are."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


# ---- Reading -------------------------------------------------------------------------------------


def read_texts(options: InspectOptions) -> Texts:
    """All that the options name. Raises UserError where something is not there or not what it should be."""
    corpus = Corpus.open(options.corpus)
    held_out = corpus.documents("test")
    documents = fixed_subset(held_out, options.max_bytes)
    num_bytes = sum(map(len, documents))
    if not num_bytes:
        raise UserError(f"the held-out documents of {options.corpus} have 0 bytes; inspect on a corpus with text")
    words, num_left_out = read_morphscore(options.morphscore) if options.morphscore else ({}, {})
    about = {
        "corpus": printable(str(options.corpus)),
        "content_hash": corpus.content_hash,
        "num_documents": len(documents),
        "num_bytes": num_bytes,
        "held_out_documents": len(held_out),
        "held_out_bytes": held_out.num_bytes,
    }
    return Texts(
        documents=documents,
        about=about,
        lines=read_parallel(options.parallel, options.pivot) if options.parallel else {},
        words=words,
        num_left_out=num_left_out,
        shown=files.read_bytes(options.text, "text", MAX_FILE_BYTES)[:SHOWN_BYTES] if options.text else SAMPLE,
    )


def read_parallel(folder: pathlib.Path, pivot: str) -> dict[str, list[bytes]]:
    """Language -> lines, of the .txt files of a folder.

    A language is the last part of a file's name: eng for newstest2019-src.eng.txt; where two files share it, the name
    without .txt.

    Raises:
      UserError: there are not two files or more, none of the pivot, or they have different numbers of lines.
    """
    paths = sorted(folder.glob("*.txt"))
    if len(paths) < 2:
        raise UserError(
            f"{folder} has {len(paths)} .txt files; --parallel takes a folder of two or more line-aligned ones, a"
            " language each"
        )
    shared = collections.Counter(_last_part(path) for path in paths)
    names = {printable(_last_part(path) if shared[_last_part(path)] == 1 else path.stem): path for path in paths}
    if pivot not in names:
        raise UserError(f"{folder} has no language {pivot!r}; --pivot is one of {', '.join(names)}")
    lines = {name: _lines(path) for name, path in names.items()}
    for name, of_language in lines.items():
        if len(of_language) != len(lines[pivot]):
            raise UserError(
                f"{names[name]} has {len(of_language):,} lines, {names[pivot].name} {len(lines[pivot]):,}; the files of"
                " --parallel are line-aligned"
            )
    return lines


def read_morphscore(path: pathlib.Path) -> tuple[dict[str, list[MorphItem]], dict[str, int]]:
    """Language -> words with a morpheme boundary, and how many entries are not two parts of their word and were left
    out.

    Raises:
      UserError: there is no .csv file, or one that is not a list of words and their two parts.
    """
    paths = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not paths:
        raise UserError(
            f"{path} has no .csv files; --morphscore takes the folder data of MorphScore, or one of its files"
        )
    words, num_left_out = {}, {}
    for csv_path in paths:
        language = printable(csv_path.stem.removesuffix(MORPH_SUFFIX))
        rows = _read_csv(csv_path)
        whole = [(word, first) for word, first, rest in rows if first and rest and first + rest == word]
        words[language] = [MorphItem(word.encode(), len(first.encode())) for word, first in whole]
        num_left_out[language] = len(rows) - len(whole)
    return words, num_left_out


def _read_csv(path: pathlib.Path) -> list[tuple[str, ...]]:
    """The three columns of a MorphScore file."""
    try:
        reader = csv.DictReader(
            io.StringIO(files.read_bytes(path, "MorphScore file", MAX_FILE_BYTES).decode()), strict=True
        )
        if not set(MORPH_COLUMNS) <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path} lacks one of the columns {', '.join(MORPH_COLUMNS)}; --morphscore takes MorphScore's files as"
                " they are"
            )
        return [tuple(row[column] or "" for column in MORPH_COLUMNS) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} is not CSV in UTF-8: {error}; --morphscore takes MorphScore's files as they are"
        ) from error


def _lines(path: pathlib.Path) -> list[bytes]:
    return files.read_bytes(path, "text", MAX_FILE_BYTES).removesuffix(b"\n").split(b"\n")


def _last_part(path: pathlib.Path) -> str:
    return path.stem.rpartition(".")[2]


def _beginning(documents: Sequence[bytes], num_bytes: int) -> list[bytes]:
    """The first `num_bytes` of some documents, as documents."""
    beginning: list[bytes] = []
    for document in documents:
        if num_bytes <= 0:
            break
        beginning.append(document[:num_bytes])
        num_bytes -= len(document)
    return beginning


def _labels(folders: Sequence[epath.Path]) -> list[str]:
    """The folders' names, or their paths where two have the same. Raises UserError where one is given twice."""
    names, paths = collections.Counter(folder.name for folder in folders), collections.Counter(map(str, folders))
    if twice := [path for path, count in paths.items() if count > 1]:
        raise UserError(f"{twice[0]} was given more than once; name each artifact once")
    return [printable(folder.name if names[folder.name] == 1 else str(folder)) for folder in folders]


def _fitted_on(representation: Representation, corpus_hash: str) -> str:
    if not representation.fit_corpus_hash:
        return "no corpus"
    return "this corpus" if representation.fit_corpus_hash == corpus_hash else "another corpus"


# ---- Writing -------------------------------------------------------------------------------------


def console_table(inspection: Inspection) -> rich.table.Table:
    """A row a metric, a column a representation, with the notes below."""
    caption = rich.text.Text("\n".join(inspection.notes))
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), caption=caption, caption_justify="left"
    )
    table.add_column("", no_wrap=True)
    for found in inspection.representations:
        table.add_column(
            rich.text.Text(found.label), justify="right", overflow="fold"
        )  # a Text, so that no name is taken for markup
    for name, metric in METRICS.items():
        if not inspection.has(name):
            continue
        table.add_row(metric.name, *(metric.show(found.row[name]) for found in inspection.representations))
    return table


def _csv(inspection: Inspection) -> str:
    rows = []
    for found in inspection.representations:
        premiums = {f"premium:{language}": value for language, value in found.premium.items()}
        scores = {
            f"morph_score:{language}": found.morph_score[language].share if found.morph_score else None
            for language in inspection.morph_languages
        }
        rows.append(found.row | premiums | scores)
    return csv_text(rows)


def _json(inspection: Inspection) -> dict[str, Any]:
    return {
        "format": "tokenizer-lab inspection 1",
        "text": inspection.text,
        "pivot": inspection.pivot if inspection.languages else None,
        "machine": inspection.machine,
        "representations": [
            found.row
            | {
                "why": found.why,
                "premium": found.premium,
                "morph_scores": {language: score._asdict() for language, score in found.morph_score.items()},
            }
            for found in inspection.representations
        ],
    }
