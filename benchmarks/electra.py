r"""Encoders at equal FLOPs, at a small scale: replaced ids against masked ids and their cheap cousins, then fine-tuned.

    python benchmarks/electra.py --text enwiki2016_206pages.xml --tasks sst2/train.tsv:sst2/dev.tsv \
        rte.train.jsonl:rte.valid.jsonl --out DIR

The text's first 90 % are trained on, its last 5 % evaluated, over a subword vocabulary fitted here. Every arm gets the
same FLOPs, the generator's among them, and every seed is another initialization and order of the data; new heads and
the order of the tasks' examples are the same. An hour or two on 2 CPU cores; what is done is not done again. The table
and DIR/report are of all that is there.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import tyro
from equal_info_paper import make_corpus

from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from tokenizer_lab.subword import SubwordFit
from train.commands.cli import leave_out_absent_tpus
from train.evaluate.bits_per_byte import evaluate_run, make_judge
from train.evaluate.finetune import FinetuneOptions, finetune
from train.evaluate.tasks import task_name
from train.loop import train
from train.objectives import Causal, Masked, RandomSubstitution, Replaced
from train.optimizer import Budget, OptimizerConfig
from train.recipe import DataConfig, EvaluationConfig, Recipe
from train.report.report import write_report
from train.run.checkpoints import CheckpointConfig
from train.run.logs import LoggingConfig
from train.summary import FINISHED

SHAPE = dict(
    num_layers=2,
    embed_dim=128,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=384,
    compute_dtype="float32",
    remat="none",
)
SEQUENCE_LENGTH = 64
ENCODER = EncoderConfig(**SHAPE)
ARMS = {
    "replaced": (ENCODER, Replaced(generator_share=0.5)),
    "replaced-chosen": (ENCODER, Replaced(generator_share=0.5, detect_chosen_only=True)),
    "random": (ENCODER, RandomSubstitution()),
    "masked": (ENCODER, Masked()),
    "causal": (DecoderConfig(**SHAPE), Causal()),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains, evaluates and fine-tunes what is missing."""

    text: pathlib.Path
    """The text, whole."""
    tasks: tuple[str, ...]
    """Files to learn from and to be judged by, as TRAIN:DEV."""
    out: pathlib.Path
    """Folder for corpus, runs and results; the same command goes on there."""
    flops: float = 1e13
    """Of each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    vocab_size: int = 1024
    arms: tuple[str, ...] = tuple(ARMS)
    finetune_epochs: int = 3
    finetune_learning_rate: float = 5e-4
    """Models this small need more than the published 1e-4."""


def main(options: Options) -> None:
    console = rich.console.Console()
    corpus = make_corpus(options.text, options.out / "corpus")
    if not (options.out / "subword").exists():
        SubwordFit(vocab_size=options.vocab_size).fit(iter(corpus.documents("train")), corpus.content_hash).save(
            options.out / "subword"
        )
    runs = []
    for seed in options.seeds:
        for arm in options.arms:
            try:
                if (
                    train(recipe(arm, seed, options), str(options.out / f"{arm}-{seed}"), console, make_judge)
                    != FINISHED
                ):
                    raise SystemExit("stopped; the same command goes on there")
            except UserError as error:  # a run may diverge; that is a result too
                console.print(f"{arm}-{seed} is left out: {error}", soft_wrap=True)
                continue
            runs.append(options.out / f"{arm}-{seed}")
            evaluate(runs[-1], options)
        show(runs, options, console)
    console.print(str(write_report(runs, options.out / "report").index))


def evaluate(run: pathlib.Path, options: Options) -> None:
    """Scores the held-out text and fine-tunes on every task, where that is missing."""
    if not (run / "eval.json").exists():
        evaluate_run(str(run), None, lambda *_: None)
    for task in options.tasks:
        files = [pathlib.Path(part) for part in task.split(":")]
        if not (run / "finetune" / f"{task_name(files[0])}.json").exists():
            finetune(
                FinetuneOptions(
                    run=run,
                    task=files[0],
                    dev=files[1],
                    num_seeds=1,
                    num_epochs=options.finetune_epochs,
                    sequence_length=SEQUENCE_LENGTH,
                    learning_rate=options.finetune_learning_rate,
                )
            )


def recipe(arm: str, seed: int, options: Options) -> Recipe:
    model, objective = ARMS[arm]
    return Recipe(
        name=f"{arm}-{seed}",
        representation=str(options.out / "subword"),
        budget=Budget(flops=options.flops),
        model=model,
        objective=objective,
        seed=seed,
        data=DataConfig(corpora=(str(options.out / "corpus"),), batch_rows=32, sequence_length=SEQUENCE_LENGTH),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            schedule="linear",
            warmup_share=0.1,
            final_share=0.0,
            beta2=0.999,
            epsilon=1e-6,
            bias_correction=False,
            weight_decay=0.01,
        ),
        checkpoint=CheckpointConfig(every_steps=500),
        logging=LoggingConfig(every_steps=100, tensorboard=False),
        evaluation=EvaluationConfig(every_steps=400, max_bytes=1 << 15),
    )


def show(runs: list[pathlib.Path], options: Options, console: rich.console.Console) -> None:
    """Median and range of each figure over an arm's runs."""
    table = rich.table.Table(title=f"{options.flops:.3g} FLOPs a run", box=rich.box.SIMPLE_HEAD)
    figures = {arm: [read_figures(run) for run in runs if run.name.rpartition("-")[0] == arm] for arm in options.arms}
    for name in ("", *(f"{arm}, {len(of_arm)} runs" for arm, of_arm in figures.items())):
        table.add_column(name)
    for name in dict.fromkeys(name for of_arm in figures.values() for numbers in of_arm for name in numbers):
        table.add_row(
            name, *(spread([numbers[name] for numbers in of_arm if name in numbers]) for of_arm in figures.values())
        )
    console.print(table)


def read_figures(run: pathlib.Path) -> dict[str, Any]:
    """What a run came to, by name."""
    evaluation = json.loads((run / "eval.json").read_text())
    figures = {
        "bits_per_byte": evaluation["bits_per_byte"],
        **evaluation.get("encoder", {}),
        "bytes_seen": evaluation["bytes_seen"],
    }
    for file in sorted((run / "finetune").glob("*.json")):
        result = json.loads(file.read_text())
        figures |= {f"{result['task']} {metric}": values["median"] for metric, values in result["metrics"].items()}
    return {name: value for name, value in figures.items() if value is not None}


def spread(values: list[float]) -> str:
    return f"{np.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]" if values else ""


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
