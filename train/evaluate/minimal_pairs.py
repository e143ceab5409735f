"""Minimal pairs such as BLiMP's (Warstadt et al. 2020, arXiv 1912.00582): how often a run gives the better sentence the
better score.

The score is what the run's objective can say of a sentence: a decoder's log-likelihood; the sum of the
log-probabilities of its ids, each masked in its turn, of a model of masked ids (pseudo-likelihood; Salazar et al. 2020,
arXiv 1910.14659); or the sum of a detector's log-probabilities that an id is real.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath

from data.encoded import encode
from data.encoder_rows import RowBuilder
from models.encoder import Encoder
from tokenizer_lab.errors import FROM_0, UserError, check_numbers, reason
from tokenizer_lab.files import write_json
from tokenizer_lab.representation import MASK
from train.evaluate.bits_per_byte import make_scorer, score_run_documents
from train.model_function import jit_of_weights
from train.run.folder import RunFolder
from train.setup import LoadedRun, load_run
from train.sharding import put_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimalPairsOptions:
    """Score pairs of a better and a worse sentence."""

    run: tyro.conf.Positional[epath.Path]
    """The run's folder."""
    pairs: pathlib.Path
    """A .jsonl file with the fields 'sentence_good' and 'sentence_bad', or a folder of them, one for each paradigm."""
    batch_rows: int | None = None
    """Rows scored at a time; changes nothing but the memory it takes. By default those of the recipe's evaluations."""
    max_pairs: int = 0
    """Of each paradigm, its first ones; 0: all. Masking one id after the other takes as many passes as a sentence has
    ids."""

    def __post_init__(self) -> None:
        check_numbers(self, "--", max_pairs=FROM_0)


