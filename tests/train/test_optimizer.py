"""Budgets, meters, schedules and which rule updates which parameter."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import example, given, settings, strategies as st

from models.axes import parameter_axes
from models.decoder import Decoder, DecoderConfig
from models.encoder import Encoder, EncoderConfig, Heads
from tokenizer_lab.errors import UserError
from train.optimizer import (
    LIMB_BITS,
    Budget,
    OptimizerConfig,
    _is_matrix,
    add_limbs,
    from_limbs,
    learning_rate,
    limbs,
    make_meter,
    make_optimizer,
    scale_by_uncorrected_adam,
    sum_in_limbs,
    total_steps,
)

SHARES = np.linspace(0, 1, 1001)


def rates(**options) -> np.ndarray:
    """The learning rate over a run, in thousandths of it, as a share of the top."""
    config = OptimizerConfig(learning_rate=0.5, **options)
    return np.array(jax.vmap(lambda share: learning_rate(config, share))(jnp.array(SHARES, jnp.float32))) / 0.5


# Budgets.


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"steps": 0},
        {"steps": -1},
        {"bytes": 0},
        {"bytes": -5},
        {"flops": 0.0},
        {"flops": -1e18},
        {"flops": math.inf},
        {"flops": math.nan},
        {"steps": 1, "bytes": 1},
        {"steps": 1, "flops": 1.0},
        {"bytes": 1, "flops": 1.0},
        {"steps": 1, "bytes": 1, "flops": 1.0},
        {"seconds": 0.0},
        {"bytes": 1, "seconds": 1.0},
    ],
    ids=str,
)
def test_a_budget_is_exactly_one_number_above_zero(given_):
    with pytest.raises(
        UserError, match=r"exactly one of steps, bytes, flops and seconds|budget[.]\w+ is .* must"
    ) as error:
        Budget(**given_)
    assert all(str(value) in str(error.value) for value in given_.values())


def test_the_largest_budget_in_bytes_is_what_two_int32_count():
    most = Budget(bytes=2**61 - 1)
    _, over = make_meter(most, 1.0)(jnp.array(0), jnp.array([2**31 - 1, 2**30 - 1], jnp.int32), jnp.array(0.0))
    assert bool(over)
    with pytest.raises(UserError, match="budget.bytes is"):
        Budget(bytes=2**61)


@pytest.mark.parametrize(
    "budget, option",
    [
        (Budget(steps=7), "--budget.steps 14"),
        (Budget(bytes=10**12), "--budget.bytes 2000000000000"),
        (Budget(flops=3e12), "--budget.flops 6e+12"),
        (Budget(seconds=90.0), "--budget.seconds 180"),
    ],
)
def test_a_budget_knows_the_option_that_doubles_it(budget, option):
    assert budget.twice == option


def test_total_steps():
    assert total_steps(Budget(steps=7), 3.0) == 7
    assert total_steps(Budget(flops=10.0), 3.0) == 4
    assert total_steps(Budget(flops=9.0), 3.0) == 3
    assert total_steps(Budget(flops=0.1), 3.0) == 1
    assert total_steps(Budget(bytes=10), 3.0) is None
    assert total_steps(Budget(flops=2.0**31 - 1), 1.0) == 2**31 - 1
    with pytest.raises(UserError, match="a run has less than 2.31, lower it"):
        total_steps(Budget(flops=2.0**31), 1.0)


@given(st.integers(0, 2**60))
@example(2**LIMB_BITS - 1)
@example(2**LIMB_BITS)
@example(2**31)
def test_limbs_hold_any_count_in_two_int32(number):
    pair = np.array(limbs(number), np.int64)
    assert (pair >= 0).all() and (pair < 2**31).all() and pair[1] < 2**LIMB_BITS
    assert from_limbs(pair.astype(np.int32)) == number


@pytest.mark.parametrize("of_a_row", [0, 1, 4_700_000, 2**31 - 1])
@pytest.mark.parametrize("rows", [1, 7, 256, 1 << 10])
def test_bytes_of_a_step_are_added_up_exactly(rows, of_a_row):
    counts = np.full(rows, of_a_row, np.int64)
    counts[:: 1 + rows // 3] //= 3
    total = sum_in_limbs(jnp.asarray(counts, jnp.int32))
    assert total.dtype == jnp.int32 and tuple(total.tolist()) == limbs(int(counts.sum()))


def test_a_million_counts_are_added_up_exactly_up_to_2_to_the_44():
    counts = jnp.full(1 << 20, 2**24 - 1, jnp.int32)
    assert from_limbs(sum_in_limbs(counts)) == 2**44 - 2**20


def test_limbs_are_thirty_bits_as_checkpoints_hold_them():
    assert limbs(5 * 2**30 + 7) == (5, 7) and from_limbs((5, 7)) == 5 * 2**30 + 7


@pytest.mark.parametrize("one, other", [(2**30 - 1, 1), (2**30 - 1, 2**30 - 1), (3 * 2**30 + 5, 2**31 + 6), (0, 0)])
def test_the_sum_of_limbs_carries(one, other):
    pairs = [jnp.array(limbs(number), jnp.int32) for number in (one, other)]
    assert tuple(map(int, add_limbs(*pairs))) == limbs(one + other)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 2**50), st.integers(0, 2**50))
@example(2**31, 0)
@example(2**40, 2**40)
@example(2**40, 2**40 - 1)
@example(3 * 2**LIMB_BITS - 1, 3 * 2**LIMB_BITS - 1)
@example(3 * 2**LIMB_BITS - 1, 3 * 2**LIMB_BITS - 2)
@example(2**LIMB_BITS, 2**LIMB_BITS)
def test_a_byte_budget_ends_at_the_very_byte(budget, seen):
    """The share is a float32, but whether the budget is spent is not decided by it."""
    share, over = make_meter(Budget(bytes=budget), 1.0)(jnp.array(0), jnp.array(limbs(seen), jnp.int32), jnp.array(0.0))
    assert bool(over) == (seen >= budget)
    assert float(share) == pytest.approx(seen / budget, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
@example(1, 1)
@example(2**31 - 1, 2**31 - 2)
def test_a_step_budget_ends_at_the_very_step(budget, step):
    for meter in (make_meter(Budget(steps=budget), 1.0), make_meter(Budget(flops=(budget - 0.5) * 2e15), 2e15)):
        share, over = meter(jnp.array(step, jnp.int32), jnp.zeros(2, jnp.int32), jnp.array(0.0))
        assert bool(over) == (step >= budget)
        assert float(share) == pytest.approx(step / budget, rel=1e-6)


@pytest.mark.parametrize(
    "seconds, share, over",
    [(0.0, 0.0, False), (45.0, 0.5, False), (89.9, 0.99889, False), (90.0, 1.0, True), (200.0, 1.0, True)],
)
def test_a_budget_of_seconds_is_spent_by_the_clock_whatever_the_steps(seconds, share, over):
    spent, ended = make_meter(Budget(seconds=90.0), 1.0)(jnp.array(10**6), jnp.zeros(2, jnp.int32), jnp.array(seconds))
    assert (float(spent), bool(ended)) == (pytest.approx(share, rel=1e-4), over)
    assert total_steps(Budget(seconds=90.0), 1.0) is None


# Schedules.


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warmup_rises_in_a_line_from_zero(schedule):
    warmup = rates(schedule=schedule, warmup_share=0.1, final_share=0.1)[:101]
    np.testing.assert_allclose(warmup, SHARES[:101] / 0.1, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup_share, final_share", [(0.0, 0.0), (0.05, 0.1), (0.3, 1.0)])
def test_after_warmup_the_rate_never_rises_and_ends_at_the_final_share(schedule, warmup_share, final_share):
    after = rates(schedule=schedule, warmup_share=warmup_share, final_share=final_share)[round(1000 * warmup_share) :]
    assert after[0] == pytest.approx(1, abs=1e-6)
    assert (np.diff(after) <= 1e-6).all()
    assert after[-1] == pytest.approx(final_share, abs=1e-6)


def test_cosine_is_half_way_down_at_half_time():
    rate = rates(schedule="cosine", warmup_share=0.2, final_share=0.1)
    assert rate[600] == pytest.approx(0.1 + 0.9 / 2, abs=1e-5)
    assert rate[400] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)), abs=1e-5)


def test_wsd_is_stable_and_then_falls_in_a_line():
    rate = rates(schedule="wsd", warmup_share=0.1, decay_share=0.4, final_share=0.2)
    np.testing.assert_allclose(rate[100:601], 1, atol=1e-5)
    np.testing.assert_allclose(rate[600:], np.linspace(1, 0.2, 401), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(schedule="cosine", warmup_share=1.0),
        dict(schedule="wsd", warmup_share=1.0, decay_share=0.0),
        dict(schedule="wsd", warmup_share=0.0, decay_share=0.0),
        dict(schedule="wsd", warmup_share=0.0, decay_share=1.0),
    ],
    ids=str,
)
def test_a_schedule_may_lack_a_part(options):
    rate = rates(**options)
    assert np.isfinite(rate).all() and rate.max() == pytest.approx(1, abs=1e-6) and rate.min() >= 0


@pytest.mark.parametrize("share", [1.0, 1.5])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_past_the_end_the_rate_stays(schedule, share):
    """The last step of a budget in bytes goes over it."""
    config = OptimizerConfig(schedule=schedule, learning_rate=2.0, final_share=0.25)
    assert float(learning_rate(config, jnp.array(share))) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(warmup_share=-0.1), "warmup_share is -0.1"),
        (dict(final_share=1.1), "final_share is 1.1"),
        (dict(decay_share=math.nan), "decay_share is nan"),
        (dict(schedule="wsd", warmup_share=0.6, decay_share=0.5), "0.6 .* 0.5 is more than the whole run"),
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        OptimizerConfig(**options)


def test_warm_up_and_decay_may_be_the_whole_run_and_overlap_only_where_there_is_no_decay():
    assert OptimizerConfig(schedule="wsd", warmup_share=0.5, decay_share=0.5).decay_share == 0.5
    assert OptimizerConfig(schedule="cosine", warmup_share=0.6, decay_share=0.5).warmup_share == 0.6


# Update rules.

MODEL = DecoderConfig(num_layers=2, embed_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
# How each matrix of a layer is laid out ("l" is its layer), which axes are summed over, and which come out.
APPLIED = {
    "query": ("ldhk", "d", "hk"),
    "key": ("ldhk", "d", "hk"),
    "value": ("ldhk", "d", "hk"),
    "out": ("lhkd", "hk", "d"),
    "gate": ("ldf", "d", "f"),
    "up": ("ldf", "d", "f"),
    "down": ("lfd", "f", "d"),
}
NORMS = {"attention_scale", "mlp_scale", "query_scale", "key_scale", "final_scale"}
TABLES = {"embedding", "unembedding"}
OPTIONS = dict(weight_decay=0.25, beta1=0.8, beta2=0.9, epsilon=1e-6)  # none of them anybody's default


@functools.cache
def decoder():
    """Shapes and logical axes of a decoder's parameters."""
    state = nnx.state(nnx.eval_shape(lambda: Decoder(MODEL, 100, rngs=nnx.Rngs(0))), nnx.Param)
    return nnx.to_pure_dict(state), parameter_axes(state)


