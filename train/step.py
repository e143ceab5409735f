"""One training step: the state it changes and the jitted function that changes it.

The state is everything a run needs to go on exactly, as one tree of arrays that is donated to each step, sharded over
the mesh and saved as one unit: weights, optimizer, counters, random key and the data's cursors.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from data.rows import cursor_width
from models.axes import Kernels, Placement, parameter_axes, use_placement
from train.objectives import AnyObjective, Batch
from train.optimizer import Meter, OptimizerConfig, add_limbs, learning_rate, make_optimizer, sum_in_limbs
from train.sharding import cursor_sharding, parameter_shardings, placement, replicated

_NORM_DECAY = 0.98  # of the running mean of gradient norms
_STEPS_BEFORE_SPIKES = 50  # a running mean of fewer steps says little


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step."""

    params: dict[str, Any]
    opt_state: Any
    step: jax.Array
    """i32[], steps taken, skipped ones included."""
    bytes_seen: jax.Array
    """i32[2], source bytes trained on (`train.optimizer.limbs`)."""
    cursors: jax.Array
    """i32[B, S + 3], from where each row's stream goes on (`data/rows.py`)."""
    seconds: jax.Array
    """f32[], training time up to the start of the last step, where the budget is in seconds; else 0. The loop sets
    it."""
    mean_grad_norm: jax.Array
    """f32[], running mean over steps that were not skipped."""
    skipped_steps: jax.Array
    """i32[], updates left out because they were not finite or their gradient spiked."""
    skipped_in_a_row: jax.Array
    """i32[]."""
    rng: jax.Array
    """u32[2], the run's key; a step's key is it folded with the step number."""


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """What a training step is made of, before it meets data."""

    model_def: Any
    """`nnx.GraphDef` of the model."""
    axes: dict[str, Any]
    """Logical axes of the parameters."""
    optimizer: optax.GradientTransformation
    init: Callable[[jax.typing.ArrayLike], TrainState]
    """u32[2] key -> the state before the first step."""
    shapes: TrainState
    """The state's shapes."""
    shardings: TrainState
    """Where each part of the state lives."""


@dataclasses.dataclass(frozen=True)
class AbstractModel:
    """A model of which nothing is allocated."""

    build: Callable[[nnx.Rngs], nnx.Module]
    definition: Any
    """Its `nnx.GraphDef`."""
    shapes: dict[str, Any]
    """Of the parameters."""
    axes: dict[str, Any]
    """Their logical axes."""


def abstract_model(build: Callable[[nnx.Rngs], nnx.Module]) -> AbstractModel:
    definition, params = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)
    return AbstractModel(build, definition, nnx.to_pure_dict(params), parameter_axes(params))


def build_program(
    model: AbstractModel, config: OptimizerConfig, mesh: Mesh, *, batch_rows: int, num_sources: int
) -> StepProgram:
    """Lays a model's training state out over a mesh without allocating any of it. Raises UserError where it does not
    fit the mesh."""
    optimizer = make_optimizer(config, model.axes)

    def start(key: jax.Array) -> TrainState:
        params = nnx.to_pure_dict(nnx.state(model.build(nnx.Rngs(jax.random.wrap_key_data(key))), nnx.Param))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            params=params,
            opt_state=optimizer.init(params),
            step=zero,
            bytes_seen=jnp.zeros(2, jnp.int32),
            cursors=jnp.zeros((batch_rows, cursor_width(num_sources)), jnp.int32),
            seconds=jnp.zeros(()),
            mean_grad_norm=jnp.zeros(()),
            skipped_steps=zero,
            skipped_in_a_row=zero,
            rng=key,
        )

    shapes = jax.eval_shape(start, jax.ShapeDtypeStruct((2,), jnp.uint32))
    by_parameter = parameter_shardings(mesh, shapes.params, model.axes)
    everywhere = replicated(mesh)
    shardings = dataclasses.replace(
        jax.tree.map(lambda _: everywhere, shapes),
        params=by_parameter,
        opt_state=_optimizer_shardings(shapes.opt_state, shapes.params, by_parameter, everywhere),
        cursors=cursor_sharding(mesh),
    )
    return StepProgram(
        model.definition, model.axes, optimizer, jax.jit(start, out_shardings=shardings), shapes, shardings
    )