def score_minimal_pairs(
    options: MinimalPairsOptions, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Scores every pair and writes `blimp.json` into the run's folder: the share of pairs, by paradigm and their mean,
    with the better sentence's score above the other's, a tie counted half. Raises UserError."""
    paradigms = read_pairs(options.pairs, options.max_pairs)
    loaded = load_run(str(options.run), options.batch_rows)
    name, score = choose_score(loaded)
    by_paradigm, done, total = {}, 0, sum(map(len, paradigms.values()))
    for paradigm, pairs in paradigms.items():
        by_paradigm[paradigm] = share_told_apart(score, pairs)
        done += len(pairs)
        on_progress(done, total)
    result = {
        **loaded.counters,
        "score": name,
        "accuracy": float(np.mean(list(by_paradigm.values()))),
        "num_pairs": total,
        "by_paradigm": by_paradigm,
    }
    write_json(RunFolder(options.run).minimal_pairs, result)
    return result


def share_told_apart(score: Callable[[Sequence[bytes]], np.ndarray], pairs: Sequence[tuple[bytes, bytes]]) -> float:
    """The share of the pairs of which the first text has the better score, a tie counted half."""
    first, second = np.split(score([text for column in zip(*pairs) for text in column]), 2)
    return float(np.mean((first > second) + 0.5 * (first == second)))


def read_pairs(path: pathlib.Path, max_pairs: int) -> dict[str, list[tuple[bytes, bytes]]]:
    """Better and worse sentence of each pair, by paradigm. Raises UserError naming file and line."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    paradigms = {file.stem: _read_file(file)[: max_pairs or None] for file in files}
    if not any(paradigms.values()):
        raise UserError(
            f"{path} has no pairs; give a .jsonl file with 'sentence_good' and 'sentence_bad' in each line, or a folder"
            " of such files"
        )
    return {name: pairs for name, pairs in paradigms.items() if pairs}


def _read_file(path: pathlib.Path) -> list[tuple[bytes, bytes]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
                pairs.append((record["sentence_good"].encode(), record["sentence_bad"].encode()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}: no object with texts 'sentence_good' and 'sentence_bad'"
                    f" ({type(error).__name__}: {reason(error)})"
                ) from error
    return pairs


def choose_score(loaded: LoadedRun) -> tuple[str, Callable[[Sequence[bytes]], np.ndarray]]:
    """What a run can say of sentences, and the function texts -> f64[n] that says it."""
    setup = loaded.setup
    if setup.recipe.model.family == "decoder":
        score = make_scorer(setup.program.model_def, setup.mesh, setup.recipe.kernels)
        return "log-likelihood", lambda texts: -score_run_documents(setup, texts, score, loaded.params).nats
    objective = setup.recipe.objective
    assert objective.model_family == "encoder"
    if objective.heads.detects:
        return "detection", _row_scorer(loaded, detected_real, unmasked)
    return "pseudo-likelihood", _row_scorer(loaded, masked_likelihood, masked_in_turn)


def detected_real(model: Encoder, batch: dict[str, jax.Array]) -> jax.Array:
    """The sum of log p(real) over a row's positions, marks included as in training, f32[B]."""
    assert model.detection_head is not None
    logits_bt = model.detection_head(model(batch["ids"], batch["segment_ids"], batch["positions"], batch["types"]))
    return jnp.sum(jnp.where(batch["segment_ids"] > 0, jax.nn.log_sigmoid(-logits_bt), 0), axis=1)


def masked_likelihood(model: Encoder, batch: dict[str, jax.Array]) -> jax.Array:
    """log p(label) at the position that is masked, f32[B]."""
    assert model.vocab_head is not None
    hidden_btd = model(batch["ids"], batch["segment_ids"], batch["positions"], batch["types"])
    x_be = model.vocab_head(jnp.take_along_axis(hidden_btd, batch["asked"][:, None, None], axis=1)[:, 0])
    logits_bv = jnp.einsum(
        "be,ve->bv", x_be, model.embeddings.output_table.astype(x_be.dtype), preferred_element_type=jnp.float32
    )
    logits_bv = (logits_bv + model.vocab_head.bias[...])[:, : model.vocab_size]
    return jnp.take_along_axis(jax.nn.log_softmax(logits_bv), batch["label"][:, None], axis=1)[:, 0]


Row = dict[str, np.ndarray]


def unmasked(row: Row, mask_id: int) -> Iterator[Row]:
    del mask_id
    yield row


def masked_in_turn(row: Row, mask_id: int) -> Iterator[Row]:
    """A row for each id of a sentence, which is masked there."""
    for position in range(1, int(row["segment_ids"].sum()) - 1):
        ids = row["ids"].copy()
        ids[position] = mask_id
        yield row | {"ids": ids, "asked": np.int32(position), "label": row["ids"][position]}


def _row_scorer(
    loaded: LoadedRun, score_rows: Callable[..., Any], expand: Callable[[Row, int], Iterator[Row]]
) -> Callable[[Sequence[bytes]], np.ndarray]:
    """A function texts -> the sums f64[n] of what `score_rows` gives for the rows that `expand` makes of each text."""
    setup, recipe = loaded.setup, loaded.setup.recipe
    vocab_size, length, batch_rows = (
        setup.representation.vocab_size,
        recipe.data.sequence_length,
        recipe.evaluation.batch_rows,
    )
    score = jit_of_weights(score_rows, setup.program.model_def, setup.mesh, recipe.kernels)

    def rows_of(texts: Sequence[bytes]) -> Iterator[tuple[int, Row]]:
        for number, (ids, _) in enumerate(encode(setup.representation, texts)):
            if len(ids) > length - 2:
                raise UserError(
                    f"a sentence has {len(ids)} ids and the run's rows take {length - 2}:"
                    f" {texts[number][:80].decode('utf-8', 'replace')!r}; take it out, or use a run with longer rows"
                )
            builder = RowBuilder(vocab_size, length)
            builder.add(ids)
            for row in expand(builder.arrays, vocab_size + MASK):
                yield number, row

    def score_texts(texts: Sequence[bytes]) -> np.ndarray:
        totals = np.zeros(len(texts))
        waiting: list[tuple[int, Row]] = []

        def flush() -> None:
            owners, rows = zip(*waiting)
            rows = rows + rows[-1:] * (batch_rows - len(rows))
            batch = put_batch(setup.mesh, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
            np.add.at(totals, np.array(owners), np.asarray(score(loaded.params, batch), np.float64)[: len(owners)])
            waiting.clear()

        for numbered in rows_of(texts):
            waiting.append(numbered)
            if len(waiting) == batch_rows:
                flush()
        if waiting:
            flush()
        return totals

    return score_texts
