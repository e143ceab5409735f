"""The options of `toklab inspect`."""

import dataclasses
import pathlib

import tyro
from etils import epath

from tokenizer_lab.errors import check_numbers


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
    """Text to measure at most: documents in a fixed random order, the last one cut there."""
    parallel: pathlib.Path | None = None
    """Folder of line-aligned .txt files, one a language (NTREX-128, FLORES), for the premium."""
    pivot: str = "eng"
    """The language of the folder that premiums are relative to."""
    morphscore: pathlib.Path | None = None
    """A MorphScore .csv file, or a folder of them: words with a morpheme boundary."""
    text: pathlib.Path | None = None
    """File of which the page shows the beginning, cut into tokens; by default a text of several languages."""

    def __post_init__(self) -> None:
        check_numbers(self, "--")
