"""What `linear_cross_entropy` means, in plain jnp with every logit in memory."""

import jax
import jax.numpy as jnp


def linear_cross_entropy(
    x_btd: jax.Array, table_vd: jax.Array, bias_v: jax.Array, labels_bt: jax.Array, *, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of labels under softmax(x @ table.T + bias), over the first `vocab_size` of the table's
    rows.

    Args:
      x_btd: f[B, T, D] hidden states; or of any other axes before the last, as labels and results then have too.
      table_vd: f[V, D] with V >= vocab_size; the rows behind `vocab_size` only pad it and may hold anything. Multiplied
        in x's type.
      bias_v: f[V]; an id whose bias is -inf is none.
      labels_bt: i32[B, T] in [0, vocab_size), also where the loss is not asked for: the nats of another label are
        infinite, never NaN.

    Returns:
      nats_bt and logz_bt, f32[B, T]: -log p(label), and the log of the softmax's denominator (for a z-loss).
    """
    is_id_v = jnp.arange(len(table_vd)) < vocab_size
    # Zeros where no ids are: zero times what is there might be no number.
    table_vd = jnp.where(is_id_v[:, None], table_vd, 0).astype(x_btd.dtype)
    # Times the table transposed: for its gradient by einsum, XLA's CPU compiler copies that of the logits transposed.
    logits_btv = jnp.matmul(x_btd, table_vd.T, preferred_element_type=jnp.float32) + bias_v.astype(jnp.float32)
    if vocab_size < len(table_vd):
        logits_btv = jnp.where(is_id_v, logits_btv, -jnp.inf)
    logz_bt = jax.nn.logsumexp(logits_btv, axis=-1)
    # By the labels' rows of the table: taken out of the logits, their gradient would be scattered into zeros as large
    # as these.
    rows_btd, biases_bt = (jnp.take(x, labels_bt, axis=0, mode="clip") for x in (table_vd, bias_v.astype(jnp.float32)))
    label_logits_bt = jnp.einsum("...d,...d->...", x_btd, rows_btd, preferred_element_type=jnp.float32) + biases_bt
    label_logits_bt = jnp.where((0 <= labels_bt) & (labels_bt < vocab_size), label_logits_bt, -jnp.inf)
    return logz_bt - label_logits_bt, logz_bt
