"""The findings of "Training LLMs over Neurally Compressed Text" (Lester+ 2024, arXiv 2404.03626), at a small scale.

    python benchmarks/equal_info_paper.py --text enwiki2016_206pages.xml --out DIR

The text's first 90 % are trained on, its last 5 % evaluated. Byte language models are trained on short pieces and on
contexts of 1,024 bytes; then bytes per window for every width, under each and under the paper's own rule; then one
small model an arm, all on the same bytes. An hour or two on 2 CPU cores; what is done is not done again. Results are
printed and written to DIR/results.json.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
import tyro
from flax import nnx

import tokenizer_lab
from data.corpus_writer import write_corpus
from data.held_out import held_out_documents
from data.scoring_rows import scoring_batches
from data.store import Corpus
from models.decoder import DecoderConfig
from tokenizer_lab.baselines.ac import ACFit
from tokenizer_lab.baselines.gzip_code import GzipFit
from tokenizer_lab.baselines.static_ac import StaticACFit
from tokenizer_lab.byte import ByteRepresentation
from tokenizer_lab.equal_info import EqualInfoFit
from train.commands.cli import leave_out_absent_tpus
from train.compressor import load_byte_lm
from train.evaluate.bits_per_byte import evaluate_run, make_judge
from train.loop import train
from train.optimizer import Budget, OptimizerConfig
from train.recipe import DataConfig, EvaluationConfig, Recipe
from train.run.checkpoints import CheckpointConfig
from train.run.logs import LoggingConfig
from train.setup import load_run
from train.summary import FINISHED

SEED = 0
WIDTHS = (16, 24, 32, 64, 128)
# The compressor of the arms, and two that have seen the same text: name -> (trained on pieces, bytes).
LMS = {"pieces": (True, 4 << 20), "pieces-short": (True, 3 << 19), "contexts-short": (False, 3 << 19)}
# Arms of the second stage: name -> (LM it compresses with or None, options of the fit, positions of a row).
ARMS = {
    "byte": (None, None, 512),
    "static_ac-8": (None, StaticACFit(id_bits=8), 320),
    "gzip-8": (None, GzipFit(id_bits=8), 256),
    "ac-8": ("contexts-short", ACFit(id_bits=8), 160),
    "w16-8": ("pieces", EqualInfoFit(window_bits=16, id_bits=8), 256),
    "w16-16": ("pieces", EqualInfoFit(window_bits=16, id_bits=16), 128),
    "w32-8": ("pieces", EqualInfoFit(window_bits=32, id_bits=8), 224),
    "w64-8": ("pieces", EqualInfoFit(window_bits=64, id_bits=8), 208),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Runs what is missing and prints the tables."""

    text: pathlib.Path
    """The text, whole."""
    out: pathlib.Path
    """Folder for corpus, runs and results; the same command goes on there."""
    arm_bytes: int = 5 << 18
    """Text that each arm is trained on."""
    arms: tuple[str, ...] = tuple(ARMS)
    sample_bytes: int = 1 << 15
    """Held-out text on which bytes per window are measured."""


def main(options: Options) -> None:
    console, results = rich.console.Console(), {"options": {k: str(v) for k, v in dataclasses.asdict(options).items()}}
    corpus = make_corpus(options.text, options.out / "corpus")
    lms = {name: options.out / f"lm-{name}" for name in LMS}
    for name, run_dir in lms.items():
        run(lm_recipe(name, options), run_dir, console)
    sample = held_out_text(corpus)[: options.sample_bytes]
    results["windows"] = [
        windows(name, lms[name], sample, width, rule, options.out / f"windows-{width}-{name}-{rule}.json")
        for width, name, rule in itertools.product(WIDTHS, LMS, ("exact", "paper", "delay"))
        if (rule == "exact" and width != 24) or (rule != "exact" and name == "pieces")
    ]  # a table of 24 bits takes hours
    show("Bytes per window", results["windows"], console)
    results["arms"] = []
    for name in options.arms:
        results["arms"].append(arm(name, lms, corpus, options, console))
        show("Arms", results["arms"], console)
        (options.out / "results.json").write_text(json.dumps(results, indent=2))


