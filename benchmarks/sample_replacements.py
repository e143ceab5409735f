"""The generator's head: the fused loss and sample against the plain one, time and memory on this machine.

    python benchmarks/sample_replacements.py [--repeats 5] [--json-file FILE]

One step is samples, loss and gradients at the masked positions of a batch. "fused" is what the platform gets (on a CPU
the chunked XLA path, on a TPU the kernel), "plain" has all logits in memory. The two take turns; the ratio is taken
turn by turn. Memory is what the compiled program needs besides its arguments and results. What a TPU's compiler says of
both:

    python tests/tokenizer_lab/kernels/sample_replacements_compile.py v5e:2x2 [--implementation reference]
"""

import dataclasses
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table
import tyro

from tokenizer_lab.kernels.sample_replacements import sample_replacements
from train.commands.cli import leave_out_absent_tpus

SHAPES = ((2432, 32_768, 128), (2432, 65_536, 128), (2432, 65_536, 256))  # 128 rows of 19 masked positions; ids; width
IMPLEMENTATIONS = {"fused": "auto", "plain": "reference"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measures the step of every shape."""

    repeats: int = 5
    """Turns, after one that does not count."""
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


def compile_step(implementation: str, arguments: tuple, vocab_size: int):
    def loss(x_nd, table_vd, bias_v, labels_n, seeds_n2):
        nats_n, _, samples_n = sample_replacements(
            x_nd, table_vd, labels_n, seeds_n2, bias_v, vocab_size=vocab_size, implementation=implementation
        )
        return jnp.mean(nats_n), samples_n

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True)).lower(*arguments).compile()


def measure(num_positions: int, vocab_size: int, width: int, repeats: int) -> dict:
    keys = jax.random.split(jax.random.key(0), 4)
    arguments = (
        jax.random.normal(keys[0], (num_positions, width)),
        jax.random.normal(keys[1], (vocab_size, width)) * width**-0.5,
        jnp.zeros(vocab_size),
        jax.random.randint(keys[2], (num_positions,), 0, vocab_size),
        jax.random.bits(keys[3], (num_positions, 2), jnp.uint32),
    )
    steps = {
        name: compile_step(implementation, arguments, vocab_size) for name, implementation in IMPLEMENTATIONS.items()
    }
    seconds = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            seconds[name].append(time.perf_counter() - start)
    ratios = [plain / fused for plain, fused in zip(seconds["plain"][1:], seconds["fused"][1:])]
    return {
        "shape": f"{num_positions:,} x {vocab_size:,} x {width}",
        **{f"{name} seconds": statistics.median(times[1:]) for name, times in seconds.items()},
        "times as fast": (min(ratios), statistics.median(ratios), max(ratios)),
        **{f"{name} MB": step.memory_analysis().temp_size_in_bytes / 1e6 for name, step in steps.items()},
    }


def main(options: Options) -> None:
    rows = [measure(*shape, options.repeats) for shape in SHAPES]
    table = rich.table.Table(
        title=f"Samples, loss and gradients on {jax.devices()[0].device_kind}, float32", box=rich.box.SIMPLE_HEAD
    )
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            *(
                (
                    value
                    if isinstance(value, str)
                    else " / ".join(f"{part:.3g}" for part in (value if isinstance(value, tuple) else (value,)))
                )
                for value in row.values()
            )
        )
    rich.console.Console().print(table)
    if options.json_file:
        options.json_file.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
