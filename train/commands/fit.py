"""`toklab fit KIND`: learns a representation's artifact from a corpus."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import grain
import rich.console
import tyro
from etils import epath

from data.held_out import fixed_subset
from data.sample import Sample
from data.store import Corpus
from tokenizer_lab import metrics
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import KINDS, Representation, fit_options
from train.commands.options import parse
from train.commands.terminal import STOPPED_AND_SAVED, heartbeat, progress_bar, time_left
from train.console import say
from train.exits import EXIT_STOPPED, interruptible_import
from train.nearest import nearest

FIT_BYTES = 2 << 30
_SAMPLE_HELP = "Text to learn from, about: the documents of the train split with the lowest hashes, if there are more."
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
    fields: list[Any] = [
        ("corpus", epath.Path),
        ("out", epath.Path),
        ("options", Annotated[fit_options(kind), tyro.conf.arg(name="")]),
    ]
    has_language_model = "lm" in {field.name for field in dataclasses.fields(fit_options(kind))}
    learns_from_text = getattr(fit_options(kind), "learns", True) and not has_language_model
    if learns_from_text:
        fields.append(("sample_bytes", Annotated[int, tyro.conf.arg(help=_SAMPLE_HELP)], FIT_BYTES))
    command = dataclasses.make_dataclass("Fit", fields, kw_only=True, frozen=True)
    command.__doc__ = f"Fit a {kind} representation on a corpus's train split."
    options, console = parse(command, arguments, f"fit {kind}"), rich.console.Console()
    corpus = Corpus.open(options.corpus)
    documents = corpus.documents("train")
    if learns_from_text:
        representation = fit_on_text(kind, options.options, Sample(corpus, options.sample_bytes), console)
    elif not has_language_model:
        representation = options.options.fit((), corpus.content_hash)
    else:
        if (byte_lm := byte_language_model(options, console)) is None:
            return EXIT_STOPPED
        with progress_bar(console, f"fit {kind}", of_bytes=False) as update:
            sampled = grain.MapDataset.source(documents).shuffle(seed=_SAMPLE_SEED)  # as a sample of it is measured
            each = (sampled[number] for number in range(len(sampled)))
            representation = options.options.fit(each, corpus.content_hash, *byte_lm, update)
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


def fit_on_text(kind: str, options: Any, sample: Sample, console: rich.console.Console) -> Representation:
    """Learns a representation from a corpus, or a sample of it, and says how far that is."""
    if not sample.is_all:
        say(
            console,
            f"fit {kind}: learning from {sample.max_bytes / 1e6:,.0f} of {sample.documents.num_bytes / 1e6:,.0f} MB,"
            " the documents with the lowest hashes; --sample-bytes says how much",
        )
    learning = f"fit {kind}: all text has been read, learning from it"
    with progress_bar(console, f"fit {kind}", of_bytes=True) as update, heartbeat(console, learning) as all_is_read:
        tell = time_left(console, f"fit {kind}")

        def told(done: int, total: int) -> None:
            update(done, total)
            tell(done, total)

        def documents() -> Iterator[bytes]:
            yield from sample.read(told)
            all_is_read()

        return options.fit(documents(), sample.corpus.content_hash)


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
