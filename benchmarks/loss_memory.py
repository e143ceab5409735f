"""What the loss needs of a TPU's memory: the kernel, chunked XLA and plain XLA, by what the compiler says. Nothing runs, no TPU is needed.

    python benchmarks/loss_memory.py [--topology v5e:2x2] [--vocab-size 65536] [--width 768] [--step] [--json-file FILE]

Temporaries are what a compiled program needs besides its arguments and results: "loss" for the loss and its gradients alone, bfloat16
hidden states and table, 8,192 positions of one chip; with --step, "step" for the training step of a decoder of two layers with as many
positions a chip, all optimizations on, which takes minutes to compile.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys

import rich.box
import rich.console
import rich.table
import tyro

from models.decoder import DecoderConfig
from train.optimizer import Budget
from train.plan import Pod, compile_ahead
from train.recipe import DataConfig, Recipe

NUM_POSITIONS, SEQUENCE_LENGTH = 8192, 1024
IMPLEMENTATIONS = {"kernel": "auto", "chunked XLA": "chunked", "plain XLA": "reference"}
COMPILE = pathlib.Path(__file__).resolve().parents[1] / "tests/tokenizer_lab/kernels/linear_cross_entropy_compile.py"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compiles for one topology."""

    topology: str = "v5e:2x2"
    vocab_size: int = 65536
    width: int = 768
    step: bool = False
    """Also compile training steps."""
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


def run(script: pathlib.Path, *arguments: str) -> dict:
    """The JSON that a script prints last. It is a process of its own: see its docstring."""
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def loss_bytes(options: Options, implementation: str) -> int:
    shape = f"{NUM_POSITIONS}x{options.vocab_size}x{options.width}"
    programs = run(COMPILE, options.topology, "--shapes", shape, "--implementation", implementation)
    return programs[options.topology][0]["temp_bytes"]


def step_bytes(options: Options, implementation: str) -> int:
    heads, pod = options.width // 64, Pod(options.topology)
    recipe = Recipe(
        name="loss_memory", representation="none", budget=Budget(steps=100), kernels=implementation,
        data=DataConfig(corpora=("none",), batch_rows=pod.num_chips * NUM_POSITIONS // SEQUENCE_LENGTH, sequence_length=SEQUENCE_LENGTH),
        model=DecoderConfig(num_layers=2, embed_dim=options.width, num_heads=heads, num_kv_heads=heads, mlp_dim=8 * options.width // 3))
    return compile_ahead(recipe, options.vocab_size, pod)["memory"]["temp"]


def main(options: Options) -> None:
    rows = []
    for name, implementation in IMPLEMENTATIONS.items():
        row = {"implementation": name, "loss": loss_bytes(options, implementation)}
        has_step = options.step and implementation != "chunked"  # which no recipe asks for
        rows.append(row | ({"step": step_bytes(options, implementation)} if has_step else {}))
    title = f"Temporaries, MB, {options.topology}, vocabulary {options.vocab_size:,}, width {options.width}, {NUM_POSITIONS:,} positions a chip"
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "implementation" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value / 1e6:,.2f}" for value in row.values()))
    rich.console.Console().print(table)
    if options.json_file:
        options.json_file.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
