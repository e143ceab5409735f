"""The training step: the same numbers on any mesh, bad steps left out, nothing done behind the end of the budget."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.axes import parameter
from models.decoder import Decoder, DecoderConfig
from train.objectives import Causal
from train.optimizer import LIMB_BITS, Budget, OptimizerConfig, from_limbs, learning_rate, limbs, make_meter
from train.run.checkpoints import Checkpoints
from train.sharding import MeshConfig, batch_sharding, cursor_sharding, make_mesh, put_rows
from train.step import abstract_model, build_program, make_train_step

ROWS, LENGTH, VOCAB_SIZE, STEPS = 16, 16, 61, 3
DECODER = DecoderConfig(
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    compute_dtype="float32",
    remat="dots",
)
KEY = np.array([0, 7], np.uint32)
# These programs are tiny: nearly all of a test's time would go into making them fast.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}


def mesh_of(*, devices: int = 8, **sizes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(**sizes), jax.devices()[:devices])


def make_batch(mesh, seed: int, **more: np.ndarray) -> dict[str, jax.Array]:
    """A batch whose rows hold 1 to LENGTH real tokens, in up to three documents."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCAB_SIZE, (ROWS, LENGTH + 1))
    position = np.arange(LENGTH)
    segment_ids = 1 + np.sort(rng.integers(0, 3, (ROWS, LENGTH)), axis=1)
    segment_ids[position >= rng.integers(1, LENGTH + 1, (ROWS, 1))] = 0
    arrays = {
        "ids": ids[:, :-1],
        "targets": ids[:, 1:],
        "segment_ids": segment_ids,
        "positions": np.broadcast_to(position, segment_ids.shape),
        "num_bytes": rng.integers(0, 100, ROWS),
        "cursors": rng.integers(0, 100, (ROWS, 4)),
    }
    arrays = {name: value.astype(np.int32) for name, value in arrays.items()} | more
    return {
        name: put_rows(
            value, range(ROWS), ROWS, cursor_sharding(mesh) if name == "cursors" else batch_sharding(mesh, value.ndim)
        )
        for name, value in arrays.items()
    }


def on_host(tree):
    return jax.tree.map(np.array, tree)


def assert_bitwise_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, on_host(one), on_host(other))


# The decoder on every mesh.


def decoder_program(mesh, config: OptimizerConfig):
    model = abstract_model(lambda rngs: Decoder(DECODER, VOCAB_SIZE, rngs=rngs))
    return build_program(model, config, mesh, batch_rows=ROWS, num_sources=1)


def optimizer_config(kind: str) -> OptimizerConfig:
    # With a small epsilon Adam would make steps of full size out of gradients that are nothing but rounding.
    return OptimizerConfig(kind=kind, learning_rate=0.01, warmup_share=0, epsilon=1e-4)


@functools.cache
def initial_state(kind: str):
    """On the host, from one device."""
    program = decoder_program(mesh_of(devices=1), optimizer_config(kind))
    return on_host(program.init.lower(KEY).compile(compiler_options=COMPILER_OPTIONS)(KEY))


def train_decoder(mesh, kind: str, num_microbatches: int = 1, kernels: str = "auto"):
    """The state after some steps, and each step's metrics."""
    config = optimizer_config(kind)
    program, meter = decoder_program(mesh, config), make_meter(Budget(steps=10), 1.0)
    train_step = make_train_step(
        program, Causal(), config, mesh, meter=meter, num_microbatches=num_microbatches, kernels=kernels
    )
    state, batch = jax.device_put(initial_state(kind), program.shardings), functools.partial(make_batch, mesh)
    train_step = train_step.lower(state, batch(0)).compile(compiler_options=COMPILER_OPTIONS)
    metrics = []
    for number in range(STEPS):
        state, one = train_step(state, batch(number))
        metrics.append(on_host(one))
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    return on_host(state), metrics


@functools.cache
def trained_on_one_device(kind: str):
    return train_decoder(mesh_of(devices=1), kind)


