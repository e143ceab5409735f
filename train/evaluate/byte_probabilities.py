"""Exact probabilities of the next byte from a model of ids, so that a prompt may end anywhere and runs compare byte by
byte.

The byte-token representation lemma (Phan et al. 2024, arXiv 2410.09303): the probability that a document begins with
some bytes is the sum over their covers (`tokenizer_lab/covers.py`) of the probability that its ids begin so. Every
document has one sequence of ids. What the model holds possible besides, it was never trained on: ids that may not stand
there get no probability, and the others are scaled up to sum to one. That makes the model one of documents, about which
everything here is exact. (The paper scales the bytes up instead, one step later.)

Legend: V vocab.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data.held_out import fixed_subset
from data.store import corpora_hash
from models.axes import Kernels
from models.next_id import NextIdModel
from tokenizer_lab.covers import Covers, Ids, covers_of
from tokenizer_lab.errors import UserError
from tokenizer_lab.files import write_json
from train.evaluate.bits_per_byte import bits_per_byte, held_out_text, make_scorer, score_run_documents
from train.model_function import jit_of_weights, padded
from train.run.folder import RunFolder
from train.setup import LoadedRun, Setup, load_run
from train.sharding import divisible_rows

END = 256  # of the document, behind the 256 bytes
NUM_NEXT = 257
_SEQUENCES_AT_ONCE = 64

NextIds = Callable[
    [Sequence[Ids]], np.ndarray
]  # N times a document's first ids -> f[N, V] log probabilities of what follows each


@dataclasses.dataclass
class _Open:
    """Ids that reach beyond the bytes so far, all behind the same ids."""

    before: Ids
    ids: np.ndarray
    """i64[n]."""
    masses: np.ndarray
    """f64[n], probability of each cover, given the bytes so far."""
    place: int
    """Bytes of each id that have been passed."""


class ByteWalk:
    """A document's bytes, one after the other, and what may come next.

    A byte costs the model's next-id probabilities behind the ids that end just there: one sequence of ids mostly,
    sometimes none or several.
    """

    def __init__(self, covers: Covers, next_ids: NextIds, beginning: bytes = b""):
        """`beginning`: bytes to begin behind; costs the model's probabilities along the ids that lead to its covers,
        all in one call.

        Raises UserError where the model holds it impossible that a document begins so.
        """
        self._covers, self._next_ids = covers, next_ids
        self.log_probability = 0.0
        """That a document begins with the bytes so far, in nats, at most 0."""
        self._at_border: list[tuple[Ids, float]] = [((), 1.0)]  # with their probabilities, given the bytes so far
        self._open: list[_Open] = []
        if beginning:
            self._begin(beginning)
        self.next_bytes = self._look_ahead()
        """f64[257], the probability of each byte to come next, and of the end of the document."""

    def step(self, byte: int) -> None:
        """Goes on by a byte, or to the `END`. Raises UserError where it is impossible."""
        probability = float(self.next_bytes[byte])
        if not probability > 0:
            raise _impossible("the next byte of a document")
        self.log_probability += math.log(probability)
        if byte == END:
            return
        self._at_border, passed, self._open = [], self._open, []
        for part in passed:
            chosen = self._covers.bytes_at(part.ids, part.place) == byte
            self._put(part.before, part.ids[chosen], part.masses[chosen] / probability, part.place + 1)
        self.next_bytes = self._look_ahead()

    def _begin(self, text: bytes) -> None:
        """The lemma as it stands: finds the covers of `text` and their probabilities."""
        covers, longest = self._covers, int(self._covers.lengths.max())
        # Ids that end inside of the text, those that may follow to cover it, and where the first of the latter begins.
        covering = []
        for start, sequences in enumerate(covers.borders(text)):
            for ids in sequences if len(text) - longest <= start < len(text) else ():
                reaching = covers.starting_with(text[start:])
                covering.append((ids, reaching[covers.may_follow(ids)[reaching]], start))
        covering = [(ids, reaching, start) for ids, reaching, start in covering if len(reaching)]
        leading = list(dict.fromkeys(ids[:count] for ids, _, _ in covering for count in range(len(ids) + 1)))
        log_next = dict(zip(leading, self._log_next(leading), strict=True))
        log_masses = [
            sum(log_next[ids[:place]][id_] for place, id_ in enumerate(ids)) + log_next[ids][reaching]
            for ids, reaching, _ in covering
        ]
        self.log_probability = float(np.logaddexp.reduce(np.concatenate([np.zeros(0), *log_masses]), initial=-np.inf))
        if self.log_probability == -np.inf:
            raise _impossible("the beginning of a document")
        self._at_border = []
        for (ids, reaching, start), log_mass in zip(covering, log_masses, strict=True):
            self._put(ids, reaching, np.exp(log_mass - self.log_probability), len(text) - start)

    def _put(self, before: Ids, ids: np.ndarray, masses: np.ndarray, place: int) -> None:
        """Takes in covers: those that end at `place` are at a border, the others are open."""
        ends = self._covers.lengths[ids] == place
        self._at_border += [((*before, int(id_)), float(mass)) for id_, mass in zip(ids[ends], masses[ends])]
        if not ends.all():
            self._open.append(_Open(before, ids[~ends], masses[~ends], place))

    def _look_ahead(self) -> np.ndarray:
        """Opens what is at a border, and sums up what comes next."""
        covers, next_bytes = self._covers, np.zeros(NUM_NEXT)
        for (ids, mass), log_next_v in zip(
            self._at_border, self._log_next([ids for ids, _ in self._at_border]), strict=True
        ):
            masses_v = mass * np.exp(log_next_v)
            next_bytes[END] += masses_v[covers.eod_id]
            possible = np.flatnonzero((masses_v > 0) & (covers.lengths > 0))
            self._open.append(_Open(ids, possible, masses_v[possible], 0))
        for part in self._open:
            next_bytes += np.bincount(covers.bytes_at(part.ids, part.place), part.masses, NUM_NEXT)
        return next_bytes

    def _log_next(self, sequences: Sequence[Ids]) -> list[np.ndarray]:
        """f64[V] each, log probabilities of the ids behind each sequence, of those that may stand there."""
        if not sequences:
            return []
        allowed_nv = np.stack([self._covers.may_follow(ids) for ids in sequences])
        log_next_nv = np.where(allowed_nv, self._next_ids(sequences).astype(np.float64), -np.inf)
        log_next_nv -= log_next_nv.max(axis=1, keepdims=True)
        return list(log_next_nv - np.log(np.exp(log_next_nv).sum(axis=1, keepdims=True)))


def _impossible(what: str) -> UserError:
    return UserError(
        f"the model gives no probability to {what}; either it is broken, or this tokenizer's ids depend on what follows"
        " them in a way that exact byte probabilities do not know (docs/byte_probabilities.md)"
    )


@dataclasses.dataclass(frozen=True)
class ByteModel:
    """A model of ids as a model of bytes."""

    covers: Covers
    next_ids: NextIds

    def walk(self, beginning: bytes = b"") -> ByteWalk:
        return ByteWalk(self.covers, self.next_ids, beginning)

    def along(self, document: bytes) -> Iterator[np.ndarray]:
        """f64[257] for each byte of a document and for its end: what comes next, behind all before it.

        The document is known, so the model is asked about `_SEQUENCES_AT_ONCE` at a time.
        """
        walk = ByteWalk(self.covers, _Ahead(self.next_ids, self.covers.borders(document)))
        for byte in [*document, END]:
            yield walk.next_bytes
            walk.step(byte)


class _Ahead:
    """`NextIds` of sequences that are asked for in a known order, computed many at a time."""

    def __init__(self, next_ids: NextIds, borders: Iterator[list[Ids]]):
        self._next_ids, self._known = next_ids, (ids for here in borders for ids in here)
        self._ready: dict[Ids, np.ndarray] = {}

    def __call__(self, sequences: Sequence[Ids]) -> np.ndarray:
        return np.stack([self._find(ids) for ids in sequences])

    def _find(self, ids: Ids) -> np.ndarray:
        while ids not in self._ready:
            sequences = list(itertools.islice(self._known, _SEQUENCES_AT_ONCE))
            assert sequences, "a walk came to ids that are not among the borders of its text"
            self._ready = dict(zip(sequences, self._next_ids(sequences), strict=True))
        return self._ready[ids]


def make_next_ids(
    model_def: Any,
    params: Any,
    mesh: Mesh,
    eod_id: int,
    sequence_length: int,
    piece_length: int = 0,
    kernels: Kernels = "auto",
) -> NextIds:
    """A decoder's `NextIds`. What it sees of a long document is what it sees in `data.scoring_rows.scoring_batches`.

    Args:
      model_def: `nnx.GraphDef` of the model.
      params: its weights.
      mesh: over which they are laid out.
      eod_id: of the representation.
      sequence_length: of a row.
      piece_length: as in training; see `data.rows.RowStreams`.
      kernels: as in a recipe.
    """
    length = min(piece_length or sequence_length, sequence_length)
    log_next_ids = jit_of_weights(_log_next_ids, model_def, mesh, kernels)

    def seen(ids: Ids) -> Ids:
        """The inputs of a piece up to the last of the ids."""
        start = len(ids) // length * length
        before = eod_id if start == 0 or piece_length else ids[start - 1]
        return (before, *ids[start:])

    def next_ids(sequences: Sequence[Ids]) -> np.ndarray:
        rows, places = _shared_rows([seen(ids) for ids in sequences])
        num_rows = divisible_rows(mesh, padded(len(rows)))
        ids_bt, segments_bt = np.zeros((2, num_rows, padded(max(map(len, rows)))), np.int32)
        for number, row in enumerate(rows):
            ids_bt[number, : len(row)], segments_bt[number, : len(row)] = row, 1
        places_n2 = np.zeros((padded(len(places)), 2), np.int32)
        places_n2[: len(places)] = places
        return np.asarray(log_next_ids(params, ids_bt, segments_bt, places_n2))[: len(places)]

    return next_ids


def _log_next_ids(model: NextIdModel, ids_bt: jax.Array, segments_bt: jax.Array, places_n2: jax.Array) -> jax.Array:
    """f32[N, V], log probabilities of the ids behind N places (row, position)."""
    hidden_btd = model(ids_bt, segments_bt, jnp.broadcast_to(jnp.arange(ids_bt.shape[1]), ids_bt.shape))
    return jax.nn.log_softmax(model.logits(hidden_btd[places_n2[:, 0], places_n2[:, 1]]))[:, : model.vocab_size]


def _shared_rows(sequences: Sequence[Ids]) -> tuple[list[Ids], list[tuple[int, int]]]:
    """Those sequences that none of the others begins with, and where each ends: (row, position)."""
    rows: list[Ids] = []
    place_of = {}
    for ids in sorted(set(sequences), reverse=True):  # what begins with some ids comes just before them
        if not rows or rows[-1][: len(ids)] != ids:
            rows.append(ids)
        place_of[ids] = len(rows) - 1, len(ids) - 1
    return rows, [place_of[ids] for ids in sequences]


def byte_model(loaded: LoadedRun) -> ByteModel:
    """A run's model of bytes. Raises UserError where its model or its representation has none."""
    setup, recipe = loaded.setup, loaded.setup.recipe
    if recipe.model.family != "decoder":
        raise UserError(
            f"{recipe.name} trained an {recipe.model.family}, which gives no next id; only decoders have probabilities"
            " of bytes"
        )
    representation = setup.representation
    return ByteModel(
        covers_of(representation),
        make_next_ids(
            setup.program.model_def,
            loaded.params,
            setup.mesh,
            representation.eod_id,
            recipe.data.sequence_length,
            recipe.data.piece_length,
            recipe.kernels,
        ),
    )


