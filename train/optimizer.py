"""Optimizers, learning-rate schedules and how long a run is.

Everything is a function of progress, the share of the budget that is spent (0 to 1), whatever the budget is counted in:
so two arms with equal budgets in bytes are at the same point of their schedules when they have seen the same text.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from tokenizer_lab.errors import POSITIVE, SHARE, Range, UserError, check_numbers

LIMB_BITS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run is: exactly one of the four."""

    steps: int | None = None
    bytes: int | None = None
    """Bytes of original text seen."""
    flops: float | None = None
    """Training FLOPs of the model, everything included."""
    seconds: float | None = None
    """Time spent in steps and waiting for their data, by the clock of the first process; start-up, compiling,
    evaluations and saves are not in it. How many steps that is, and so every number, differs from run to run."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) == 1:
            check_numbers(
                self, "budget.", bytes=Range(least=1, most=2 ** (31 + LIMB_BITS) - 1), flops=POSITIVE, seconds=POSITIVE
            )
        else:
            others = " ".join(f"--budget.{name} None" for name in list(given)[1:])
            raise UserError(
                f"budget {given or 'of nothing'}: give exactly one of steps, bytes, flops and seconds, more than 0"
                + (f"; e.g. {others} with the first" if others else "")
            )

    @property
    def kind(self) -> str:
        """Which of the four it is in."""
        return next(name for name, value in dataclasses.asdict(self).items() if value is not None)

    @property
    def twice(self) -> str:
        """The option that gives a run this budget once more."""
        name, value = self.kind, getattr(self, self.kind)
        return f"--budget.{name} {2 * value:g}" if name in ("flops", "seconds") else f"--budget.{name} {2 * value}"


def total_steps(budget: Budget, flops_per_step: float) -> int | None:
    """Steps that the budget pays for, or None where only the data (a budget in bytes) or the clock can tell."""
    if budget.steps is not None:
        return budget.steps
    if budget.flops is None:
        return None
    if (steps := math.ceil(budget.flops / flops_per_step)) >= 2**31:
        raise UserError(
            f"budget.flops {budget.flops:.3g} pays for {steps:.3g} steps; a run has less than 2^31, lower it"
        )
    return steps


Meter = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def make_meter(budget: Budget, flops_per_step: float) -> Meter:
    """The function (steps i32[], bytes seen i32[2] of `limbs`, seconds f32[]) -> (share of the budget spent f32[],
    whether it is all spent bool[])."""
    if (limit := budget.seconds) is not None:
        return lambda step, bytes_seen, seconds: (jnp.minimum(1.0, seconds / limit), seconds >= limit)
    steps = total_steps(budget, flops_per_step)
    if steps is not None:
        return lambda step, bytes_seen, seconds: (step / steps, step >= steps)
    num_bytes = budget.bytes
    assert num_bytes is not None, budget
    end_high, end_low = limbs(num_bytes)

    def meter(step, bytes_seen, seconds):
        del step, seconds
        high, low = bytes_seen
        share = (high.astype(jnp.float32) * 2.0**LIMB_BITS + low) / float(num_bytes)  # an int might not fit an int32
        return share, (high > end_high) | ((high == end_high) & (low >= end_low))

    return meter


def limbs(number: int) -> tuple[int, int]:
    """A count as two int32, the last with 30 bits: exact beyond what an int32 or a float32 of a device can hold."""
    return number >> LIMB_BITS, number & (2**LIMB_BITS - 1)


def sum_in_limbs(counts_n: jax.Array) -> jax.Array:
    """i32[N] counts, at least 0 -> i32[2], their sum as `limbs` takes it apart; exact up to 2^20 counts and 2^44."""
    small = 12
    counts_n = counts_n.astype(jnp.uint32)
    low = jnp.sum(counts_n & (2**small - 1), dtype=jnp.uint32)
    high = jnp.sum(counts_n >> small, dtype=jnp.uint32) + (low >> small)
    high_of_limb = LIMB_BITS - small
    low = (high & (2**high_of_limb - 1)) << small | low & (2**small - 1)
    return jnp.stack([high >> high_of_limb, low]).astype(jnp.int32)


def add_limbs(one: jax.Array, other: jax.Array) -> jax.Array:
    """i32[2], the sum of two counts that `limbs` took apart."""
    low = one[1] + other[1]
    return jnp.stack([one[0] + other[0] + (low >> LIMB_BITS), low & (2**LIMB_BITS - 1)])


def from_limbs(pair: Any) -> int:
    """The count that `limbs` took apart."""
    return (int(pair[0]) << LIMB_BITS) + int(pair[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) or Muon (Jordan et al. 2024) with a schedule over progress."""

    kind: Literal["adamw", "muon"] = "adamw"
    """Muon takes the layers' matrices, AdamW (then with Nesterov's momentum) what is left."""
    learning_rate: float = 3e-3
    """At the schedule's top."""
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """Warm-up, then cosine decay; warm-up, stable, linear decay (WSD; Hu et al. 2024, arXiv 2404.06395, section 4); or
    linear decay over the whole run, multiplied by the warm-up (google-research/electra)."""
    warmup_share: float = 0.05
    """Share of the budget over which the learning rate rises linearly."""
    decay_share: float = 0.2
    """Share of the budget over which it falls at the end; of `wsd` only."""
    final_share: float = 0.1
    """The learning rate at the end, as a share of the top."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    bias_correction: bool = True
    """Of Adam's moments (Kingma & Ba 2015, arXiv 1412.6980, section 3); BERT and ELECTRA were trained without it."""
    weight_decay: float = 0.1
    """Decoupled; of matrices only, not of norms and biases (with Muon: of the matrices it takes)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    skip_above: float = 20.0
    """A step whose gradient norm is this many times its running mean is skipped, as is a non-finite one."""
    max_skipped_in_a_row: int = 20
    """After this many skipped steps in a row the run stops."""

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("warmup_share", "decay_share", "final_share"), SHARE)
        positive = dict.fromkeys(("learning_rate", "epsilon", "clip_norm", "skip_above"), POSITIVE)
        betas = dict.fromkeys(("beta1", "beta2"), Range(least=0, below=1))
        check_numbers(self, "optimizer.", **shares, **positive, **betas)
        if self.kind == "muon" and not self.bias_correction:
            raise UserError(
                "optimizer.bias_correction false is an option of optimizer.kind 'adamw'; set it to true, or the kind to"
                " 'adamw'"
            )
        if self.schedule == "wsd" and self.warmup_share + self.decay_share > 1:
            raise UserError(
                f"optimizer.warmup_share {self.warmup_share} + decay_share {self.decay_share} is more than the whole"
                " run; lower one"
            )


def learning_rate(config: OptimizerConfig, progress: jax.Array) -> jax.Array:
    """f32[] at a progress f32[] in [0, 1]."""
    remaining: Any  # f32[], or the number 1
    warmup = jnp.minimum(1.0, progress / config.warmup_share) if config.warmup_share else 1.0
    if config.schedule == "cosine":
        after_warmup = jnp.clip((progress - config.warmup_share) / max(1e-9, 1 - config.warmup_share), 0, 1)
        remaining = 0.5 * (1 + jnp.cos(jnp.pi * after_warmup))
    elif config.schedule == "linear":
        remaining = jnp.clip(1 - progress, 0, 1)
    else:
        remaining = jnp.clip((1 - progress) / config.decay_share, 0, 1) if config.decay_share else 1.0
    return config.learning_rate * warmup * (config.final_share + (1 - config.final_share) * remaining)


def make_optimizer(config: OptimizerConfig, axes: Any) -> optax.GradientTransformation:
    """The update rule at a learning rate of 1; the step scales it.

    Args:
      config: the options.
      axes: nested dict of the parameters' logical axes (`models.axes.parameter_axes`).
    """
    is_axes = lambda leaf: isinstance(leaf, tuple)
    decayed = jax.tree.map(_is_matrix, axes, is_leaf=is_axes)
    adam = dict(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    if not config.bias_correction:
        weight_decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
        return optax.chain(scale_by_uncorrected_adam(**adam), weight_decay, optax.scale(-1.0))
    if config.kind == "adamw":
        return optax.adamw(1.0, **adam, weight_decay=config.weight_decay, mask=decayed)
    return optax.contrib.muon(
        1.0,
        weight_decay=config.weight_decay,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        eps=config.epsilon,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=jax.tree.map(_muon_dimensions, axes, is_leaf=is_axes),
    )


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's update from moments that are not corrected for having begun at 0 (optimization.py of
    google-research/bert)."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * jnp.square(g), state.nu, grads)
        return jax.tree.map(lambda m, n: m / (jnp.sqrt(n) + eps), mu, nu), optax.ScaleByAdamState(
            count=state.count + 1, mu=mu, nu=nu
        )

    return optax.GradientTransformation(init, update)


def _is_matrix(names: tuple[str, ...]) -> bool:
    """Whether a parameter of these axes, layers apart, is one; every matrix reads or writes the residual stream, biases
    of heads do not."""
    return "embed" in names and len([name for name in names if name != "layers"]) > 1


def _muon_dimensions(names: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a layer's matrix are summed over when it is applied, and which come out; None: AdamW takes it."""
    matrix = [number for number, name in enumerate(names) if name != "layers"]
    if names[0] != "layers" or not _is_matrix(names):
        return None
    outputs = matrix[-1:] if names[-1] == "embed" else matrix[1:]
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=tuple(number for number in matrix if number not in outputs), output_axis=tuple(outputs)
    )
