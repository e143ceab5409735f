"""Projection and softmax cross-entropy: ours beside optax's loss on logits and tokamax's, time and memory on this
machine.

    python benchmarks/loss.py [--repeats 5] [--json-file FILE]

One turn is the mean loss and its gradients by hidden states and table, float32 on a CPU and bfloat16 elsewhere. All
agree before anything is timed, and take turns; ratios to "ours, plain" are taken turn by turn. Memory is what the
compiled program needs besides its arguments and results (on a TPU without one: benchmarks/loss_memory.py). tokamax is
no dependency of ours, and compared where it is installed, in an environment that may be thrown away:

    pip install tokamax==0.0.12 && pip install 'typeguard>=4'

The second is for tyro; pip's complaint about tokamax is answered below.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.box
import rich.console
import rich.table
import tyro

from tokenizer_lab.kernels.linear_cross_entropy import linear_cross_entropy
from train.commands.cli import leave_out_absent_tpus

try:
    with mock.patch(
        "typeguard.typechecked", lambda function: function
    ):  # it checks its types by typeguard 2, and fails at some by 4
        import tokamax
        from absl import flags
        from tokamax._src.ops.linear_softmax_cross_entropy_loss import pallas_mosaic_tpu_kernel as tokamax_kernel
    flags.FLAGS.mark_as_parsed()  # or it would take our arguments for its own
except ImportError:
    tokamax = None

SHAPES = (
    (1408, 2048, 128),
    (2048, 32_768, 512),
)  # positions, ids, width: a batch of demo_subword, and a vocabulary as large as models' are
BASELINE = "ours, plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measures the losses at every shape."""

    repeats: int = 5
    """Turns, after one that does not count."""
    json_file: pathlib.Path | None = None
    """Also write the figures here."""


class Loss(NamedTuple):
    """A way to compute the mean loss of some positions."""

    mean: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    """(x f[N, D], table, labels i32[N]) -> f32[]."""
    table_by_ids: bool = True
    """Whether the table is f[V, D]; tokamax's is f[D, V]."""

    def differentiated(self) -> Callable:
        """The loss, and its gradients by x and table."""
        return jax.jit(jax.value_and_grad(self.mean, (0, 1)))

    def abstract_arguments(
        self, num_positions: int, num_ids: int, width: int, dtype, **options
    ) -> tuple[jax.ShapeDtypeStruct, ...]:
        table = (num_ids, width) if self.table_by_ids else (width, num_ids)
        types = ((num_positions, width), dtype), (table, dtype), ((num_positions,), jnp.int32)
        return tuple(jax.ShapeDtypeStruct(*type_, **options) for type_ in types)


def ours(implementation: str, x_nd: jax.Array, table_vd: jax.Array, labels_n: jax.Array) -> jax.Array:
    nats_1n, _ = linear_cross_entropy(
        x_nd[None], table_vd, labels_n[None], vocab_size=len(table_vd), implementation=implementation
    )
    return jnp.mean(nats_1n)


def by_optax(x_nd: jax.Array, table_vd: jax.Array, labels_n: jax.Array) -> jax.Array:
    logits_nv = jnp.matmul(x_nd, table_vd.T, preferred_element_type=jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits_nv, labels_n))


def by_tokamax(x_nd: jax.Array, table_dv: jax.Array, labels_n: jax.Array) -> jax.Array:
    return tokamax.linear_softmax_cross_entropy_loss(
        x_nd, labels_n, table_dv, reduction="mean", implementation="xla"
    ).astype(jnp.float32)


