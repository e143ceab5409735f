"""What `linear_cross_entropy` means, in plain jnp with every logit in memory."""

import jax
import jax.numpy as jnp


def linear_cross_entropy(
    x_btd: jax.Array, table_vd: jax.Array, bias_v: jax.Array, labels_bt: jax.Array, *, vocab_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of labels under softmax(x @ table.T + bias), over the first `vocab_size` of the table's rows.

    Args:
      x_btd: f[B, T, D] hidden states.
      table_vd: f[V, D] with V >= vocab_size; the rows behind `vocab_size` only pad it and may hold anything. Multiplied in x's type.
      bias_v: f[V]; an id whose bias is -inf is none.
      labels_bt: i32[B, T] in [0, vocab_size), also where the loss is not asked for: the nats of another label are infinite, never NaN.

    Returns:
      nats_bt and logz_bt, f32[B, T]: -log p(label), and the log of the softmax's denominator (for a z-loss).
    """
    ids_v = jnp.arange(table_vd.shape[0])
    table_vd = jnp.where(ids_v[:, None] < vocab_size, table_vd, 0).astype(x_btd.dtype)  # zero times what is there might be no number
    logits_btv = jnp.einsum("btd,vd->btv", x_btd, table_vd, preferred_element_type=jnp.float32) + bias_v.astype(jnp.float32)
    logits_btv = jnp.where(ids_v < vocab_size, logits_btv, -jnp.inf)
    logz_bt = jax.nn.logsumexp(logits_btv, axis=-1)
    label_logits_bt = jnp.take_along_axis(logits_btv, labels_bt[..., None], axis=-1, mode="clip")[..., 0]
    label_logits_bt = jnp.where((0 <= labels_bt) & (labels_bt < vocab_size), label_logits_bt, -jnp.inf)
    return logz_bt - label_logits_bt, logz_bt
