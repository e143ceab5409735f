"""What a run says of itself: how far it has come, what is about to be trained, and summary.json at its end."""

import importlib.metadata
import platform
from typing import Any

import jax
import numpy as np
import rich.console

from data.coverage import coverage
from data.documents import block_documents
from tokenizer_lab.files import read_json
from train.console import say
from train.optimizer import from_limbs
from train.run.folder import RunFolder
from train.setup import Setup, count_parameters
from train.sharding import replicated
from train.step import TrainState

FINISHED, STOPPED = "finished", "stopped"


def counters(setup: Setup, state: TrainState) -> dict[str, Any]:
    """How far a state has come."""
    step = int(state.step)
    return {"step": step, "bytes_seen": from_limbs(state.bytes_seen), "flops": setup.flops(step)}


def documents_read(setup: Setup, state: TrainState) -> list[dict[str, float]]:
    """Of each corpus, the shares of its train documents that the run has read never, once and more than once."""
    cursors = state.cursors
    if not cursors.is_fully_addressable:
        cursors = jax.jit(lambda cursors: cursors, out_shardings=replicated(setup.mesh))(cursors)
    finished = np.asarray(cursors)[:, : len(setup.corpora)]
    documents = [corpus.documents("train") for corpus in setup.corpora]
    return [coverage(of_corpus, len(text), block_documents(text)) for of_corpus, text in zip(finished.T, documents)]


def describe(setup: Setup, compile_seconds: float, console: rich.console.Console) -> None:
    """Says what is about to be trained."""
    parameters = count_parameters(setup.recipe, setup.representation.vocab_size)["total"]
    budget = setup.budget
    length = (
        f"{setup.num_steps:,} steps"
        if setup.num_steps is not None
        else f"{budget.seconds:,g} seconds"
        if budget.seconds
        else f"{budget.bytes:,} bytes of text"
    )
    say(
        console,
        f"{setup.representation.kind}, {setup.representation.vocab_size:,} ids; {parameters:,} parameters;"
        f" {setup.flops_per_step:.3g} FLOPs a step of {setup.tokens_per_step:,} positions; {length}; {setup.mesh.size}"
        f" x {jax.devices()[0].device_kind}; compiled in {compile_seconds:.1f} s",
    )


def is_summarized(run: RunFolder, step: int) -> bool:
    """Whether summary.json says that the run finished at this step; a crash can come between a run's last checkpoint
    and that."""
    if not run.summary.exists():
        return False
    summary = read_json(run.summary, "run's summary")
    return (summary.get("state"), summary.get("steps")) == (FINISHED, step)


def summarize(
    setup: Setup,
    state: TrainState,
    outcome: str,
    steps_here: int,
    bytes_here: int,
    loop_seconds: float,
    seconds_by_part: dict[str, float],
) -> dict[str, Any]:
    """What goes into summary.json: what the run was, what it has seen and spent, and where the time of its last part
    went."""
    recipe, step, bytes_seen = setup.recipe, int(state.step), from_limbs(state.bytes_seen)
    stepping = max(1e-9, loop_seconds - seconds_by_part.get("evaluation", 0.0))
    tokens_seen = step * setup.tokens_per_step
    bytes_per_token = bytes_seen / max(1, tokens_seen)
    vocab_size = setup.representation.vocab_size
    packages = ("jax", "jaxlib", "flax", "tokenizer-lab")
    return {
        "name": recipe.name,
        "state": outcome,
        "representation": {
            "kind": setup.representation.kind,
            "vocab_size": vocab_size,
            "fingerprint": setup.representation.fingerprint,
            "bytes_per_token": bytes_per_token,
            "costs": dict(setup.representation.costs),
            "statistics": dict(setup.representation.statistics),
        },
        "parameters": count_parameters(recipe, vocab_size),
        "flops_per_token": setup.flops_per_token,
        "flops_per_byte": setup.flops_per_token["total"] / bytes_per_token if bytes_per_token else None,
        "steps": step,
        "bytes_seen": bytes_seen,
        "tokens_seen": tokens_seen,
        "flops": setup.flops(step),
        "seconds": loop_seconds,
        "seconds_by_part": seconds_by_part,
        "bytes_per_second": bytes_here / stepping,
        "tokens_per_second": steps_here * setup.tokens_per_step / stepping,
        "outside_step_share": max(0.0, 1 - seconds_by_part.get("step", 0.0) / stepping),
        "skipped_steps": int(state.skipped_steps),
        "corpora": [
            {"path": path, "content_hash": corpus.content_hash, "documents_read": read}
            for path, corpus, read in zip(recipe.data.corpora, setup.corpora, documents_read(setup, state))
        ],
        "device": f"{setup.mesh.size} x {jax.devices()[0].device_kind}",
        "versions": (
            {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
        ),
    }