def by_tokamax_kernel(x_nd: jax.Array, table_dv: jax.Array, labels_n: jax.Array) -> jax.Array:
    """Its TPU kernel with its own block sizes for a v5e; the public function only takes it where it finds a TPU."""
    options = dict(b_block_size=1024, h_block_size=512, v_block_size=512, reduction="mean")

    @jax.custom_vjp
    def loss(x_nd, table_dv):
        return forward(x_nd, table_dv)[0]

    def forward(x_nd, table_dv):
        mean, logz_n = tokamax_kernel.linear_softmax_cross_entropy_loss_fwd_pallas_mosaic_tpu(
            x_nd, labels_n, table_dv, **options
        )
        return mean, (x_nd, table_dv, logz_n)

    def backward(residuals, by_mean):
        x_nd, table_dv, logz_n = residuals
        return tokamax_kernel.linear_softmax_cross_entropy_loss_bwd_pallas_mosaic_tpu(
            by_mean, logz_n, x_nd, labels_n, table_dv, **options
        )

    loss.defvjp(forward, backward)
    return loss(x_nd, table_dv)


def losses(platform: str) -> dict[str, Loss]:
    """All that there are on a platform, by name."""
    kernel = {"tpu": "pallas", "gpu": "pallas_gpu"}.get(platform)
    found = {"ours, kernel": Loss(functools.partial(ours, kernel))} if kernel else {}
    found |= {
        "ours, in chunks": Loss(functools.partial(ours, "chunked")),
        BASELINE: Loss(functools.partial(ours, "reference")),
    }
    found["optax on logits"] = Loss(by_optax)
    if tokamax is None:
        print(
            "tokamax is left out: it is not installed (pip install tokamax==0.0.12 && pip install 'typeguard>=4')",
            file=sys.stderr,
        )
        return found
    found["tokamax, XLA"] = Loss(by_tokamax, table_by_ids=False)
    return found | ({"tokamax, kernel": Loss(by_tokamax_kernel, table_by_ids=False)} if platform == "tpu" else {})


def measure(shape: tuple[int, int, int], repeats: int) -> list[dict]:
    """A row for each loss."""
    num_positions, num_ids, width = shape
    dtype, found, keys = (
        jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16,
        losses(jax.default_backend()),
        jax.random.split(jax.random.key(0), 3),
    )
    x_nd = jax.random.normal(keys[0], (num_positions, width), dtype)
    table_vd = jax.random.normal(keys[1], (num_ids, width), dtype) * width**-0.5
    labels_n = jax.random.randint(keys[2], (num_positions,), 0, num_ids)
    arguments = {
        name: (x_nd, table_vd if loss.table_by_ids else jnp.array(table_vd.T), labels_n) for name, loss in found.items()
    }
    programs = {name: loss.differentiated().lower(*arguments[name]).compile() for name, loss in found.items()}
    check({name: program(*arguments[name]) for name, program in programs.items()}, found)
    seconds = {name: [] for name in programs}
    for _ in range(repeats + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments[name]))
            seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: [plain / own for plain, own in zip(seconds[BASELINE][1:], times[1:])] for name, times in seconds.items()
    }
    return [
        {
            "shape": f"{num_positions:,} x {num_ids:,} x {width}",
            "loss": name,
            "seconds": statistics.median(seconds[name][1:]),
            "times as fast as plain": (min(ratios[name]), statistics.median(ratios[name]), max(ratios[name])),
            "temporaries MB": program.memory_analysis().temp_size_in_bytes / 1e6,
        }
        for name, program in programs.items()
    ]


def check(results: dict[str, tuple], found: dict[str, Loss]) -> None:
    """Values and gradients are the same, up to rounding."""
    expected, (expected_by_x, expected_by_table) = results[BASELINE]
    for name, (mean, (by_x, by_table)) in results.items():
        by_table = by_table if found[name].table_by_ids else by_table.T
        for result, wanted in ((mean, expected), (by_x, expected_by_x), (by_table, expected_by_table)):
            largest = np.abs(np.asarray(wanted, np.float32)).max()
            tolerance = largest * (1e-4 if by_x.dtype == jnp.float32 else 2e-2)
            np.testing.assert_allclose(
                np.asarray(result, np.float32), np.asarray(wanted, np.float32), rtol=0, atol=tolerance, err_msg=name
            )


def main(options: Options) -> None:
    rows = [row for shape in SHAPES for row in measure(shape, options.repeats)]
    table = rich.table.Table(title=f"Loss and gradients on {jax.devices()[0].device_kind}", box=rich.box.SIMPLE_HEAD)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "loss" else "right")
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
