"""Ids from a decoder with a cache of keys and values: many texts at once, at positions that it was trained on.

Prompts are padded to powers of two, so that there are few shapes to compile for. Of a prompt and a text that together
have more ids than a row of the training, the model sees the last ones, from the first position on: as it has seen the
later pieces of long documents (`data/rows.py`).

Legend: B texts, P positions of padded prompts, S ids to draw, C ids that are within limits, V vocab.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from models.axes import Kernels
from models.next_id import NextIdModel
from tokenizer_lab.errors import FROM_0, SEED, Range, check_numbers
from tokenizer_lab.representation import Representation
from train.model_function import jit_of_weights, padded
from train.setup import LoadedRun
from train.sharding import divisible_rows

_SMALLEST_WIDTH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """How ids are drawn."""

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest id."""
    top_k: int = 0
    """Only the k likeliest ids; 0 for all."""
    top_p: float = 1.0
    """Only the likeliest ids that together hold this much probability (Holtzman et al. 2020, arXiv 1904.09751, section
    3.1)."""
    seed: int = 0
    """The same seed draws the same text, whatever other texts are drawn with it."""

    def __post_init__(self) -> None:
        check_numbers(self, "--", top_k=FROM_0, top_p=Range(above=0, most=1), seed=SEED)


@dataclasses.dataclass
class Continuation:
    """A text in the making: a prompt, and what a model continues it with."""

    prompt: bytes
    ids: np.ndarray
    """i32[n], from the beginning of the document on."""
    num_before: int
    """Of the ids, those that were not drawn."""
    low: tuple[int, ...]
    """The first ids to be drawn are between `low` and `high`, as tuples."""
    high: tuple[int, ...]
    left: int
    """Ids that may still be drawn."""
    was_cut: bool = False
    """Whether the model has not seen all of the prompt."""
    forgot: bool = False
    """Whether later ids were drawn without sight of the first ones."""

    @property
    def num_drawn(self) -> int:
        return len(self.ids) - self.num_before


