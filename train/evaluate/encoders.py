"""How well encoders predict and detect on held-out text: figures over all chosen positions, and over all positions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from data.documents import Documents
from data.encoder_rows import held_out_batches
from train.model_function import jit_of_weights
from train.objectives.losses import binary_entropy
from train.setup import Setup
from train.sharding import put_batch


def make_judge(setup: Setup) -> Callable[..., dict[str, Any]]:
    """A function (documents, params) -> `figures` of held-out documents, and their `num_bytes`."""
    score = make_scorer(setup)
    return lambda documents, params: _judge(setup, score, documents, params, lambda num_bytes: None)[0]


def make_scorer(setup: Setup) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """The jitted function (params, batch) -> what the objective scores, the weights of chosen positions, and segment
    ids."""
    objective = setup.recipe.objective
    assert objective.model_family == "encoder"

    def score(model, batch):
        batch = objective.draw(model, batch)
        return objective.score(model, batch) | {"weights": batch["chosen_weights"], "segment_ids": batch["segment_ids"]}

    return jit_of_weights(score, setup.program.model_def, setup.mesh, setup.recipe.kernels)


def _judge(
    setup: Setup,
    score: Callable[..., Any],
    documents: Sequence[bytes] | Documents,
    params: Any,
    on_progress: Callable[[int], None],
) -> tuple[dict[str, Any], np.ndarray]:
    """Figures with `num_bytes`, and how often each id is in the text, i64[V]."""
    recipe, representation = setup.recipe, setup.representation
    scored, num_bytes, id_counts = [], 0, np.zeros(representation.vocab_size, np.int64)
    texts = (documents[number] for number in range(len(documents)))
    for batch, bytes_here in held_out_batches(
        texts, representation, batch_rows=recipe.evaluation.batch_rows, sequence_length=recipe.data.sequence_length
    ):
        scored.append(only_real(jax.device_get(score(params, put_batch(setup.mesh, batch)))))
        ids = batch["ids"][batch["segment_ids"] > 0]
        id_counts += np.bincount(ids[ids < len(id_counts)], minlength=len(id_counts))
        num_bytes += bytes_here
        on_progress(num_bytes)
    together = {name: np.concatenate([part[name] for part in scored]) for name in scored[0]}
    return figures(together) | {"num_bytes": num_bytes}, id_counts


def only_real(scored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was scored at positions that count, in one dimension."""
    chosen, real = scored.pop("weights") > 0, scored.pop("segment_ids") > 0
    return {name: value[chosen if name.startswith("predicted") else real] for name, value in scored.items()}


def figures(scored: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Means over positions, and the area under the detector's ROC curve; None where there is nothing to tell from.

    Args:
      scored: `predicted_nats` and `predicted_right` of chosen positions; `logits` and `replaced` of all; or one of the
        two pairs.
    """
    result: dict[str, float | None] = {}
    if "logits" in scored:
        logits, replaced = scored["logits"].astype(np.float64), scored["replaced"]
        nats = np.logaddexp(0, np.where(replaced, -logits, logits))
        result |= {
            "detection_nats": _mean(nats),
            "always_real_nats": binary_entropy(_mean(replaced)),
            "replaced_share": _mean(replaced),
            "auc": area_under_curve(logits, replaced),
        }
    if "predicted_nats" in scored:
        result |= {
            "predicted_nats": _mean(scored["predicted_nats"]),
            "predicted_right": _mean(scored["predicted_right"]),
        }
    return result


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The chance that a true position has the higher score of two, ties counted half (Mann & Whitney 1947)."""
    import scipy.stats  # as long to import as all the rest; a training of decoders needs none of it

    num_true, num_false = int(labels.sum()), int((~labels).sum())
    if not num_true or not num_false:
        return None
    rank_sum = scipy.stats.rankdata(scores)[labels].sum()
    return float((rank_sum - num_true * (num_true + 1) / 2) / (num_true * num_false))


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None


def summarize(setup: Setup, documents: Any, params: Any, on_progress: Callable[[int], None]) -> dict[str, Any]:
    """The numbers of an encoder's `eval.json`, which has no bits per byte; and `id_counts`."""
    numbers, id_counts = _judge(setup, make_scorer(setup), documents, params, on_progress)
    num_bytes = numbers.pop("num_bytes")
    if num_bytes != sum(part.num_bytes for part in documents.parts):  # not an assert, which `python -O` leaves out
        raise AssertionError("not every byte was read exactly once")
    return {
        "bits_per_byte": None,
        "interval_95": None,
        "num_bytes": num_bytes,
        "num_documents": len(documents),
        "by_domain": {},
        "encoder": numbers,
        "id_counts": id_counts,
    }
