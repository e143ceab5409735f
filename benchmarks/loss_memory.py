"""What the loss needs of a TPU's memory, by what its compiler says. Nothing runs, no TPU is needed.

    python benchmarks/loss_memory.py [--topology v5e:2x2] [--vocab-size 65536] [--width 768] [--step] [--json-file FILE]

Temporaries are what a compiled program needs besides its arguments and results, bfloat16, with 8,192 positions a chip.
"loss alone": of the loss and its gradients on one chip, by ours, optax and tokamax (benchmarks/loss.py). With --step,
which takes minutes to compile, "step": of the training step of a decoder of two layers over the whole topology, with
what is wasted by packing them; "alive": the most of them that the step has at a time; and "the loss's part" of both:
what they are more than of the same step with `LabelLogits` in place of the loss.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.console
import rich.table
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from loss import Loss, losses

from models.axes import current_placement, use_placement
from models.decoder import Decoder, DecoderConfig
from train.commands.cli import leave_out_absent_tpus
from train.objectives import Batch, Causal, Sums
from train.optimizer import Budget
from train.plan.compiled_step import compile_step
from train.plan.tpu_stand_in import topology_devices  # before JAX
from train.recipe import DataConfig, Recipe

NUM_POSITIONS, SEQUENCE_LENGTH = 8192, 1024
IMPLEMENTATIONS = {
    "ours, kernel": "pallas",
    "ours, in chunks": "chunked",
    "ours, plain": "reference",
}  # that a step can have


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


class _Computed:
    """A model whose hidden states are there already."""

    def __init__(self, model: Decoder, batch: Batch):
        self.output_table, self.vocab_size = model.output_table, model.vocab_size
        self._hidden_btd = model(batch["ids"], batch["segment_ids"], batch["positions"])

    def __call__(self, *_: jax.Array) -> jax.Array:
        return self._hidden_btd


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalBy(Causal):
    """The objective with its loss by an implementation, whatever computes the rest of the step."""

    implementation: str

    def __call__(self, model: Decoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        computed = _Computed(model, batch)
        with use_placement(dataclasses.replace(current_placement(), kernels=self.implementation)):
            return super().__call__(computed, batch, rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelLogits(Causal):
    """The labels' logits and no others: what is left of the loss without its softmax, with the same inputs and
    gradients by all of them."""

    def __call__(self, model: Decoder, batch: Batch, rng: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
        del rng
        computed = _Computed(model, batch)
        rows_btd = computed.output_table[batch["targets"]]
        total = -jnp.einsum("btd,btd->", computed(), rows_btd, preferred_element_type=jnp.float32)
        return total, jnp.sum((batch["segment_ids"] > 0).astype(jnp.float32)), {"nats": total}


def loss_bytes(options: Options, devices: Sequence[jax.Device], loss: Loss) -> int:
    mesh = Mesh(np.array(devices[:1]), ("chip",))
    arguments = loss.abstract_arguments(
        NUM_POSITIONS, options.vocab_size, options.width, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    with jax.set_mesh(mesh):  # kernels ask it which chip they are compiled for
        return loss.differentiated().lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def step_bytes(options: Options, devices: Sequence[jax.Device], objective: Causal) -> dict[str, int]:
    heads = options.width // 64
    recipe = Recipe(
        name="loss_memory",
        representation="none",
        budget=Budget(steps=100),
        objective=objective,
        data=DataConfig(
            corpora=("none",),
            batch_rows=len(devices) * NUM_POSITIONS // SEQUENCE_LENGTH,
            sequence_length=SEQUENCE_LENGTH,
        ),
        model=DecoderConfig(
            num_layers=2, embed_dim=options.width, num_heads=heads, num_kv_heads=heads, mlp_dim=8 * options.width // 3
        ),
    )
    memory = compile_step(recipe, options.vocab_size, devices)["memory"]
    return {"step": memory["temp"], "alive": memory["peak"] - memory["argument"]}


def measure(options: Options) -> list[dict]:
    devices = topology_devices(options.topology)
    rows = [{"loss": name, "loss alone": loss_bytes(options, devices, loss)} for name, loss in losses("tpu").items()]
    if options.step:
        without = step_bytes(options, devices, LabelLogits())
        for row in rows:
            if implementation := IMPLEMENTATIONS.get(row["loss"]):
                step = step_bytes(options, devices, CausalBy(implementation=implementation))
                row |= step | {f"{name}, the loss's part": step[name] - without[name] for name in step}
        rows.append({"loss": "labels' logits"} | without)
    return rows


def main(options: Options) -> None:
    rows = measure(options)
    title = (
        f"Temporaries, MB, {options.topology}, vocabulary {options.vocab_size:,}, width {options.width},"
        f" {NUM_POSITIONS:,} positions a chip"
    )
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD)
    table.add_column("loss")
    columns = list(rows[0])[1:]
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row["loss"], *(f"{row[name] / 1e6:,.2f}" if name in row else "" for name in columns))
    rich.console.Console().print(table)
    if options.json_file:
        options.json_file.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    leave_out_absent_tpus()
    main(tyro.cli(Options, description=__doc__))