def average(distributions: Sequence[np.ndarray]) -> np.ndarray:
    """An ensemble's next byte: the mean of several f64[257], each with the same weight."""
    return np.mean(distributions, axis=0)


def score_bytes(
    documents: Sequence[bytes], models: Sequence[ByteModel], on_progress: Callable[[int], None] = lambda num_bytes: None
) -> np.ndarray:
    """f64[M + 1], the nats of all documents, ends included, under each of M models and under their `average`."""
    nats, num_bytes = np.zeros(len(models) + 1), 0
    for document in documents:
        for byte, *distributions in zip([*document, END], *(model.along(document) for model in models), strict=True):
            nats -= np.log([distribution[byte] for distribution in [*distributions, average(distributions)]])
            on_progress(num_bytes := num_bytes + (byte != END))
    return nats


def evaluate_bytes(
    run_dirs: Sequence[str],
    corpus: str | None,
    max_bytes: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Scores some held-out text byte by byte with one run or more, and writes `exact_bytes.json` into the first one's
    folder.

    Args:
      run_dirs: the runs' folders.
      corpus: a corpus store in place of the first run's, whose held-out text all of them score.
      max_bytes: how much text (`data.held_out.fixed_subset`).
      on_progress: called with the bytes scored and the bytes there are.

    Raises:
      UserError: a folder is no run with next ids whose bytes are known; no text is held out.
    """
    if max_bytes < 1:
        raise UserError(f"--max-bytes is {max_bytes}; it must be at least 1")
    runs = [load_run(run_dir) for run_dir in run_dirs]
    models, corpora = [byte_model(loaded) for loaded in runs], runs[0].open_corpora(corpus)
    documents = fixed_subset(held_out_text(runs, corpora), max_bytes)
    num_bytes = sum(map(len, documents))
    *nats, ensemble_nats = score_bytes(documents, models, lambda done: on_progress(done, num_bytes))
    result = {
        "runs": [
            {
                "run": run_dir,
                "step": loaded.counters["step"],
                "bits_per_byte": bits_per_byte(run_nats, num_bytes),
                "bits_per_byte_of_ids": _score_ids(loaded.setup, documents, loaded.params),
            }
            for run_dir, loaded, run_nats in zip(run_dirs, runs, nats, strict=True)
        ],
        "ensemble_bits_per_byte": bits_per_byte(ensemble_nats, num_bytes),
        "num_bytes": num_bytes,
        "num_documents": len(documents),
        "corpus_content_hash": corpora_hash(corpora),
    }
    write_json(RunFolder(run_dirs[0]).exact_bytes, result)
    return result


def _score_ids(setup: Setup, documents: Sequence[bytes], params: Any) -> float:
    """Bits per byte of the documents' own ids, as `toklab eval` gives them."""
    return score_run_documents(
        setup, documents, make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels), params
    ).bits_per_byte
