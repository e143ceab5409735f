"""What `linear_cross_entropy` means, in plain jnp with every logit in memory."""

import jax
import jax.numpy as jnp


def linear_cross_entropy(
    x_btd: jax.Array, table_vd: jax.Array, labels_bt: jax.Array, bias_v: jax.Array | None = None, *, vocab_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of labels under softmax(x @ table.T + bias), over the first `vocab_size` of the table's rows.

    Args:
      x_btd: f[B, T, D] hidden states.
      table_vd: f[V, D] with V >= vocab_size; the rows behind `vocab_size` only pad it.
      labels_bt: i32[B, T] in [0, vocab_size).
      bias_v: f[V], or none.

    Returns:
      nats_bt and logz_bt, f32[B, T]: -log p(label), and the log of the softmax's denominator (for a z-loss).
    """
    logits_btv = jnp.einsum("btd,vd->btv", x_btd, table_vd.astype(x_btd.dtype), preferred_element_type=jnp.float32)
    logits_btv = logits_btv if bias_v is None else logits_btv + bias_v
    logits_btv = jnp.where(jnp.arange(table_vd.shape[0]) < vocab_size, logits_btv, -jnp.inf)
    logz_bt = jax.nn.logsumexp(logits_btv, axis=-1)
    label_logits_bt = jnp.take_along_axis(logits_btv, labels_bt[..., None], axis=-1)[..., 0]
    return logz_bt - label_logits_bt, logz_bt