@pytest.mark.parametrize(
    "kind, num_microbatches, sizes, kernels",
    [
        ("adamw", 4, dict(devices=1), "auto"),
        ("adamw", 1, dict(fsdp=8), "auto"),
        ("adamw", 2, dict(replica=2, fsdp=2, tensor=2), "interpreted"),
        pytest.param("adamw", 1, dict(fsdp=2, tensor=2, sequence=2), "interpreted", marks=pytest.mark.slow),
        ("adamw", 4, dict(replica=2, fsdp=1, sequence=4), "chunked"),
        ("muon", 2, dict(fsdp=2, tensor=2, sequence=2), "reference"),
        pytest.param("muon", 1, dict(replica=2, fsdp=4), "auto", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_mesh_every_number_of_microbatches_and_every_kernel_trains_the_same(
    kind, num_microbatches, sizes, kernels
):
    expected_state, expected = trained_on_one_device(kind)
    state, metrics = train_decoder(mesh_of(**sizes), kind, num_microbatches, kernels)
    metrics, expected = ([one | one["sums"] for one in steps] for steps in (metrics, expected))
    for name in ("loss", "nats", "tokens", "num_bytes", "grad_norm", "learning_rate"):
        np.testing.assert_allclose(
            [one[name] for one in metrics], [one[name] for one in expected], rtol=2e-5, err_msg=name
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6), state, expected_state)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_learns(kind):
    """So that what is compared above is not a step that does nothing."""
    _, metrics = trained_on_one_device(kind)
    assert metrics[0]["loss"] == pytest.approx(np.log(VOCAB_SIZE), rel=0.2)
    assert all(one["tokens"] < ROWS * LENGTH for one in metrics)
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), trained_on_one_device(kind)[0].params, initial_state(kind).params
    )
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_weights_start_the_same_on_every_mesh():
    program = decoder_program(mesh_of(replica=2, fsdp=2, tensor=2), optimizer_config("adamw"))
    state = program.init.lower(KEY).compile(compiler_options=COMPILER_OPTIONS)(KEY)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), on_host(state), initial_state("adamw"))


@pytest.mark.parametrize("kind, moments", [("adamw", 2), ("muon", 1)])
def test_moments_live_where_their_parameter_does(kind, moments):
    mesh = mesh_of(fsdp=4, tensor=2)
    program = decoder_program(mesh, optimizer_config(kind))

    def shard_shapes(shapes, shardings):
        """Of all that is more than a counter."""
        pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings))
        return sorted((x.shape, sharding.shard_shape(x.shape)) for x, sharding in pairs if len(x.shape) > 1)

    of_params = shard_shapes(program.shapes.params, program.shardings.params)
    assert all(np.prod(shard) < np.prod(whole) for whole, shard in of_params if min(whole) > 8)
    tables = [
        pair for pair in of_params if pair[0][0] > DECODER.num_layers
    ]  # not of a layer, so AdamW's, with a second moment
    of_moments = shard_shapes(program.shapes.opt_state, program.shardings.opt_state)
    norms = [pair for pair in of_params if len(pair[0]) == 2 and pair not in tables]
    assert of_moments == sorted(moments * of_params + (tables + norms if kind == "muon" else []))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_checkpoint_has_the_state_as_it_is_and_restores_it_onto_another_mesh(kind, tmp_path):
    saved = jax.device_put(
        trained_on_one_device(kind)[0], decoder_program(mesh_of(fsdp=8), optimizer_config(kind)).shardings
    )
    program = decoder_program(mesh_of(devices=4, fsdp=2, tensor=2), optimizer_config(kind))
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(1, saved, {"counters": {"step": 1}})
        checkpoints.wait()
        assert checkpoints.newest_whole(pytest.fail) == 1
        restored = checkpoints.restore(1, program.shapes, program.shardings)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    assert jax.tree.map(lambda x: x.sharding, restored) == program.shardings
    assert_bitwise_equal(restored, saved)


# What the step does around the gradient, with a model that compiles at once.


class Toy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.table = parameter(jnp.sin(jnp.arange((VOCAB_SIZE + 3) * 4.0)).reshape(-1, 4), "vocab", "embed")
        self.scale = parameter(jnp.ones(4), "norm")


class ToyObjective:
    """A sum of squares times `kick`, plus a square root of `root`: at 0 finite, but not its gradient."""

    def __init__(self):
        self.traces = 0

    def draw(self, model, batch):
        return batch

    def learn(self, params, sums):
        return params

    def __call__(self, model, batch, rng):
        self.traces += 1
        weight_bt = (batch["segment_ids"] > 0).astype(jnp.float32)
        squares_bt = jnp.sum((model.table[batch["ids"]] * model.scale[...] - 1) ** 2, axis=-1)
        nats = jnp.sum(weight_bt * squares_bt)
        loss = nats * batch["kick"][0] + jnp.sqrt(batch["root"][0] * model.scale[0])
        return loss + jax.random.uniform(rng) * batch["noise"][0], jnp.sum(weight_bt), {"nats": nats}


