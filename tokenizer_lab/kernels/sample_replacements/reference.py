"""What `sample_replacements` means, in plain jnp with every logit in memory, and the noise of all implementations.

The noise of (position, id) is a pure function of the position's seed and the id, so that whoever computes a sample
draws the same one. Its bits are Threefry-2x32 with 13 rounds, the fewest that pass BigCrush (Salmon+ 2011, "Parallel
random numbers: as easy as 1, 2, 3"): the position's seed is the key and the id the counter, so even seeds that only
count positions give independent noise. A call gives two words of 32 bits: the ids i and i + 128 of every 256 share it.

Axes: n = positions, v = vocabulary ids, d = the width of hidden states.
"""

import jax
import jax.numpy as jnp

PAIR_DISTANCE = 128  # of two ids that share a call of `threefry`: a whole tile of lanes or sublanes on TPUs
NUM_ROUNDS = 13
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
KEY_PARITY = 0x1BD11BDA


def sample_replacements(
    x_nd: jax.Array,
    table_vd: jax.Array,
    bias_v: jax.Array,
    labels_n: jax.Array,
    seeds_n2: jax.Array,
    *,
    vocab_size: int,
    temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The masked language model's loss and replacements drawn from it (ELECTRA: Clark+ 2020, arXiv 2003.10555, sec. 3).

    The logits of a position are table @ x + bias over the first `vocab_size` ids. A sample is the id with the largest
    logit / temperature + Gumbel noise, the lower of equals, which is distributed as softmax(logits / temperature)
    (Gumbel 1954; Maddison+ 2014, arXiv 1411.0030). It carries no gradient; the loss does not know the temperature.

    Args:
      x_nd: f[N, D] hidden states of the masked positions.
      table_vd: f[V, D] with V >= vocab_size; the rows behind `vocab_size` only pad it. Multiplied in x's type.
      bias_v: f[V].
      labels_n: i32[N] in [0, vocab_size); the loss of another label is infinite.
      seeds_n2: u32[N, 2], a position's randomness; positions of equal seeds draw with equal noise.

    Returns:
      nats_n f32[N], -log p(label); logz_n f32[N], the log of the softmax's denominator; sample_n i32[N].
    """
    table_vd = table_vd.astype(x_nd.dtype)
    logits_nv = jnp.einsum("nd,vd->nv", x_nd, table_vd, preferred_element_type=jnp.float32) + bias_v.astype(jnp.float32)
    ids_1v = jnp.arange(table_vd.shape[0])[None]
    logits_nv = jnp.where(ids_1v < vocab_size, logits_nv, -jnp.inf)
    logz_n = jax.nn.logsumexp(logits_nv, axis=1)
    label_logit_n = jnp.max(jnp.where(ids_1v == labels_n[:, None], logits_nv, -jnp.inf), axis=1)
    noise_nv = gumbel(random_bits(seeds_n2[:, :1], seeds_n2[:, 1:], ids_1v))
    scores_nv = jax.lax.stop_gradient(logits_nv) * (1 / temperature) + noise_nv
    return logz_n - label_logit_n, logz_n, jnp.argmax(scores_nv, axis=1).astype(jnp.int32)


def random_bits(seed0: jax.Array, seed1: jax.Array, ids: jax.Array) -> jax.Array:
    """The 32 random bits, as u32, of each position and id; the arguments broadcast."""
    first, second = threefry(seed0, seed1, (ids & ~PAIR_DISTANCE).astype(jnp.uint32), jnp.uint32(0))
    return jnp.where((ids & PAIR_DISTANCE) == 0, first, second)


def threefry(key0: jax.Array, key1: jax.Array, counter0: jax.Array, counter1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two random words, u32, of two words of key and two of counter; the arguments are u32 and broadcast."""
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(KEY_PARITY))
    first, second = counter0 + key0, counter1 + key1
    for i in range(NUM_ROUNDS):
        first = first + second
        rotation = ROTATIONS[i % len(ROTATIONS)]
        second = (second << rotation | second >> 32 - rotation) ^ first
        if i % 4 == 3:
            injection = i // 4 + 1
            first = first + keys[injection % 3]
            second = second + (keys[(injection + 1) % 3] + jnp.uint32(injection))
    return first, second


def gumbel(bits: jax.Array) -> jax.Array:
    """Standard Gumbel noise -log(-log(u)), f32 in [-2.9, 16.7], of u32 random bits.

    u is an odd multiple of 2**-24, which float32 holds exactly: with one bit more the largest would round to 1, whose
    noise is infinite and always wins.
    """
    uniform = (2 * (bits >> 9).astype(jnp.int32) + 1).astype(jnp.float32) * 2.0**-24
    return -jnp.log(-jnp.log(uniform))
