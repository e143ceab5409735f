"""`toklab fit KIND`: learns a representation's artifact from a corpus."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any

import grain
import rich.console
import tyro
from etils import epath

from data.held_out import fixed_subset
from data.store import Corpus
from tokenizer_lab import metrics
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import KINDS, fit_options
from train.commands.options import parse
from train.commands.terminal import STOPPED_AND_SAVED, heartbeat, progress_bar
from train.console import say
from train.exits import EXIT_STOPPED, interruptible_import
from train.nearest import nearest

SAMPLE_BYTES = 1 << 20
"""Of the text that is looked at for what a representation spells in bytes."""
_SAMPLE_SEED = 0


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in KINDS:
        given = arguments[0] if arguments else ""
        if given in ("-h", "--help"):
            print(f"usage: toklab fit KIND --corpus CORPUS --out ARTIFACT ...; the kinds are {', '.join(KINDS)}")
            return 0
        raise UserError(
            f"no representation {given!r}{nearest(given, KINDS)}; toklab fit takes one of {', '.join(KINDS)}"
        )
    kind, *arguments = arguments
    command = dataclasses.make_dataclass(
        "Fit",
        [
            ("corpus", epath.Path),
            ("out", epath.Path),
            ("options", Annotated[fit_options(kind), tyro.conf.arg(name="")]),
        ],
        kw_only=True,
        frozen=True,
    )
    command.__doc__ = f"Fit a {kind} representation on a corpus's train split."
    options, console = parse(command, arguments, f"fit {kind}"), rich.console.Console()
    corpus = Corpus.open(options.corpus)
    documents = corpus.documents("train")
    if not hasattr(options.options, "lm"):
        learning = f"fit {kind}: all text has been read, learning from it"
        with progress_bar(console, f"fit {kind}", of_bytes=True) as update, heartbeat(console, learning) as all_is_read:
            counting = counted(documents, documents.num_bytes, update, all_is_read)
            representation = options.options.fit(counting, corpus.content_hash)
    else:
        if (byte_lm := byte_language_model(options, console)) is None:
            return EXIT_STOPPED
        with progress_bar(console, f"fit {kind}", of_bytes=False) as update:
            sampled = grain.MapDataset.source(documents).shuffle(seed=_SAMPLE_SEED)  # as a sample of it is measured
            representation = options.options.fit(counted(sampled), corpus.content_hash, *byte_lm, update)
    representation.save(options.out)
    measured = "".join(f", {name} {value:.4g}" for name, value in representation.statistics.items())
    say(
        console,
        f"{options.out}: {kind}, {representation.vocab_size:,} ids{measured}, fingerprint"
        f" {representation.fingerprint[:12]}",
    )
    if representation.spelled_bytes(()) is not None:  # of others no text need be read
        say(console, f"{options.out}: {metrics.spelled(representation, fixed_subset(documents, SAMPLE_BYTES))}")
    if representation.left_out:
        say(console, f"{options.out}: {representation.left_out}")
    return 0


def byte_language_model(options: Any, console: rich.console.Console) -> Any:
    """Returns the compressor that the options name and the FLOPs it took, training it first if they name none. None if
    a signal stopped the training."""
    with interruptible_import():
        from train.compressor import choose_recipe, load_byte_lm, train_byte_lm

    run_dir = options.options.lm
    if run_dir is None:
        run_dir = options.out.with_name(f"{options.out.name}-lm")
        recipe, why = choose_recipe(options.options.lm_recipe, options.corpus)
        say(console, f"training the byte language model {recipe.name} into {run_dir}{why}")
        if not train_byte_lm(recipe, options.corpus, run_dir, console):
            print(STOPPED_AND_SAVED, file=sys.stderr)
            return None
    return load_byte_lm(run_dir)


def counted(
    documents: Any,
    total_bytes: int = 0,
    update: Callable[[int, int], None] = lambda done, total: None,
    all_is_read: Callable[[], None] = lambda: None,
) -> Any:
    """Yields the documents, and tells `update` how many bytes have been read and `all_is_read` that all are."""
    done = 0
    for number in range(len(documents)):
        document = documents[number]
        yield document
        done += len(document)
        update(done, total_bytes)
    all_is_read()
