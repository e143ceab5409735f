"""How the train step's time and memory grow with sequence length, vocabulary, depth and devices.

    python benchmarks/scaling.py [--repeats 3] [--json-file FILE]

One thing at a time is changed from the shape of `own_step.py`. Memory is the compiler's: temporaries of a device,
besides weights, optimizer and batch. Devices are virtual ones of this machine's cores, so that their times say what
splitting costs, not what it gains.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import rich.box
import rich.console
import rich.progress
import rich.table
import tyro
from own_step import MODEL, OwnStep, Shape

from train.commands.cli import leave_out_absent_tpus

VARIATIONS = {
    "": Shape(),
    "128 positions": Shape(sequence_length=128, batch_rows=32),
    "512 positions": Shape(sequence_length=512, batch_rows=8),
    "1,024 positions": Shape(sequence_length=1024, batch_rows=4),
    "vocabulary 256": Shape(vocab_size=256),
    "vocabulary 32,768": Shape(vocab_size=32768),
    "3 layers": Shape(model=dataclasses.replace(MODEL, num_layers=3)),
    "12 layers": Shape(model=dataclasses.replace(MODEL, num_layers=12)),
    "12 layers, remat full": Shape(model=dataclasses.replace(MODEL, num_layers=12, remat="full")),
}
DEVICES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Runs every variation, and the first one on several devices."""

    repeats: int = 3
    """Steps that count, of each."""
    json_file: pathlib.Path | None = None
    """Also write the figures here."""
    only: str | None = None
    """One variation, in this process; prints its figures as JSON."""


def main(options: Options) -> None:
    if options.only is not None:
        return print(json.dumps(measure(VARIATIONS[options.only], options.repeats)))
    jobs = [(name or "as it is", name, 1) for name in VARIATIONS] + [
        (f"{count} devices", "", count) for count in DEVICES[1:]
    ]
    rows = [
        {"": label} | in_a_process(name, count, options.repeats)
        for label, name, count in rich.progress.track(jobs, "measuring")
    ]
    table = rich.table.Table(
        title=f"A step of 4,096 positions, {MODEL.embed_dim} wide, on {os.cpu_count()} cores", box=rich.box.SIMPLE_HEAD
    )
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right" if name else "left")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    rich.console.Console().print(table)
    if options.json_file:
        options.json_file.write_text(json.dumps(rows, indent=2))


def in_a_process(name: str, num_devices: int, repeats: int) -> dict[str, float]:
    """The number of devices is fixed when JAX starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, "--repeats", str(repeats)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def measure(shape: Shape, repeats: int) -> dict[str, float]:
    started = time.perf_counter()
    step = OwnStep(shape)
    compile_seconds = time.perf_counter() - started
    step()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return {
        "step_seconds": median,
        "tokens_per_second": shape.tokens / median,
        "gflop_per_second": shape.flops / median / 1e9,
        "temporaries_mb": step.compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "start_and_compile_seconds": compile_seconds,
    }


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
