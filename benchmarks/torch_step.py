"""The decoder of `own_step.py` and its training step, as a PyTorch user would write them."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from own_step import OPTIMIZER, Shape
from torch import nn

from models.decoder import DecoderConfig

EPSILON = 1e-6  # of `models.norms.rms_norm`


def on_gpu() -> bool:
    return torch.cuda.is_available()


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
    device = "cuda" if on_gpu() else "cpu"
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