GOOD = {"kick": 1.0, "root": 1.0, "noise": 0.0}
BAD = {
    "loss is nan": GOOD | {"kick": np.nan},
    "loss is infinite though its gradient is not": GOOD | {"noise": np.inf},
    "gradient is not finite": GOOD | {"root": 0.0},
    "gradient overflows in float32": GOOD | {"kick": 1e30},
    "gradient spikes": GOOD | {"kick": 1e3},
}


TOY_OPTIMIZER = OptimizerConfig(learning_rate=0.01, clip_norm=0.5)


@functools.cache
def toy_step(budget: Budget, flops_per_step: float, num_microbatches: int, mesh):
    objective, model = ToyObjective(), abstract_model(Toy)
    program = build_program(model, TOY_OPTIMIZER, mesh, batch_rows=ROWS, num_sources=1)
    meter = make_meter(budget, flops_per_step)
    step = make_train_step(program, objective, TOY_OPTIMIZER, mesh, meter=meter, num_microbatches=num_microbatches)
    return program, objective, step


class ToyRun:
    """A run of the toy model that is stepped by hand."""

    def __init__(
        self,
        budget: Budget = Budget(steps=100),
        *,
        flops_per_step: float = 1.0,
        num_microbatches: int = 1,
        **mesh_sizes: int,
    ):
        self.mesh = mesh_of(**{"devices": 1} | mesh_sizes)
        program, self.objective, self.train_step = toy_step(budget, flops_per_step, num_microbatches, self.mesh)
        self.state = program.init(KEY)

    def batch(self, seed: int, **signals: float | np.ndarray):
        of_rows = lambda value: value if isinstance(value, np.ndarray) else np.full(ROWS, value, np.float32)
        return make_batch(self.mesh, seed, **{name: of_rows(value) for name, value in (GOOD | signals).items()})

    def step(self, seed: int, **signals: float | np.ndarray):
        """Takes one step; returns the state after it and its metrics, on the host."""
        self.state, metrics = self.train_step(self.state, self.batch(seed, **signals))
        return on_host(self.state), on_host(metrics)


@pytest.mark.parametrize("bad", BAD)
def test_bad_steps_are_left_out_and_counted(bad):
    run = ToyRun()
    run.step(0)
    run.state = dataclasses.replace(run.state, step=jnp.array(50))  # from here on spikes are looked for
    before, _ = run.step(1)
    assert before.skipped_steps == 0
    for number in (1, 2):
        after, metrics = run.step(10 + number, **BAD[bad])
        assert_bitwise_equal(
            (after.params, after.opt_state, after.mean_grad_norm),
            (before.params, before.opt_state, before.mean_grad_norm),
        )
        assert (metrics["skipped"], after.skipped_steps, after.skipped_in_a_row) == (1, number, number)
        assert after.step == 51 + number
        assert from_limbs(after.bytes_seen) > from_limbs(before.bytes_seen)
        assert (after.cursors != before.cursors).any()
    after, metrics = run.step(20)
    assert (metrics["skipped"], after.skipped_steps, after.skipped_in_a_row) == (0, 2, 0)
    assert (after.params["table"] != before.params["table"]).any()
    after, _ = run.step(21, **BAD[bad])
    assert (after.skipped_steps, after.skipped_in_a_row) == (3, 1)


def test_a_spike_is_not_looked_for_before_there_is_a_mean():
    run = ToyRun()
    run.step(0)
    _, metrics = run.step(1, **BAD["gradient spikes"])
    assert metrics["skipped"] == 0