def make_corpus(text: pathlib.Path, folder: pathlib.Path) -> Corpus:
    """The text's pages as documents: the first 90 % to train on, the last 5 % held out."""
    whole = text.read_bytes()
    parts = {"train": whole[: len(whole) * 9 // 10], "test": whole[len(whole) * 95 // 100 :]}
    if not (folder / "manifest.json").exists():
        with write_corpus(folder, 0.05) as writer:
            for split, part in parts.items():
                for page in part.split(b"  <page>\n"):
                    if page:
                        writer.add("enwiki", split, page)
            writer.commit()
    return Corpus.open(folder)


def held_out_text(corpus: Corpus) -> bytes:
    return b"".join(held_out_documents([corpus]))


def lm_recipe(name: str, options: Options) -> Recipe:
    """A byte language model of 0.6M parameters, on pieces of 32 bytes or on contexts of 1,024."""
    byte = options.out / "byte"
    ByteRepresentation().save(byte)
    model = DecoderConfig(
        num_layers=3, embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384, compute_dtype="float32"
    )
    on_pieces, num_bytes = LMS[name]
    shape = (
        dict(batch_rows=16, sequence_length=256, piece_length=32)
        if on_pieces
        else dict(batch_rows=4, sequence_length=1024)
    )
    return recipe(f"lm-{name}", byte, options, model, num_bytes, **shape)


def recipe(
    name: str, representation: pathlib.Path, options: Options, model: DecoderConfig, num_bytes: int, **data
) -> Recipe:
    return Recipe(
        name=name,
        representation=str(representation),
        budget=Budget(bytes=num_bytes),
        model=model,
        seed=SEED,
        data=DataConfig(corpora=(str(options.out / "corpus"),), **data),
        optimizer=OptimizerConfig(learning_rate=4e-3),
        checkpoint=CheckpointConfig(every_steps=200),
        logging=LoggingConfig(every_steps=50, tensorboard=False),
        evaluation=EvaluationConfig(every_steps=200, max_bytes=1 << 15, batch_rows=data["batch_rows"]),
    )


def run(recipe: Recipe, run_dir: pathlib.Path, console: rich.console.Console) -> None:
    if train(recipe, str(run_dir), console, make_judge) != FINISHED:
        raise SystemExit(f"stopped; the same command goes on with {run_dir}")


def windows(
    name: str, run_dir: pathlib.Path, sample: bytes, width: int, rule: str, file: pathlib.Path
) -> dict[str, Any]:
    """What windows of one width hold of a held-out text; kept in a file."""
    if file.exists():
        return json.loads(file.read_text())
    lm, flops = load_byte_lm(run_dir)
    fit = EqualInfoFit(window_bits=width, id_bits=8, rule=rule, sample_bytes=len(sample))
    documents = [sample[start : start + 512] for start in range(0, len(sample), 512)]
    statistics = fit.fit(documents, "", lm, flops, lambda *_: None).statistics
    row = {
        "W": width,
        "LM": name,
        "rule": rule,
        "bytes_per_window": statistics["bytes_per_id"] * width / 8,
    } | statistics
    file.write_text(json.dumps(row))
    return row


def arm(name: str, lms: dict[str, pathlib.Path], corpus: Corpus, options: Options, console) -> dict[str, Any]:
    """Trains and evaluates one arm."""
    lm, fit, length = ARMS[name]
    artifact, run_dir = options.out / f"artifact-{name}", options.out / f"run-{name}"
    if fit and not artifact.exists():
        documents = corpus.documents("train")
        more = (*load_byte_lm(lms[lm]), lambda *_: None) if lm else ()
        fit.fit((documents[n] for n in range(len(documents))), corpus.content_hash, *more).save(artifact)
    model = DecoderConfig(
        num_layers=4, embed_dim=128, num_heads=2, num_kv_heads=2, mlp_dim=384, compute_dtype="float32"
    )
    run(
        recipe(
            name,
            artifact if fit else options.out / "byte",
            options,
            model,
            options.arm_bytes,
            batch_rows=8,
            sequence_length=length,
        ),
        run_dir,
        console,
    )
    evaluation = run_dir / "eval.json"
    result = (
        json.loads(evaluation.read_text()) if evaluation.exists() else evaluate_run(str(run_dir), None, lambda *_: None)
    )
    bits_per_id = result["total_nats"] / np.log(2) / result["num_tokens"]
    low, high = result["interval_95"]
    row = {"arm": name, "bits_per_byte": result["bits_per_byte"], "low": low, "high": high} | result["text"]
    return row | {
        "bits_per_id": bits_per_id,
        "trained_unigram_bits_per_byte": trained_unigram(run_dir / "representation", corpus, options.arm_bytes),
        "accuracy_by_place": accuracy_by_place(run_dir, fit) if "w64" in name else None,
    }


def trained_unigram(artifact: pathlib.Path, corpus: Corpus, num_bytes: int) -> float | None:
    """Bits per byte of the held-out text if each id is as likely as in the training text (plus a half; Krichevsky &
    Trofimov 1981).

    With 65,536 ids the held-out text's own frequencies, which evaluation reports, are those of far too few ids: each
    that occurs once looks likelier than it is. None where encoding needs a language model, for the time it takes.
    """
    representation = tokenizer_lab.load(artifact)
    if representation.costs.get("encode_flops_per_id"):
        return None
    documents = corpus.documents("train")
    text = b"".join(documents[number] for number in range(len(documents)))[:num_bytes]
    counts = np.bincount(representation.encode(text), minlength=representation.vocab_size) + 0.5
    held_out = held_out_text(corpus)
    return float(-np.log2(counts / counts.sum())[representation.encode(held_out)].sum() / len(held_out))


def accuracy_by_place(run_dir: pathlib.Path, fit: EqualInfoFit) -> list[float]:
    """How often the likeliest id is the right one, for each place in a window, on a part of the held-out text."""
    loaded = load_run(str(run_dir))
    setup, places = loaded.setup, fit.window_bits // fit.id_bits
    model = nnx.merge(setup.program.model_def, nnx.State(loaded.params))
    best = jax.jit(lambda ids, segments, positions: model.logits(model(ids, segments, positions)).argmax(-1))
    length = setup.recipe.data.sequence_length // places * places  # so that a piece begins with a window
    texts = enumerate(bytes(document) for document in held_out_documents(setup.corpora))
    right, count = np.zeros(places), np.zeros(places)
    for batch in scoring_batches(texts, setup.representation, batch_rows=8, sequence_length=length):
        hit = np.asarray(best(batch["ids"], batch["segment_ids"], batch["positions"])) == batch["targets"]
        counts = (batch["segment_ids"] > 0) & (batch["targets"] != setup.representation.eod_id)
        for place in range(places):
            chosen = counts & (batch["positions"] % places == place)
            right[place], count[place] = right[place] + hit[chosen].sum(), count[place] + chosen.sum()
    return (right / np.maximum(count, 1)).round(4).tolist()


def show(title: str, rows: list[dict[str, Any]], console: rich.console.Console) -> None:
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
