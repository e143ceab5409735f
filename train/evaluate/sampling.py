"""Text from a trained model, by ids (`train/evaluate/generation.py`) or byte by byte.

A prompt may end anywhere. What that means is the representation's (`open_prompt`): with bytes nothing, as an id never
depends on what follows it. With equal-info windows the prompt's last window may become longer, so the model draws it
among the windows that begin with the rest of the prompt: exact. With subwords the prompt's ids are taken as they stand,
even if training text would have had a longer id at its end ("hel" + "lo"), so that a prompt cut inside a word is
continued from a division into ids that the model has seldom seen; end prompts where words end, or draw byte by byte
(`sample_bytes`), which is exact wherever a prompt ends.
"""

import dataclasses

import jax
import numpy as np

from tokenizer_lab.errors import UserError
from tokenizer_lab.files import read_json, write_json
from train.evaluate.byte_probabilities import END, NUM_NEXT, ByteModel, byte_model
from train.evaluate.generation import Continuation, Draw, Sampler, draw_id
from train.run.folder import RunFolder
from train.setup import load_run


def sample_bytes(model: ByteModel, prompt: bytes, max_bytes: int, draw: Draw) -> bytes:
    """Bytes that a model continues a prompt with, drawn from the exact probabilities of
    `train/evaluate/byte_probabilities.py`; the options are of bytes then, not of ids."""
    walk, key, text = model.walk(prompt), jax.random.key(draw.seed), bytearray()
    jitted = jax.jit(draw_id)
    while len(text) < max_bytes:
        with np.errstate(divide="ignore"):
            log_next = np.log(walk.next_bytes, dtype=np.float32)
        chance = jax.random.fold_in(key, len(text))
        byte = int(jitted(chance, log_next, draw.temperature, min(draw.top_k, NUM_NEXT), draw.top_p))
        if byte == END:
            break
        text.append(byte)
        walk.step(byte)
    return bytes(text)


def sample_run(
    run_dir: str, prompt: str, max_tokens: int, draw: Draw, exact_bytes: bool = False
) -> tuple[bytes, str | None]:
    """Continues a prompt with a run's newest checkpoint and adds the text to the run's `samples.json`, where what is no
    UTF-8 is replaced.

    Args:
      run_dir: the run's folder.
      prompt: as the shell gave it; an empty one is the beginning of a document.
      max_tokens: ids to draw at most.
      draw: how.
      exact_bytes: byte by byte (`sample_bytes`), at most `max_tokens` bytes.

    Returns:
      What was drawn, and what a person should know about how it came about.

    Raises:
      UserError: the folder is no run of a decoder.
    """
    prompt_bytes = prompt.encode("utf-8", "surrogateescape")
    loaded = load_run(run_dir)
    if loaded.setup.recipe.model.family != "decoder":
        raise UserError(
            f"{run_dir} is a run of an {loaded.setup.recipe.model.family}, which gives no next id; only decoders can be"
            " sampled from"
        )
    told = None
    if exact_bytes:
        drawn = sample_bytes(byte_model(loaded), prompt_bytes, max_tokens, draw)
    else:
        sampler = Sampler.of_run(loaded)
        [drawn], [how] = sampler.draw([prompt_bytes], max_tokens, draw)
        told = _what_was_not_seen(how, sampler.length)
    file = RunFolder(run_dir).samples
    earlier = read_json(file, "run's samples") if file.exists() else []
    sample = {
        "prompt": prompt_bytes.decode("utf-8", "replace"),
        "text": drawn.decode("utf-8", "replace"),
        **dataclasses.asdict(draw),
        "exact_bytes": exact_bytes,
        "step": loaded.counters["step"],
    }
    write_json(file, [*earlier, sample])
    return drawn, told


def _what_was_not_seen(how: Continuation, length: int) -> str | None:
    if how.was_cut:
        return (
            f"the prompt has {how.num_before:,} ids and the run was trained on {length:,} at a time: it goes on from"
            " the last ones only"
        )
    if how.forgot:
        return (
            f"prompt and text have more ids than the {length:,} that the run was trained on at a time: the text goes on"
            " from the last ones only"
        )
    return None
