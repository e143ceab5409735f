"""How likely a run's decoder finds texts, and how one text goes on with another, wherever a text ends.

The probability of a text is that of all documents that begin with it: the ids that are certain, times the share of the
choices for the next ids that go on with the text's end (`Representation.open_prompt`). Of bytes and equal-info windows
that is exact, up to ids that encoding never gives (another division of the text into windows, the end of a document
inside one), on which a trained model sets next to nothing. Subwords count with the division that the text has on its
own.

The log-likelihood of a continuation is log p(context + continuation) - log p(context). Where the ids of the context are
also the first ids of the whole, as with bytes, that is the usual sum over the ids behind the context's; where an id
lies across the border, every byte of the continuation still counts once, and what continuations of one context are
compared by is right.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from models.next_id import NextIdModel
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation
from train.model_function import jit_of_weights
from train.setup import LoadedRun
from train.sharding import put_batch

Interval = tuple[int, int]  # a first and a last id
Box = tuple[Interval, ...]  # for each next id, those it may be; whatever comes behind

_SMALLEST_WIDTH = 128
_POSITIONS_AT_ONCE = 16  # whose logits are in memory


def boxes(low: Sequence[int], high: Sequence[int], last: int) -> list[Box]:
    """Boxes that together hold each tuple from `low` to `high`, in the order of tuples of ids from 0 to `last`,
    once."""
    if all(id_ == 0 for id_ in low) and all(id_ == last for id_ in high):
        return [()]
    if len(low) == 1:
        return [((low[0], high[0]),)]
    if low[0] == high[0]:
        return [((low[0], low[0]), *rest) for rest in boxes(low[1:], high[1:], last)]
    at_low = [((low[0], low[0]), *rest) for rest in boxes(low[1:], [last] * (len(high) - 1), last)]
    at_high = [((high[0], high[0]), *rest) for rest in boxes([0] * (len(low) - 1), high[1:], last)]
    between = [((low[0] + 1, high[0] - 1),)] if low[0] + 1 < high[0] else []
    return at_low + between + at_high


def beginnings(representation: Representation, text: bytes) -> tuple[int, list[Box]]:
    """How many ids of a text are certain, and the boxes of ids, from a document's first one on, of all documents that
    begin with it."""
    certain, low, high = representation.open_prompt(text)
    fixed = tuple((id_, id_) for id_ in certain.tolist())
    return len(fixed), [fixed + box for box in boxes(low, high, representation.eod_id - 1)]


def score_intervals(model: NextIdModel, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """For each position, log p(`first` <= next id <= `last`) f32[B, T], and whether the likeliest id is one of them
    bool[B, T]."""
    hidden_btd = model(batch["ids"], batch["segment_ids"], batch["positions"])

    def at_position(inputs):
        hidden_bd, first_b, last_b = inputs
        logits_bv = model.logits(hidden_bd)
        ids_v = jnp.arange(logits_bv.shape[1])
        inside_bv = (ids_v >= first_b[:, None]) & (ids_v <= last_b[:, None])
        likeliest_b = jnp.argmax(logits_bv, axis=1)
        log_share_b = jax.nn.logsumexp(jnp.where(inside_bv, logits_bv, -jnp.inf), axis=1) - jax.nn.logsumexp(
            logits_bv, axis=1
        )
        return log_share_b, (likeliest_b >= first_b) & (likeliest_b <= last_b)

    positions_first = [x.swapaxes(0, 1) for x in (hidden_btd, batch["first"], batch["last"])]
    return jax.tree.map(jnp.transpose, jax.lax.map(at_position, tuple(positions_first), batch_size=_POSITIONS_AT_ONCE))


class Likelihoods:
    """Scores texts with a run's decoder.

    Attributes:
      num_cut: how many of the texts so far were cut from their left.
    """

    def __init__(self, loaded: LoadedRun):
        setup = loaded.setup
        if setup.recipe.model.family != "decoder":
            raise UserError(
                f"{setup.recipe.name} is a run of an {setup.recipe.model.family}, which gives no next id; only decoders"
                " say how likely a text is"
            )
        self._loaded, self._representation = loaded, setup.representation
        self._length, self.num_cut = setup.recipe.data.trained_length, 0
        self._score = jit_of_weights(score_intervals, setup.program.model_def, setup.mesh, setup.recipe.kernels)

    def continuations(
        self, pairs: Sequence[tuple[bytes, bytes]], on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation), its log-likelihood in nats, and whether the likeliest ids say just that.

        A text of more ids than the run's rows is cut from its left. Raises UserError where that cuts into the
        continuation.
        """
        questions = []
        rows: dict[tuple[int, Box], None] = {}
        for context, continuation in pairs:
            certain, before = beginnings(self._representation, context)
            _, whole = beginnings(self._representation, context + continuation)
            start = max(0, max(map(len, whole)) - self._length)
            shared = min(certain, _num_shared(before[0], whole[0]))
            if start > shared:
                raise UserError(
                    f"a continuation has {max(map(len, whole)) - shared} ids and the run's rows take {self._length}: "
                    f"{continuation[:80].decode('utf-8', 'replace')!r}; take it out, or use a run with longer rows"
                )
            self.num_cut += start > 0
            questions.append((start, shared, before, whole))
            rows |= dict.fromkeys((start, box) for box in before + whole if len(box) > start)
        scores = self._score_rows(list(rows), on_progress)
        return [self._answer(scores, *question) for question in questions]

    @staticmethod
    def _answer(
        scores: dict[tuple[int, Box], tuple[float, np.ndarray]],
        start: int,
        shared: int,
        before: list[Box],
        whole: list[Box],
    ) -> tuple[float, bool]:
        nothing = 0.0, np.ones(0, bool)
        log_whole, log_before = (
            logsumexp([scores.get((start, box), nothing)[0] for box in part]) for part in (whole, before)
        )
        said = any(scores.get((start, box), nothing)[1][shared - start :].all() for box in whole)
        return float(log_whole - log_before), bool(said)

    def _score_rows(
        self, rows: list[tuple[int, Box]], on_progress: Callable[[int, int], None]
    ) -> dict[tuple[int, Box], tuple[float, np.ndarray]]:
        """(start, box) -> the log-probability of the box's ids from `start` on, and at which of them the likeliest id
        is one of the box."""
        setup, scores = self._loaded.setup, {}
        batch_rows = setup.recipe.evaluation.batch_rows
        rows = sorted(rows, key=lambda row: len(row[1]) - row[0])
        for at in range(0, len(rows), batch_rows):
            part = rows[at : at + batch_rows]
            width = _SMALLEST_WIDTH
            while width < len(part[-1][1]) - part[-1][0]:
                width *= 2
            batch = _batch(part, batch_rows, min(width, self._length), self._representation.eod_id)
            log_share_bt, said_bt = map(np.asarray, self._score(self._loaded.params, put_batch(setup.mesh, batch)))
            for number, (start, box) in enumerate(part):
                count = len(box) - start
                scores[start, box] = float(log_share_bt[number, :count].sum(dtype=np.float64)), said_bt[number, :count]
            on_progress(len(scores), len(rows))
        return scores


def _num_shared(first: Box, second: Box) -> int:
    """How many intervals two boxes begin with alike."""
    return next((number for number, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


def _batch(rows: Sequence[tuple[int, Box]], batch_rows: int, width: int, eod_id: int) -> dict[str, Any]:
    batch = {name: np.zeros((batch_rows, width), np.int32) for name in ("ids", "first", "last", "segment_ids")}
    for number, (start, box) in enumerate(rows):
        where = number, slice(len(box) - start)
        first, last = np.array(box[start:], np.int32).T
        batch["ids"][where] = [eod_id if start == 0 else box[start - 1][0], *first[:-1]]
        batch["first"][where], batch["last"][where], batch["segment_ids"][where] = first, last, 1
    return batch | {"positions": np.broadcast_to(np.arange(width, dtype=np.int32), (batch_rows, width))}
