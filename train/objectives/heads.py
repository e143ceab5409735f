"""Passes through an encoder and its heads.

Legend: B batch, T positions, N positions chosen in a row, D width of the model, E width of the embedding tables, V ids.
"""

import jax
import jax.numpy as jnp

from models.dropout import Dropout, row_dropout
from models.encoder import Encoder
from train.objectives.objective import Batch, per_row


def predicted(model: Encoder, batch: Batch, dropout: Dropout, *, by_generator: bool = False) -> jax.Array:
    """What is projected onto the vocabulary at the chosen positions, f[B, N, E]."""
    hidden_btd = model(
        batch["inputs"], batch["segment_ids"], batch["positions"], batch["types"], dropout, by_generator=by_generator
    )
    assert model.vocab_head is not None, "the objective's heads do not predict"
    return model.vocab_head(jnp.take_along_axis(hidden_btd, batch["chosen"][..., None], axis=1))


def detected(model: Encoder, batch: Batch, ids_bt: jax.Array, dropout: Dropout) -> jax.Array:
    """Logits f32[B, T] for "this id was replaced"."""
    assert model.detection_head is not None, "the objective's heads do not detect"
    return model.detection_head(model(ids_bt, batch["segment_ids"], batch["positions"], batch["types"], dropout))


def dropout_of(model: Encoder, batch: Batch | None, place: int) -> Dropout:
    """Dropout of one pass through a model; none where there is no batch to train on."""
    if batch is None or not model.config.dropout:
        return row_dropout(jnp.zeros(1, jnp.uint32), 0.0)
    return row_dropout(
        per_row(batch["row_seeds"], place, lambda key: jax.random.bits(key, (), jnp.uint32)), model.config.dropout
    )


def score_predictions(model, batch, by_generator=False):
    """What held-out text is judged by: `predicted_nats` f32[B, N] and whether the likeliest id is right,
    `predicted_right`; a row at a time, as logits of all would be large."""
    x_bne = predicted(model, batch, dropout_of(model, None, 0), by_generator=by_generator)
    table_ve, bias_v = model.embeddings.output_table, model.vocab_head.bias[...]

    def score_row(row):
        x_ne, labels_n = row
        logits_nv = (
            jnp.einsum("ne,ve->nv", x_ne, table_ve.astype(x_ne.dtype), preferred_element_type=jnp.float32) + bias_v
        )
        logits_nv = logits_nv[:, : model.vocab_size]
        label_logits_n = jnp.take_along_axis(logits_nv, labels_n[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits_nv, axis=-1) - label_logits_n, jnp.argmax(logits_nv, axis=-1) == labels_n

    nats_bn, right_bn = jax.lax.map(score_row, (x_bne, batch["labels"]))
    return {"predicted_nats": nats_bn, "predicted_right": right_bn}