def _optimizer_shardings(opt_state: Any, params: Any, by_parameter: Any, otherwise: NamedSharding) -> Any:
    """Moments live where their parameter does: they are found by the parameter's path at the end of theirs, and its
    shape."""
    shapes, shardings = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (params, by_parameter))

    def sharding(path, leaf):
        parameter = next((path[start:] for start in range(len(path)) if path[start:] in shapes), None)
        return shardings[parameter] if parameter and shapes[parameter].shape == leaf.shape else otherwise

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def make_train_step(
    program: StepProgram,
    objective: AnyObjective,
    config: OptimizerConfig,
    mesh: Mesh,
    *,
    meter: Meter,
    num_microbatches: int = 1,
    kernels: Kernels = "auto",
) -> jax.stages.Wrapped:
    """The jitted step (state, batch) -> (state, metrics); the state is donated.

    Args:
      program: of `build_program`.
      objective: of `train/objectives/`.
      config: the optimizer's options.
      mesh: the mesh.
      meter: of `train.optimizer.make_meter`. Once the budget is all spent a step changes nothing.
      num_microbatches: the batch is taken in this many parts whose gradients are added up.
      kernels: as in a recipe.
    """
    gradients = functools.partial(_mean_gradients, program, objective, placement(mesh, kernels), num_microbatches)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = dict(batch)
        cursors, num_bytes = batch.pop("cursors"), sum_in_limbs(batch.pop("num_bytes"))
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        share, over = meter(state.step, state.bytes_seen, state.seconds)
        rate = learning_rate(config, share)
        grads, weight, sums = gradients(state.params, batch, rng)
        norm = optax.tree.norm(grads)
        spiked = _is_spike(config, state, norm)
        good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"]) & ~spiked

        params, opt_state, mean_grad_norm = jax.lax.cond(
            good & ~over,
            lambda: _update(program, objective, config, state, grads, norm, rate, sums["sums"]),
            lambda: (state.params, state.opt_state, state.mean_grad_norm),
        )
        counted = _count(state, over, cursors, num_bytes, skipped := (~good).astype(jnp.int32))
        state = dataclasses.replace(state, params=params, opt_state=opt_state, mean_grad_norm=mean_grad_norm, **counted)
        metrics = {
            "loss": sums["loss"] / weight,
            "tokens": sums["weight"],
            "num_bytes": num_bytes,
            "learning_rate": rate,
            "sums": {name: value for name, value in sums["sums"].items() if value.ndim == 0},  # others are for `learn`
            "grad_norm": norm,
            "skipped": skipped,
            "over": over,
            "share": meter(state.step, state.bytes_seen, state.seconds)[0],
            **{name: getattr(state, name) for name in ("step", "bytes_seen", "skipped_steps", "skipped_in_a_row")},
        }
        return state, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(program.shardings, replicated(mesh)))


def _mean_gradients(
    program: StepProgram,
    objective: AnyObjective,
    place: Placement,
    num_microbatches: int,
    params: Any,
    batch: Batch,
    rng: jax.Array,
) -> tuple[Any, jax.Array, dict[str, Any]]:
    """Gradients of the mean loss of a batch; the weight f32[] that the loss was divided by; and the sums over the
    batch."""

    def gradients(params, batch, rng):
        def loss(params):
            loss_sum, weight_sum, sums = objective(nnx.merge(program.model_def, nnx.State(params)), batch, rng)
            return loss_sum, {"loss": loss_sum, "weight": weight_sum, "sums": sums}

        return jax.grad(loss, has_aux=True)(params)

    with use_placement(place):
        drawn = objective.draw(nnx.merge(program.model_def, nnx.State(params)), batch)
        if num_microbatches == 1:
            grads, sums = gradients(params, drawn, rng)
        else:
            grads, sums = _over_microbatches(gradients, place, num_microbatches, params, drawn, rng)
    weight = jnp.maximum(sums["weight"], 1)
    return jax.tree.map(lambda g: g / weight, grads), weight, sums


def _over_microbatches(
    gradients: Callable[..., Any], place: Placement, num_microbatches: int, params: Any, batch: Batch, rng: jax.Array
) -> tuple[Any, dict[str, Any]]:
    """The sums of what `gradients` gives for each part of a batch."""

    def microbatches(x):  # every device keeps its own rows: part i takes every num_microbatches-th row
        x = jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)
        spec = place.spec(None, "batch", *(["sequence"] if x.shape[2:] == batch["ids"].shape[1:] else []))
        return jax.lax.with_sharding_constraint(x, NamedSharding(place.mesh, spec))

    def add(total, numbered):
        number, part = numbered
        return jax.tree.map(jnp.add, total, gradients(params, part, jax.random.fold_in(rng, number))), None

    parts = jax.tree.map(microbatches, batch)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradients, params, jax.tree.map(lambda x: x[0], parts), rng),
    )
    return jax.lax.scan(add, zeros, (jnp.arange(num_microbatches), parts))[0]


def _is_spike(config: OptimizerConfig, state: TrainState, norm: jax.Array) -> jax.Array:
    """Whether a gradient norm is far above the running mean, bool[]."""
    return (state.step - state.skipped_steps >= _STEPS_BEFORE_SPIKES) & (
        norm > config.skip_above * state.mean_grad_norm
    )


def _update(
    program: StepProgram,
    objective: AnyObjective,
    config: OptimizerConfig,
    state: TrainState,
    grads: Any,
    norm: jax.Array,
    rate: jax.Array,
    sums: dict[str, jax.Array],
) -> tuple[Any, Any, jax.Array]:
    """Parameters, optimizer state and running mean of gradient norms after a good step."""
    clipped = jax.tree.map(lambda g: g * jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-20)), grads)
    updates, opt_state = program.optimizer.update(clipped, state.opt_state, state.params)
    params = objective.learn(jax.tree.map(lambda p, u: p + rate * u, state.params, updates), sums)
    mean = jnp.where(state.mean_grad_norm > 0, _NORM_DECAY * state.mean_grad_norm + (1 - _NORM_DECAY) * norm, norm)
    return params, opt_state, mean


def _count(
    state: TrainState, over: jax.Array, cursors: jax.Array, num_bytes: jax.Array, skipped: jax.Array
) -> dict[str, jax.Array]:
    """The counters after a step of so many bytes (i32[2]); they stay as they are once the budget is spent."""
    counted = {
        "step": state.step + 1,
        "bytes_seen": add_limbs(state.bytes_seen, num_bytes),
        "cursors": cursors,
        "skipped_steps": state.skipped_steps + skipped,
        "skipped_in_a_row": (state.skipped_in_a_row + skipped) * skipped,
    }
    return jax.tree.map(
        lambda old, new: jnp.where(over, old, new), {name: getattr(state, name) for name in counted}, counted
    )
