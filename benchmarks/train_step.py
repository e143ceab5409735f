"""The train step beside PyTorch's: the same decoder, optimizer and batch, in turns, in one run.

    python benchmarks/train_step.py [--steps 8] [--turns 5] [--json-file FILE]

Ours is the step of `toklab train` as it is, with clipping and everything. Theirs is the same decoder as a PyTorch user
would write it (`F.scaled_dot_product_attention`, `F.cross_entropy`, fused AdamW), eager and under `torch.compile`; both
begin with the same weights, and the first losses are compared before anything is timed. Times are medians over turns;
ratios are taken turn by turn. On a GPU both compute in bfloat16. Needs PyTorch, which is no dependency of ours
(`pytorch.py`).
"""

import dataclasses
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
import tyro
from own_step import OwnStep, Shape
from pytorch import require_pytorch

from train.commands.cli import leave_out_absent_tpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Times the steps."""

    shape: Shape = Shape()
    steps: int = 8
    """Of each in a turn."""
    turns: int = 5
    """After one that does not count."""
    torch_compile: bool = True
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


def main(options: Options) -> None:
    require_pytorch()
    from torch_step import on_gpu, torch_step

    ours = OwnStep(options.shape)
    params = ours.params
    steps: dict[str, Callable[[], float]] = {"ours": ours, "torch eager": torch_step(options.shape, params)}
    if options.torch_compile:
        steps["torch.compile"] = torch_step(options.shape, params, compiled=True)
    first = {name: [step() for _ in range(2)] for name, step in steps.items()}
    assert np.allclose(list(first.values()), first["ours"], rtol=2e-2 if on_gpu() else 1e-4), (
        f"the losses differ: {first}"
    )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.turns + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                step()
            seconds[name].append((time.perf_counter() - start) / options.steps)
    report(options, {name: times[1:] for name, times in seconds.items()}, params)


def report(options: Options, seconds: dict[str, list[float]], params: dict) -> None:
    num_parameters = sum(x.size for x in jax.tree.leaves(params))
    shape, tokens = options.shape, options.shape.tokens
    table = rich.table.Table(
        title=(
            f"{num_parameters / 1e6:.2f}M parameters, {shape.batch_rows} x {shape.sequence_length} positions, vocab"
            f" {shape.vocab_size:,}, {shape.model.compute_dtype}, on {jax.devices()[0].device_kind} ({os.cpu_count()}"
            " cores)"
        ),
        box=rich.box.SIMPLE_HEAD,
    )
    for name in ("", "ms a step", "tokens/s", "TFLOP/s", "times ours' speed (min / median / max)"):
        table.add_column(name, justify="right" if name else "left")
    figures = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        ratios = sorted(mine / theirs for mine, theirs in zip(seconds["ours"], times))
        figures[name] = {
            "seconds": times,
            "tokens_per_second": tokens / median,
            "flops_per_second": shape.flops / median,
            "times_ours": ratios,
        }
        table.add_row(
            name,
            f"{1e3 * median:.0f}",
            f"{tokens / median:,.0f}",
            f"{shape.flops / median / 1e12:.3g}",
            f"{ratios[0]:.2f} / {statistics.median(ratios):.2f} / {ratios[-1]:.2f}",
        )
    rich.console.Console().print(table)
    if options.json_file:
        options.json_file.write_text(
            json.dumps({"parameters": num_parameters, "tokens": tokens, "steps": figures}, indent=2)
        )


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
