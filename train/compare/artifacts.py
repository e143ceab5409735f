"""The arms' representations: fitted where they are missing, and measured on the text."""

import statistics

import numpy as np
import rich.console
from etils import epath

import tokenizer_lab
from data.held_out import fixed_subset
from data.store import Corpus
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation, check_lossless
from train.compare import subprocesses
from train.compare.resolve import Measured, Text, fit_of
from train.exits import EXIT_STOPPED
from train.experiment import Arm, Experiment
from train.recipe import Recipe
from train.submit.local import EXIT_DONE

_SAMPLE_BYTES = 1 << 18  # of each corpus, on which bytes per position are measured


def path_of(arm: Arm, text: Text, out: epath.Path) -> str:
    """The folder of an arm's artifact."""
    return arm.recipe.representation if arm.fit is None else str(out / "artifacts" / fit_of(arm, text).folder_name)


def fit_all(experiment: Experiment, text: Text, out: epath.Path, console: rich.console.Console) -> bool:
    """Fits the missing artifacts. Returns False if a signal stopped it. Raises UserError if one cannot be fitted."""
    for fit in dict.fromkeys(fit_of(arm, text) for arm in experiment.arms if arm.fit is not None):
        folder = out / "artifacts" / fit.folder_name
        if (folder / "manifest.json").exists():
            continue
        code = subprocesses.toklab(
            ["fit", *fit.words, "--corpus", text.paths[0], "--out", str(folder)],
            out / "logs" / fit.folder_name,
            console,
        )
        if code == EXIT_STOPPED:
            return False
        if code != EXIT_DONE:
            raise UserError(f"{folder} could not be fitted, for the reason above; mend that, or change the arm")
    return True


def measure(path: str, text: Text, recipe: Recipe) -> Measured:
    """Loads an artifact and measures the bytes per position, on a fixed sample of each corpus weighted as in
    training. Raises UserError where the arm would have no bits per byte."""
    representation = tokenizer_lab.load(path)
    check_lossless(representation)
    weights = recipe.data.weights or (1.0,) * len(text.corpora)
    num_bytes, num_positions = np.average(
        [_mean_sizes(representation, corpus) for corpus in text.corpora], axis=0, weights=weights
    )
    return Measured(
        path=path,
        fingerprint=representation.fingerprint,
        vocab_size=representation.vocab_size,
        costs=representation.costs,
        bytes_per_position=float(num_bytes / num_positions),
    )


def _mean_sizes(representation: Representation, corpus: Corpus) -> tuple[float, float]:
    """Mean bytes and positions of a document. The end of a document is a position too."""
    sample = fixed_subset(corpus.documents("train"), _SAMPLE_BYTES)
    encoded = representation.encode_many(sample)
    return statistics.fmean(map(len, sample)), statistics.fmean(len(ids) + 1 for ids, _ in encoded)