def second_update(optimizer: optax.GradientTransformation, grads, params):
    """The second one, after a first with gradients twice as large: it depends on every option."""
    _, state = optimizer.update(jax.tree.map(lambda g: 2 * g, grads), optimizer.init(params), params)
    return optimizer.update(grads, state, params)[0]


@functools.cache
def jitted_update(kind: str):
    return jax.jit(
        functools.partial(second_update, make_optimizer(OptimizerConfig(kind=kind, **OPTIONS), decoder()[1]))
    )


def updates(kind: str, *, grads=None, params=None) -> dict[str, np.ndarray]:
    """`second_update` of a decoder's parameters by name; gradients and parameters are 0 where they are not given."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), decoder()[0])
    return by_name(jitted_update(kind)(grads or zeros, params or zeros))


def random_gradients():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), decoder()[0])


def by_name(tree) -> dict:
    """The leaves by the last word of their path."""
    named = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    assert len(named) == len(jax.tree.leaves(tree))
    return named


def test_these_tests_know_every_parameter_of_the_decoder():
    assert by_name(decoder()[0]).keys() == APPLIED.keys() | NORMS | TABLES


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_shrinks_matrices_only(kind):
    """With gradients of zero, weight decay is all there is to an update."""
    update = updates(kind, params=jax.tree.map(lambda x: np.full(x.shape, 2, np.float32), decoder()[0]))
    decayed = APPLIED.keys() | (TABLES if kind == "adamw" else set())
    for name in update:
        np.testing.assert_allclose(update[name], -2 * 0.25 if name in decayed else 0.0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", APPLIED)
def test_muon_orthogonalizes_over_the_axes_that_are_summed_over(name):
    """The update, laid out as inputs x outputs, has singular values near one another; over other axes it has not."""
    update = np.array(updates("muon", grads=random_gradients())[name])
    layout, inputs, outputs = APPLIED[name]
    num_inputs = math.prod(update.shape[layout.index(axis)] for axis in inputs)
    matrices = update.transpose([layout.index(axis) for axis in "l" + inputs + outputs]).reshape(
        MODEL.num_layers, num_inputs, -1
    )
    singular = np.linalg.svd(matrices, compute_uv=False)
    assert singular.max() / singular.min() < 2
    # Whatever the shape, its root mean square is about that of AdamW's updates: one learning rate does for both.
    assert np.sqrt(np.mean(np.square(update))) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize(
    "kind, names", [("adamw", TABLES | NORMS | APPLIED.keys()), ("muon", TABLES | NORMS)], ids=["adamw", "muon"]
)
def test_adam_updates_everything_or_what_muon_leaves(kind, names):
    adam = optax.adamw(1.0, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0, nesterov=kind == "muon")
    grads = {name: grad for name, grad in by_name(random_gradients()).items() if name in names}
    expected = jax.jit(functools.partial(second_update, adam))(grads, grads)
    update = updates(kind, grads=random_gradients())
    for name in names:
        np.testing.assert_allclose(update[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_adam_without_bias_correction_is_bert_s():
    """m / (sqrt(v) + epsilon), the moments as they are (optimization.py of google-research/bert)."""
    grads = [np.array([1.0, -2.0, 0.0]), np.array([0.5, 4.0, 1e-3])]
    adam = scale_by_uncorrected_adam(0.9, 0.999, 1e-6)
    state, m, v = adam.init(jnp.zeros(3)), np.zeros(3), np.zeros(3)
    for grad in grads:
        update, state = adam.update(jnp.asarray(grad, jnp.float32), state)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        np.testing.assert_allclose(update, m / (np.sqrt(v) + 1e-6), rtol=1e-5)


def test_without_bias_correction_matrices_decay_all_the_same():
    params, axes = random_gradients(), decoder()[1]
    decayed, undecayed = (
        by_name(
            second_update(
                make_optimizer(OptimizerConfig(bias_correction=False, weight_decay=share), axes), params, params
            )
        )
        for share in (0.1, 0.0)
    )
    changed = {name for name in decayed if not np.allclose(decayed[name], undecayed[name])}
    assert changed == TABLES | APPLIED.keys()
    with pytest.raises(UserError, match="an option of optimizer.kind 'adamw'"):
        OptimizerConfig(kind="muon", bias_correction=False)


def test_linear_decay_acts_together_with_the_warm_up():
    """google-research/electra: (1 - progress) * min(1, progress / warmup)."""
    expected = (1 - SHARES) * np.minimum(1, SHARES / 0.1)
    np.testing.assert_allclose(rates(schedule="linear", warmup_share=0.1, final_share=0.0), expected, atol=1e-5)
    np.testing.assert_allclose(
        rates(schedule="linear", warmup_share=0.0, final_share=0.2), 0.2 + 0.8 * (1 - SHARES), atol=1e-5
    )


def test_biases_of_heads_are_no_matrices():
    config = EncoderConfig(form="bert", num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=8)
    _, state = nnx.split(
        nnx.eval_shape(lambda: Encoder(config, 5, Heads(predicts=True, detects=True), rngs=nnx.Rngs(0))), nnx.Param
    )
    axes = {
        jax.tree_util.keystr(path): names
        for path, names in jax.tree_util.tree_flatten_with_path(
            parameter_axes(state), is_leaf=lambda leaf: isinstance(leaf, tuple)
        )[0]
    }
    matrices = {name for name, names in axes.items() if _is_matrix(names)}
    assert not any("bias" in name or "norm" in name for name in matrices)
    assert {name for name in axes if name not in matrices} == {
        name for name in axes if "bias" in name or "scale" in name
    }