def test_the_gradient_is_of_the_mean_over_real_tokens():
    run = ToyRun()
    batch, params = run.batch(0), on_host(run.state.params)

    def mean_loss(table, scale):
        squares = jnp.sum((table[batch["ids"]] * scale - 1) ** 2, axis=-1)
        real = batch["segment_ids"] > 0
        return (jnp.sum(squares, where=real) + jnp.sqrt(scale[0])) / jnp.sum(real)

    loss, grads = jax.value_and_grad(mean_loss, argnums=(0, 1))(params["table"], params["scale"])
    _, first = run.step(0)
    assert first["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(np.sqrt(sum(np.sum(g**2) for g in on_host(grads))), rel=1e-5)
    after, second = run.step(1)
    assert after.mean_grad_norm == pytest.approx(0.98 * first["grad_norm"] + 0.02 * second["grad_norm"], rel=1e-5)


def test_gradients_are_clipped_to_the_norm():
    """What the optimizer sees of a gradient a thousand times larger has the same norm."""
    for kick in (1.0, 1e3):
        after, metrics = ToyRun().step(0, kick=kick)
        assert metrics["grad_norm"] > TOY_OPTIMIZER.clip_norm
        first_moments = next(part.mu for part in after.opt_state if hasattr(part, "mu"))
        norm = np.sqrt(sum(np.sum(moment**2) for moment in jax.tree.leaves(first_moments)))
        assert norm == pytest.approx((1 - TOY_OPTIMIZER.beta1) * TOY_OPTIMIZER.clip_norm, rel=1e-4)


@pytest.mark.parametrize(
    "budget, flops_per_step",
    [(Budget(steps=3), 1.0), (Budget(flops=2.5e15), 1e15), (Budget(bytes=2100), 1.0)],
    ids=["steps", "flops", "bytes"],
)
def test_nothing_at_all_changes_when_the_budget_is_spent(budget, flops_per_step):
    run = ToyRun(budget, flops_per_step=flops_per_step)
    shares = [0.0]
    for seed in range(3):
        state, metrics = run.step(seed)
        assert not metrics["over"]
        assert metrics["learning_rate"] == pytest.approx(float(learning_rate(TOY_OPTIMIZER, shares[-1])), rel=1e-5)
        shares.append(metrics["share"])
    assert 0 < shares[1] < shares[2] < 1 <= shares[3]
    if budget.bytes is not None:  # the third step was the one that reached it
        assert 2100 <= from_limbs(state.bytes_seen) < 2100 + from_limbs(metrics["num_bytes"])
    for seed, signals in ((10, GOOD), (11, BAD["loss is nan"])):
        after, metrics = run.step(seed, **signals)
        assert metrics["over"] and metrics["step"] == 3
        assert_bitwise_equal(after, state)


@pytest.mark.parametrize("before", [0, 2**LIMB_BITS - 1, 2**LIMB_BITS - 700, 2**31 - 300, 5 * 2**40 + 2**LIMB_BITS - 5])
def test_bytes_seen_carry_exactly(before):
    run = ToyRun(Budget(bytes=2**45))
    run.state = dataclasses.replace(run.state, bytes_seen=jnp.array(limbs(before), jnp.int32))
    for seed in range(3):
        state, metrics = run.step(seed)
        before += from_limbs(metrics["num_bytes"])
        assert from_limbs(state.bytes_seen) == before
        assert 0 <= state.bytes_seen[1] < 2**LIMB_BITS


def test_a_step_of_more_bytes_than_an_int32_holds_is_counted_exactly():
    run = ToyRun(Budget(bytes=2**45))
    for number in (1, 2):
        state, metrics = run.step(number, num_bytes=np.full(ROWS, 2**31 - 1, np.int32))
        assert from_limbs(metrics["num_bytes"]) == ROWS * (2**31 - 1)
        assert from_limbs(state.bytes_seen) == number * ROWS * (2**31 - 1)


def test_the_second_step_traces_nothing_and_the_state_is_donated():
    budget = Budget(steps=10)  # no other test's, whose step may have been traced before
    run = ToyRun(budget, devices=8, replica=2, fsdp=2, tensor=2)
    before = jax.tree.leaves(run.state)
    run.step(0)
    traces = run.objective.traces
    assert all(leaf.is_deleted() for leaf in before)
    run.step(1)
    run.step(2)
    assert run.objective.traces == traces


def test_random_numbers_are_new_in_each_step_and_the_same_on_every_mesh():
    losses = []
    for sizes in (dict(devices=1), dict(devices=8, fsdp=4, tensor=2)):
        run = ToyRun(num_microbatches=2, **sizes)
        losses.append([float(run.step(0, kick=0.0, noise=1e6)[1]["loss"]) for _ in range(3)])
    assert len(set(losses[0])) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