class Sampler:
    """Continues texts with a decoder.

    Args:
      model_def: `nnx.GraphDef` of the model.
      params: its weights.
      representation: the one it was trained on.
      mesh: over which the weights are laid out.
      length: positions that it was trained on.
      begins_anew: whether later pieces of a document began like a document does, not with the id before them.
      batch_rows: texts at a time, at most; a multiple of the mesh's replica x fsdp.
      kernels: as in a recipe.
    """

    def __init__(
        self,
        model_def: Any,
        params: Any,
        representation: Representation,
        mesh: Mesh,
        *,
        length: int,
        begins_anew: bool = False,
        batch_rows: int = 32,
        kernels: Kernels = "auto",
    ):
        self._params, self._representation = params, representation
        self._length, self._begins_anew, self._batch_rows = length, begins_anew, batch_rows
        self._mesh = mesh
        self._generate = jit_of_weights(generate, model_def, mesh, kernels, static_argnames=("size", "eod_id"))

    @classmethod
    def of_run(cls, loaded: LoadedRun) -> "Sampler":
        setup, recipe = loaded.setup, loaded.setup.recipe
        return cls(
            setup.program.model_def,
            loaded.params,
            setup.representation,
            setup.mesh,
            length=recipe.data.trained_length,
            begins_anew=bool(recipe.data.piece_length),
            batch_rows=recipe.evaluation.batch_rows,
            kernels=recipe.kernels,
        )

    @property
    def length(self) -> int:
        return self._length

    def draw(
        self,
        prompts: Sequence[bytes],
        max_tokens: int,
        draw: Draw,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[list[bytes], list[Continuation]]:
        """What the model continues each prompt with, until its document ends or `max_tokens` ids are drawn, and how.

        An empty prompt is the beginning of a document.
        """
        texts = [self._begin(prompt, max_tokens) for prompt in prompts]
        while unfinished := sorted((text for text in texts if text.left), key=lambda text: self._num_seen(text)):
            for at in range(0, len(unfinished), self._batch_rows):
                self._go_on(unfinished[at : at + self._batch_rows], draw)
                on_progress(sum(not text.left for text in texts), len(texts))
        return [self._read(text) for text in texts], texts

    def _begin(self, prompt: bytes, max_tokens: int) -> Continuation:
        certain, low, high = self._representation.open_prompt(prompt)
        ids = np.concatenate([[self._representation.eod_id], certain]).astype(np.int32)
        return Continuation(prompt, ids, len(ids), tuple(low), tuple(high), max_tokens + len(low))

    def _num_seen(self, text: Continuation) -> int:
        """How many of the ids so far the model sees: all, or the last that leave room for those to come, half a row at
        least."""
        kept = max(self._length // 2, self._length - text.left, 1)
        return min(len(text.ids), kept, max(1, self._length - len(text.low)))

    def _go_on(self, texts: Sequence[Continuation], draw: Draw) -> None:
        """Draws what fits in a row behind what is seen of each text."""
        eod_id, seen = self._representation.eod_id, [self._num_seen(text) for text in texts]
        limits = [min(text.left, self._length - count) or 1 for text, count in zip(texts, seen)]
        within = [(text.low, text.high) if not text.num_drawn else ((), ()) for text in texts]
        rows = divisible_rows(self._mesh, min(self._batch_rows, padded(len(texts))))
        width, size = padded(max(seen), _SMALLEST_WIDTH), padded(max(limits), _SMALLEST_WIDTH)
        ids, limited = np.zeros((rows, width), np.int32), padded(max(len(low) for low, _ in within), 0)
        numbers = np.zeros((rows, 4), np.int32)  # of ids seen, within limits, to draw, and drawn before
        numbers[:, 0] = 1
        bounds = np.zeros((rows, 2, limited), np.int32)
        for row, (text, count) in enumerate(zip(texts, seen)):
            ids[row, :count] = text.ids[-count:]
            if count < len(text.ids):
                ids[row, 0] = eod_id if self._begins_anew else ids[row, 0]
                text.forgot = True
                text.was_cut |= not text.num_drawn
            numbers[row] = count, len(within[row][0]), limits[row], text.num_drawn
            bounds[row, :, : len(within[row][0])] = within[row]
        top_k = min(draw.top_k, self._representation.vocab_size)
        options = jnp.float32(draw.temperature), jnp.int32(top_k), jnp.float32(draw.top_p)
        drawn = np.asarray(
            self._generate(
                self._params, ids, numbers, bounds, jax.random.key(draw.seed), options, size=size, eod_id=eod_id
            )
        )
        for row, text in enumerate(texts):
            new = drawn[row, : limits[row]]
            ends = np.flatnonzero(new == eod_id)
            text.left = 0 if len(ends) else text.left - len(new)
            text.ids = np.concatenate([text.ids, new[: ends[0]] if len(ends) else new])

    def _read(self, text: Continuation) -> bytes:
        return self._representation.decode(text.ids[1:]).removeprefix(text.prompt)


def generate(
    model: NextIdModel,
    ids_bp: jax.Array,
    numbers_b4: jax.Array,
    bounds_b2c: jax.Array,
    key: jax.Array,
    options: tuple[jax.Array, jax.Array, jax.Array],
    *,
    size: int,
    eod_id: int,
) -> jax.Array:
    """i32[B, S] drawn ids; behind the first `eod_id` of a text and behind its last id they are all `eod_id`.

    Args:
      model: the decoder.
      ids_bp: i32[B, P], what each text goes on from, and behind that anything.
      numbers_b4: i32[B, 4]: how many of the ids count; of those to draw, how many are within limits, and how many are
        drawn at all; and the number of the first, which decides about its chance.
      bounds_b2c: i32[B, 2, C], the limits, as tuples.
      key: of all chance.
      options: temperature, top_k and top_p (`Draw`).
      size: S.
      eod_id: of the representation.
    """
    known_b, within_b, limit_b, before_b = numbers_b4.T
    cache = model.empty_cache(len(ids_bp), ids_bp.shape[1] + size)
    logits_bv, cache = model.extend(ids_bp, jnp.zeros_like(known_b), cache, known_b - 1)

    def more(carry):
        number, _, done_b, _, _ = carry
        return (number < size) & ~done_b.all()

    def draw_next(carry):
        number, out_bs, done_b, logits_bv, cache = carry
        if bounds_b2c.shape[2]:
            limited = lambda logits_v, out_s, low_c, high_c, count: within(
                logits_v, out_s, number, low_c, high_c, count, eod_id
            )
            logits_bv = jax.vmap(limited)(logits_bv, out_bs, bounds_b2c[:, 0], bounds_b2c[:, 1], within_b)
        keys_b = jax.vmap(jax.random.fold_in, (None, 0))(key, before_b + number)
        drawn_b = jax.vmap(lambda key, logits_v: draw_id(key, logits_v, *options))(keys_b, logits_bv)
        drawn_b = jnp.where(done_b, eod_id, drawn_b)
        out_bs = out_bs.at[:, number].set(drawn_b)
        done_b |= (drawn_b == eod_id) | (number + 1 >= limit_b)
        logits_bv, cache = model.extend(drawn_b[:, None], known_b + number, cache)
        return number + 1, out_bs, done_b, logits_bv, cache

    out_bs = jnp.full((len(ids_bp), size), eod_id, jnp.int32)
    return jax.lax.while_loop(more, draw_next, (jnp.int32(0), out_bs, limit_b <= 0, logits_bv, cache))[1]


def within(
    logits_v: jax.Array,
    drawn_s: jax.Array,
    number: jax.Array,
    low_c: jax.Array,
    high_c: jax.Array,
    count: jax.Array,
    eod_id: int,
) -> jax.Array:
    """Logits f32[V] of the `number`-th id, given those drawn before it, so that the first `count` are between low and
    high, as tuples."""
    before_c = jnp.arange(len(low_c)) < number
    place, drawn_c = jnp.minimum(number, len(low_c) - 1), drawn_s[: len(low_c)]
    on_low, on_high = ((jnp.where(before_c, drawn_c, end_c) == end_c).all() for end_c in (low_c, high_c))
    ids_v = jnp.arange(len(logits_v))
    allowed_v = (ids_v >= jnp.where(on_low, low_c[place], 0)) & (ids_v <= jnp.where(on_high, high_c[place], eod_id - 1))
    return jnp.where(allowed_v | (number >= count), logits_v, -jnp.inf)


def draw_id(
    key: jax.Array, logits_v: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """One id i32[] from logits f32[V]. Of equally likely ids, the first ones are among the k likeliest."""
    scaled_v = logits_v / jnp.maximum(temperature, 1e-6)
    order_v = jnp.argsort(-scaled_v)  # stable
    among_v = (jnp.arange(len(logits_v)) < top_k) | (top_k == 0)
    share_v = jax.nn.softmax(jnp.where(among_v, scaled_v[order_v], -jnp.inf))
    among_v &= jnp.cumsum(share_v) - share_v < top_p
    kept_v = jnp.zeros_like(among_v).at[order_v].set(among_v)
    drawn = jax.random.categorical(key, jnp.where(kept_v, scaled_v, -jnp.inf))
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits_v)).astype(jnp.int32)
