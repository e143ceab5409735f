"""The whole trainer as a user starts it: tokens/s, seconds to the first step (cold, with JAX's compilation cache,
resumed), and what a save blocks.

    python benchmarks/trainer.py --text FILE [--steps 60] [--json-file FILE]

Every number is of `toklab` in a process of its own: ingest, a subword vocabulary of 4,096, and a decoder of 6 layers of
width 256 on 16 rows of 256 positions in float32, the shape at which MaxText and nanodo were measured (about 2,800
tokens/s at 6M parameters on 2 CPU cores).
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import rich.box
import rich.console
import rich.table
import tyro

from train.commands.cli import leave_out_absent_tpus
from train.run.folder import RunFolder, read_lines

DOCUMENT_CHARACTERS = 4096
RECIPE = """
from models.decoder import DecoderConfig
from train.optimizer import Budget
from train.recipe import CheckpointConfig, DataConfig, EvaluationConfig, LoggingConfig, Recipe


def recipe() -> Recipe:
    return Recipe(
        name="trainer", representation="subword", budget=Budget(steps={steps}),
        data=DataConfig(corpora=("corpus",), batch_rows=16, sequence_length=256),
        model=DecoderConfig(num_layers=6, embed_dim=256, num_heads=4, num_kv_heads=4, head_dim=64, mlp_dim={mlp_dim},
                            compute_dtype="float32", remat="none"),
        logging=LoggingConfig(every_steps=1, tensorboard=False), checkpoint=CheckpointConfig(every_steps=10),
        evaluation=EvaluationConfig(every_steps=1_000_000, max_bytes=1, batch_rows=16))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Starts the trainer and times it."""

    text: pathlib.Path
    """What is trained on; a few megabytes."""
    steps: int = 60
    mlp_dim: int = 1024
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, pathlib.Path(folder))
    table = rich.table.Table(
        title=f"The trainer, {figures['parameters']:,} parameters, on {os.cpu_count()} cores", box=rich.box.SIMPLE_HEAD
    )
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if value >= 1000 else f"{value:.3g}")
    rich.console.Console().print(table)
    if options.json_file:
        options.json_file.write_text(json.dumps(figures, indent=2))


def measure(options: Options, folder: pathlib.Path) -> dict[str, float]:
    text = options.text.read_text(errors="replace")
    documents = (text[start : start + DOCUMENT_CHARACTERS] for start in range(0, len(text), DOCUMENT_CHARACTERS))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    toklab(folder, "ingest", "text.jsonl", "--out", "corpus", "--test-fraction", "0.1", cache="cache")
    toklab(folder, "fit", "subword", "--corpus", "corpus", "--out", "subword", "--vocab-size", "4096", cache="cache")
    write_recipe(folder, options, options.steps)
    cold = train(folder, "cold", "cache")
    cached = train(folder, "cached", "cache")
    write_recipe(folder, options, options.steps + 10)
    resumed = train(folder, "cached", "cache")
    lines = read_lines(RunFolder(folder / "cold").metrics)
    tokens = [line["tokens_per_second"] for line in lines[len(lines) // 4 :]]
    summary = cold["summary"]
    return {
        "parameters": summary["parameters"]["total"],
        "tokens_per_second (median of the steps' last three quarters)": sorted(tokens)[len(tokens) // 2],
        "share_outside_the_step": summary["outside_step_share"],
        "seconds_to_the_first_step": cold["first_step_seconds"],
        "seconds_to_the_first_step, compilation cached": cached["first_step_seconds"],
        "seconds_to_the_first_step, resumed and cached": resumed["first_step_seconds"],
        "seconds_a_save_blocks": summary["seconds_by_part"]["checkpoint"] / (options.steps // 10),
    }


def write_recipe(folder: pathlib.Path, options: Options, steps: int) -> None:
    (folder / "recipe.py").write_text(RECIPE.format(steps=steps, mlp_dim=options.mlp_dim))


def toklab(folder: pathlib.Path, *arguments: Any, cache: str) -> None:
    """Runs a command to its end. Raises CalledProcessError if it fails."""
    subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder / cache), check=True, stdout=subprocess.DEVNULL
    )


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "train.commands.cli", *map(str, arguments)]


def environment(cache: pathlib.Path) -> dict[str, str]:
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }


def train(folder: pathlib.Path, run: str, cache: str) -> dict[str, Any]:
    """Trains to the end; the seconds until the first new line of metrics, and the run's summary."""
    metrics, started = RunFolder(folder / run).metrics, time.perf_counter()
    lines_before = count_lines(metrics)
    process = subprocess.Popen(
        command("train", "recipe.py", "--run-dir", run),
        cwd=folder,
        env=environment(folder / cache),
        stdout=subprocess.DEVNULL,
    )
    while count_lines(metrics) <= lines_before and process.poll() is None:
        time.sleep(0.02)
    first_step_seconds = time.perf_counter() - started
    if process.wait():
        raise SystemExit(process.returncode)
    return {
        "first_step_seconds": first_step_seconds,
        "summary": json.loads((folder / run / "summary.json").read_text()),
    }


def count_lines(file: pathlib.Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
