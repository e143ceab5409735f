"""What representations do to a text, before any model: `toklab inspect ARTIFACT... --corpus CORPUS --out FOLDER`.

The metrics of `tokenizer_lab/metrics.py` on held-out documents, on line-aligned translations and on words with morpheme
boundaries, as `metrics.json`, `metrics.csv` and `index.html`, a page that also shows a text as each representation cuts
it.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

import tokenizer_lab
from tokenizer_lab import files
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation
from train.console import NamedRows
from train.inspect import inspection_page
from train.inspect.findings import METRICS, Inspection
from train.inspect.measuring import machine, measure
from train.inspect.options import InspectOptions
from train.inspect.texts import read_texts
from train.report.page import csv_text, printable

Progress = Callable[[int, int], None]


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


def console_table(inspection: Inspection) -> NamedRows:
    """A row a metric, a column a representation, with the notes below."""
    labels = [found.label for found in inspection.representations]
    table = NamedRows("", *labels, caption="\n".join(inspection.notes))
    for name, metric in METRICS.items():
        if inspection.has(name):
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
