"""What to do where a command needs more memory than there is."""

import errno
import sys

# Of each command, what makes it need less.
REMEDIES = {
    "ingest": "give smaller documents (--separator), or lower --max-document-bytes to find the large ones",
    "fit": (
        "take less at a time: a smaller --lm-recipe, e.g. demo_compressor, or --window-bits 16; of subwords, a smaller"
        " --vocab-size or --superword-sample-bytes"
    ),
    "encode": "give documents of fewer bytes, or more machines (--engine ray)",
    "train": (
        "take the batch in more parts, e.g. --data.num-microbatches 8, or keep less for the gradients, --model.remat"
        " full; both go on with a run that has begun"
    ),
    "plan": "plan on a machine with more memory",
    "submit": "take the batch in more parts, e.g. --data.num-microbatches 8",
    "eval": "score fewer rows at a time, e.g. --batch-rows 1",
    "sample": "draw fewer ids, --max-tokens 50, or sample on a machine with more memory",
    "finetune": "lower --batch-rows or --sequence-length",
    "blimp": "score fewer rows at a time, e.g. --batch-rows 1",
    "report": "report fewer runs at a time",
    "compare": "take the batches of its recipes in more parts (data.num_microbatches)",
    "inspect": "lower --max-bytes",
    "export": "export on a machine with more memory: it holds all weights twice in float32",
}


def out_of_memory(error: BaseException | None) -> str | None:
    """What an error says of memory that could not be had, on one line; None for one about something else."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return _one_line(error)
        text = str(error)
        if isinstance(error, _device_errors()) and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text):
            return _one_line(error)
        if text == "std::bad_alloc":
            return text
        error = error.__cause__
    return None


def _device_errors() -> tuple[type[Exception], ...]:
    """What JAX raises, if it is there."""
    jax = sys.modules.get("jax")
    return (jax.errors.JaxRuntimeError,) if jax else ()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
