"""The train step beside PyTorch's: the same decoder, optimizer and batch, in turns, in one run.

    python benchmarks/train_step.py [--steps 8] [--turns 5] [--json-file FILE]

Ours is the step of `toklab train` as it is, with clipping and everything. Theirs is the same decoder as a PyTorch user
would write it (`F.scaled_dot_product_attention`, `F.cross_entropy`, fused AdamW), eager and under `torch.compile`; both
begin with the same weights, and the first losses are compared before anything is timed. Times are medians over turns;
ratios are taken turn by turn. On a GPU both compute in bfloat16. Needs PyTorch, which is no dependency of ours: on a
CPU `pip install torch==2.13.0`.
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
import torch
import torch.nn.functional as F
import tyro
from own_step import OPTIMIZER, OwnStep, Shape
from torch import nn

from models.decoder import DecoderConfig

EPSILON = 1e-6  # of `models.norms.rms_norm`


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
    ours = OwnStep(options.shape)
    params = ours.params
    steps: dict[str, Callable[[], float]] = {"ours": ours, "torch eager": torch_step(options.shape, params)}
    if options.torch_compile:
        steps["torch.compile"] = torch_step(options.shape, params, compiled=True)
    first = {name: [step() for _ in range(2)] for name, step in steps.items()}
    assert np.allclose(list(first.values()), first["ours"], rtol=2e-2 if torch.cuda.is_available() else 1e-4), (
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


class Layer(nn.Module):
    """One pre-norm layer with rotary positions and a gated MLP."""

    def __init__(self, model: DecoderConfig, weights: dict, number: int):
        super().__init__()
        d, heads, h = model.embed_dim, model.num_heads, model.head_dim
        attention, mlp = weights["attention"], weights["mlp"]
        self.heads, self.kv_heads, self.head_dim = heads, model.num_kv_heads, h
        self.qkv = linear(*(attention[name][number].reshape(d, -1) for name in ("query", "key", "value")))
        self.out = linear(attention["out"][number].reshape(-1, d))
        self.gate_up, self.down = linear(mlp["gate"][number], mlp["up"][number]), linear(mlp["down"][number])
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d, EPSILON), nn.RMSNorm(d, EPSILON)

    def forward(self, x_btd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        rows, length, _ = x_btd.shape
        parts = self.qkv(self.attention_norm(x_btd)).split(
            [count * self.head_dim for count in (self.heads, self.kv_heads, self.kv_heads)], dim=-1
        )
        q, k, v = (part.view(rows, length, -1, self.head_dim).transpose(1, 2) for part in parts)
        out = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        x_btd = x_btd + self.out(out.transpose(1, 2).reshape(rows, length, -1))
        gate, up = self.gate_up(self.mlp_norm(x_btd)).chunk(2, dim=-1)
        return x_btd + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Our decoder's weights in PyTorch."""

    def __init__(self, shape: Shape, params: dict):
        super().__init__()
        model = shape.model
        self.embedding = nn.Embedding.from_pretrained(torch.tensor(params["embedding"]), freeze=False)
        self.layers = nn.ModuleList(Layer(model, params["blocks"], number) for number in range(model.num_layers))
        self.norm = nn.RMSNorm(model.embed_dim, EPSILON)
        self.unembedding = linear(params["unembedding"].T)
        half = model.head_dim // 2
        frequency = model.rope_theta ** (-torch.arange(half) / half)
        angle = torch.arange(shape.sequence_length)[:, None] * frequency
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x_btd = self.embedding(ids)
        for layer in self.layers:
            x_btd = layer(x_btd, self.cos, self.sin)
        return F.cross_entropy(self.unembedding(self.norm(x_btd)).flatten(0, 1), targets.flatten())


def linear(*matrices: np.ndarray) -> nn.Linear:
    """x W for one or more W [in, out] beside each other."""
    weight = torch.tensor(np.concatenate(matrices, axis=1).T.copy())
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def torch_step(shape: Shape, params: dict, compiled: bool = False) -> Callable[[], float]:
    """A function that takes a step in PyTorch and returns the loss before it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, ids = Decoder(shape, params).to(device), shape.ids()
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": OPTIMIZER.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        eps=OPTIMIZER.epsilon,
        fused=True,
    )
    forward = torch.compile(model) if compiled else model
    inputs, targets = (torch.tensor(x, dtype=torch.int64, device=device) for x in (ids[:, :-1], ids[:, 1:]))
    autocast = torch.autocast(device, torch.bfloat16, enabled=shape.model.compute_dtype == "bfloat16")

    def run() -> float:
        with autocast:
            loss = forward(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        return loss.item()

    return run


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
    main(tyro.cli(Options, description=__doc__))
