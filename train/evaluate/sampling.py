"""Text from a trained model: jitted sampling with a key/value cache.

A prompt may end anywhere. What that means is the representation's (`open_prompt`): with bytes nothing, as an id never
depends on what follows it. With equal-info windows the prompt's last window may become longer, so the model draws it
among the windows that begin with the rest of the prompt: exact. With subwords the prompt's ids are taken as they stand,
even if training text would have had a longer id at its end ("hel" + "lo"), so that a prompt cut inside a word is
continued from a division into ids that the model has seldom seen; end prompts where words end, or draw byte by byte
(`sample_bytes`), which is exact wherever a prompt ends.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import read_json, write_json
from tokenizer_lab.representation import Representation
from train.evaluate.byte_probabilities import END, NUM_NEXT, ByteModel, byte_model
from train.run.folder import RunFolder
from train.setup import load_run


def check_sampling(prompt: bytes, max_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raises UserError for options that no text can be drawn with."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character, e.g. --prompt 'The '")
    if max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}; it must be at least 1")
    if not temperature >= 0:
        raise UserError(f"--temperature is {temperature}; it is 0 (always the likeliest) or more")
    if top_k < 0:
        raise UserError(f"--top-k is {top_k}; it is 0 (all ids) or more")
    if not 0 < top_p <= 1:
        raise UserError(f"--top-p is {top_p}; it is more than 0 and at most 1 (all ids)")


def sample_text(
    model_def: Any,
    params: Any,
    representation: Representation,
    prompt: bytes,
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> bytes:
    """Bytes that the model continues `prompt` with, until the document ends or `max_tokens` ids are drawn.

    Args:
      model_def: `nnx.GraphDef` of the model.
      params: its weights.
      representation: the one it was trained on.
      prompt: at least one byte.
      max_tokens: ids to draw at most.
      temperature: logits are divided by it; 0 takes the likeliest id.
      top_k: only the k likeliest ids; 0 for all.
      top_p: only the likeliest ids that together hold this much probability (Holtzman et al. 2020, arXiv 1904.09751,
        section 3.1).
      seed: the same seed draws the same text.

    Raises:
      UserError: an option is out of range.
    """
    check_sampling(prompt, max_tokens, temperature, top_k, top_p)
    certain_ids, low, high = representation.open_prompt(prompt)
    prompt_ids = np.concatenate([[representation.eod_id], certain_ids]).astype(np.int32)
    ids = np.asarray(
        _generate(
            model_def,
            params,
            prompt_ids,
            np.array(low, np.int32),
            np.array(high, np.int32),
            jax.random.key(seed),
            jnp.float32(temperature),
            jnp.float32(top_p),
            max_tokens=max_tokens + len(low),
            top_k=min(top_k, representation.vocab_size),
            eod_id=representation.eod_id,
        )
    )
    ends = np.flatnonzero(ids == representation.eod_id)
    text = representation.decode(np.concatenate([certain_ids, ids[: ends[0]] if len(ends) else ids]))
    return text.removeprefix(prompt)


@functools.partial(jax.jit, static_argnames=("model_def", "max_tokens", "top_k", "eod_id"))
def _generate(
    model_def: Any,
    params: Any,
    prompt_ids_t: jax.Array,
    low_c: jax.Array,
    high_c: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    max_tokens: int,
    top_k: int,
    eod_id: int,
) -> jax.Array:
    """i32[max_tokens] drawn ids; behind the first `eod_id` they are all `eod_id`. The first C are between low and high,
    as tuples."""
    model = nnx.merge(model_def, nnx.State(params))
    num_prompt = prompt_ids_t.shape[0]
    logits_bv, cache = model.extend(prompt_ids_t[None], jnp.int32(0), model.empty_cache(1, num_prompt + max_tokens))

    def more(carry):
        number, out, _, _ = carry
        return (number < max_tokens) & ((number == 0) | (out[number - 1] != eod_id))

    def draw_next(carry):
        number, out, logits_bv, cache = carry
        logits_v = _within(logits_bv[0], out, number, low_c, high_c, eod_id) if len(low_c) else logits_bv[0]
        drawn = _draw(jax.random.fold_in(key, number), logits_v, temperature, top_k, top_p)
        logits_bv, cache = model.extend(drawn[None, None], num_prompt + number, cache)
        return number + 1, out.at[number].set(drawn), logits_bv, cache

    out = jnp.full(max_tokens, eod_id, jnp.int32)
    return jax.lax.while_loop(more, draw_next, (jnp.int32(0), out, logits_bv, cache))[1]


def _within(
    logits_v: jax.Array, drawn_t: jax.Array, number: jax.Array, low_c: jax.Array, high_c: jax.Array, eod_id: int
) -> jax.Array:
    """Logits f32[V] of the `number`-th id, given those drawn before it, so that the first C are between low and high,
    as tuples."""
    before_c = jnp.arange(len(low_c)) < number
    place, drawn_c = jnp.minimum(number, len(low_c) - 1), drawn_t[: len(low_c)]
    on_low, on_high = ((jnp.where(before_c, drawn_c, end_c) == end_c).all() for end_c in (low_c, high_c))
    ids_v = jnp.arange(len(logits_v))
    allowed_v = (ids_v >= jnp.where(on_low, low_c[place], 0)) & (ids_v <= jnp.where(on_high, high_c[place], eod_id - 1))
    return jnp.where(allowed_v | (number >= len(low_c)), logits_v, -jnp.inf)


def _draw(key: jax.Array, logits_v: jax.Array, temperature: jax.Array, top_k: int, top_p: jax.Array) -> jax.Array:
    """One id i32[] from logits f32[V]."""
    if top_k:
        smallest_kept = jax.lax.top_k(logits_v, top_k)[0][-1]
        logits_v = jnp.where(logits_v >= smallest_kept, logits_v, -jnp.inf)
    scaled_v = logits_v / jnp.maximum(temperature, 1e-6)
    order_v = jnp.argsort(-scaled_v)
    mass_before_v = jnp.cumsum(jax.nn.softmax(scaled_v)[order_v]) - jax.nn.softmax(scaled_v)[order_v]
    kept_v = jnp.zeros_like(mass_before_v, bool).at[order_v].set(mass_before_v < top_p)
    drawn = jax.random.categorical(key, jnp.where(kept_v, scaled_v, -jnp.inf))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_v)).astype(jnp.int32)


def sample_bytes(
    model: ByteModel,
    prompt: bytes,
    *,
    max_bytes: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> bytes:
    """`sample_text`, drawn byte by byte from the exact probabilities of `train/evaluate/byte_probabilities.py`; the
    options are of bytes then, not of ids."""
    check_sampling(prompt, max_bytes, temperature, top_k, top_p)
    walk, key, text = model.walk(prompt), jax.random.key(seed), bytearray()
    draw = jax.jit(_draw, static_argnums=3)
    while len(text) < max_bytes:
        with np.errstate(divide="ignore"):
            log_next = np.log(walk.next_bytes, dtype=np.float32)
        byte = int(draw(jax.random.fold_in(key, len(text)), log_next, temperature, min(top_k, NUM_NEXT), top_p))
        if byte == END:
            break
        text.append(byte)
        walk.step(byte)
    return bytes(text)


def sample_run(
    run_dir: str,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    exact_bytes: bool = False,
) -> str:
    """Continues a prompt with a run's newest checkpoint and adds the text to the run's `samples.json`.

    With `exact_bytes` byte by byte (`sample_bytes`), at most `max_tokens` bytes; else see `sample_text`.
    """
    prompt_bytes = prompt.encode("utf-8", "surrogateescape")  # as the shell gave it
    check_sampling(prompt_bytes, max_tokens, temperature, top_k, top_p)
    loaded = load_run(run_dir)
    if loaded.setup.recipe.model.family != "decoder":
        raise UserError(
            f"{run_dir} is a run of an {loaded.setup.recipe.model.family}, which gives no next id; only decoders can be"
            " sampled from"
        )
    options: dict[str, Any] = dict(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if exact_bytes:
        drawn = sample_bytes(byte_model(loaded), prompt_bytes, max_bytes=max_tokens, **options)
    else:
        drawn = sample_text(
            loaded.setup.program.model_def,
            loaded.params,
            loaded.setup.representation,
            prompt_bytes,
            max_tokens=max_tokens,
            **options,
        )
    text = drawn.decode("utf-8", "replace")
    file = RunFolder(run_dir).samples
    earlier = read_json(file, "run's samples") if file.exists() else []
    shown_prompt = prompt_bytes.decode("utf-8", "replace")
    write_json(
        file,
        earlier
        + [
            {
                "prompt": shown_prompt,
                "text": text,
                **options,
                "exact_bytes": exact_bytes,
                "step": loaded.counters["step"],
            }
        ],
    )
    return text
