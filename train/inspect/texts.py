"""What representations are measured on: held-out documents, translations, words with morphemes, and a text to show."""

import codecs
import collections
import csv
import dataclasses
import io
import pathlib
from typing import Any

from data.held_out import fixed_subset
from data.store import Corpus
from tokenizer_lab import files
from tokenizer_lab.errors import UserError
from tokenizer_lab.metrics import MorphItem
from train.inspect.options import InspectOptions
from train.report.page import printable

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
        """Bytes that are encoded or decoded to measure one representation."""
        lines = sum(len(line) for lines in self.lines.values() for line in lines)
        return (
            2 * sum(map(len, self.documents))
            + lines
            + sum(len(item.word) for items in self.words.values() for item in items)
        )


def read_texts(options: InspectOptions) -> Texts:
    """Reads everything the options name. Raises UserError if a file is missing or malformed."""
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
    """Reads words with a morpheme boundary, by language, and counts the entries left out, by language.

    An entry is left out if its two parts do not make up its word.

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
            io.StringIO(files.read_bytes(path, "MorphScore file", MAX_FILE_BYTES).decode("utf-8-sig")), strict=True
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
    text = files.read_bytes(path, "text", MAX_FILE_BYTES).removeprefix(codecs.BOM_UTF8)
    return text.removesuffix(b"\n").split(b"\n")


def _last_part(path: pathlib.Path) -> str:
    return path.stem.rpartition(".")[2]
