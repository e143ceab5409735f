"""The integer byte language model: the same integers however it is run, and close to the float model behind it."""

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from models.decoder import DecoderConfig
from tokenizer_lab.equal_info import byte_lm
from tokenizer_lab.equal_info.byte_lm import MATRICES, START, ByteLM
from tokenizer_lab.equal_info.quantization import quantize, to_fixed_point
from tokenizer_lab.errors import UserError

CONTEXT = 8
LONGEST = 2 * CONTEXT + 3
ARITHMETIC_CHANGED = (
    "the byte language model gives other integers than before: an equal_info artifact made before would give other ids,"
    " and runs trained on it would read noise. If that cannot be avoided, raise FORMAT in"
    " tokenizer_lab/representation.py so that old artifacts are refused, and copy the new hash from below."
)


def random_texts(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (rows, length)).astype(np.uint8)


def equations_of(jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """All equations, also those of functions that are called."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations_of(inner)


def hash_of(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).astype("<i4").tobytes() for array in arrays)).hexdigest()


def shares_behind(lm: ByteLM, texts: np.ndarray) -> np.ndarray:
    """i32[n + 1, N, 256], the shares behind 0 to n bytes of each text."""
    return np.stack([lm.shares(texts[:, :length]) for length in range(texts.shape[1] + 1)])


def assert_probabilities(shares: np.ndarray) -> None:
    assert shares.dtype == np.int32 and shares.shape[-1] == 256
    assert shares.min() >= 1 and (shares.sum(axis=-1) == 1 << 16).all()


Walked = tuple[ByteLM, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def walked(make_byte_lm) -> Walked:
    """A model, 256 texts and the shares behind all their beginnings."""
    lm, texts = make_byte_lm(context_bytes=CONTEXT), random_texts(256, LONGEST)
    return lm, texts, shares_behind(lm, texts)


def assert_steps_give(lm: ByteLM, texts: np.ndarray, expected: np.ndarray, num_rows: int, num_steps: int, step) -> None:
    """Rows walk one window after another, each of another text and length, in a cache full of something else."""
    cache = [tuple(jnp.full_like(part, 37.0) for part in layer) for layer in lm.empty_cache(num_rows)]
    row, window, depth = np.arange(num_rows), np.zeros(num_rows, int), np.zeros(num_rows, int)
    for _ in range(num_steps):
        text, position = (row + 37 * window) % len(texts), depth % lm.context_bytes
        ids = np.where(position == 0, START, texts[text, depth - 1].astype(np.int32))
        shares, cache = step(lm.weights, jnp.asarray(ids, jnp.int32), jnp.asarray(position, jnp.int32), cache)
        np.testing.assert_array_equal(shares, expected[depth, text])
        ended = depth == (2 + 7 * row + 5 * window) % len(expected)
        window, depth = window + ended, np.where(ended, 0, depth + 1)


def test_shares_are_probabilities_that_differ(walked):
    _, _, shares = walked
    assert_probabilities(shares)
    assert len(np.unique(shares[3], axis=0)) == 256, "the texts are all different, and so should what follows them be"
    assert shares.max() > 1 << 12, "nothing is likely under this model; it tests little"


def test_behind_a_whole_context_the_model_starts_anew(walked):
    lm, texts, shares = walked
    np.testing.assert_array_equal(shares[CONTEXT], shares[0])
    np.testing.assert_array_equal(shares[CONTEXT + 2], lm.shares(texts[:, CONTEXT : CONTEXT + 2]))
    assert not np.array_equal(shares[CONTEXT - 1], shares[CONTEXT])


@pytest.mark.parametrize("num_rows", [1, 4, 256])
def test_steps_give_the_integers_of_whole_contexts(walked, num_rows):
    assert_steps_give(*walked, num_rows, 45, jax.jit(byte_lm.step))


def test_steps_of_more_layers_and_ungrouped_heads_give_the_integers_of_whole_contexts(make_byte_lm):
    lm, texts = make_byte_lm(layers=2, heads=2, kv_heads=2, context_bytes=CONTEXT), random_texts(4, LONGEST)
    assert_steps_give(lm, texts, shares_behind(lm, texts), 4, 45, jax.jit(byte_lm.step))


def test_steps_that_are_compiled_without_optimizing_give_the_same(walked):
    options = {"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "fusion,algsimp"}
    assert_steps_give(*walked, 4, 45, jax.jit(byte_lm.step, compiler_options=options))


def test_the_programs_as_they_ship_give_the_same(as_shipped, walked):
    lm, texts, shares = walked
    assert_steps_give(*walked, 4, 45, jax.jit(functools.partial(byte_lm.step)))
    ids = np.concatenate([np.full((len(texts), 1), START), texts[:, : CONTEXT - 1]], axis=1).astype(np.int32)
    along = jax.jit(functools.partial(byte_lm.all_shares))(lm.weights, ids)
    np.testing.assert_array_equal(np.asarray(along).swapaxes(0, 1), shares[:CONTEXT])


@pytest.mark.slow
def test_steps_that_are_not_compiled_give_the_same(walked):
    with jax.disable_jit():
        assert_steps_give(*walked, 4, CONTEXT + 3, byte_lm.step)


def test_rows_do_not_depend_on_the_others(walked):
    lm, texts, shares = walked
    for rows in (1, 3):
        np.testing.assert_array_equal(lm.shares(texts[:rows, :5]), shares[5, :rows])


@pytest.mark.parametrize("length", [5, LONGEST])
def test_shares_along_texts_are_those_of_their_bytes(walked, length):
    lm, texts, shares = walked
    expected = [[shares[at, row, texts[row, at]] for at in range(length)] for row in range(5)]
    np.testing.assert_array_equal(lm.shares_along(texts[:5, :length]), expected)


ONE_THREAD = """
import os, pathlib, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from tokenizer_lab.equal_info.byte_lm import ByteLM
folder = pathlib.Path(sys.argv[1])
lm = ByteLM.from_files({path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("lm_")})
np.save(folder / "shares", lm.shares(np.load(folder / "texts.npy")))
"""


def test_one_thread_gives_the_integers_of_many(make_byte_lm, tmp_path):
    lm = make_byte_lm(embed=256, heads=4, kv_heads=2, head_dim=32, mlp=512, context_bytes=16)
    texts = random_texts(256, 13)
    for name, content in lm.to_files().items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "texts", texts)
    env = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    subprocess.run([sys.executable, "-c", ONE_THREAD, tmp_path], env=env, check=True, timeout=300)
    np.testing.assert_array_equal(np.load(tmp_path / "shares.npy"), lm.shares(texts))


def test_a_text_costs_within_one_percent_of_the_float_model():
    config = DecoderConfig(
        num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=96, compute_dtype="float32"
    )
    model = nnx.jit(lambda: config.build(257, nnx.Rngs(0)))()
    params = {path[-1]: np.asarray(leaf) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    params["final_scale"] = np.linspace(2, 4, 64)  # as sure of the next byte as a trained model
    model.final_scale[...] = jnp.asarray(params["final_scale"], jnp.float32)
    lm = quantize(params, rope_theta=config.rope_theta, context_bytes=16)
    texts = random_texts(128, 15)
    ids = jnp.asarray(np.insert(texts.astype(np.int32), 0, START, axis=1))
    positions = jnp.broadcast_to(jnp.arange(16), ids.shape)
    logits = nnx.jit(lambda model: model.logits(model(ids, jnp.ones_like(ids), positions)))(model)
    share = np.asarray(jax.nn.softmax(logits[..., :256]), np.float64)
    cost = -np.log2(np.asarray(jax.jit(byte_lm.all_shares)(lm.weights, ids)) / 2**16)
    entropy = -(share * np.log2(share)).sum(axis=-1).mean()
    assert 2 < entropy < 7, "this model knows nothing, or all; it tests little"
    # What texts drawn from the float model cost under the integers, and under itself.
    assert entropy <= (share * cost).sum(axis=-1).mean() < 1.01 * entropy


matrices = st.tuples(
    st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([1e-20, 1e-3, 1.0, 300.0, 1e6])
)  # inputs, outputs, seed, scale


@given(matrices, st.sampled_from([1, 255, 511, 1023]), st.sampled_from([0.0, 3.0]))
@settings(deadline=None)
def test_fixed_point_is_as_fine_as_exact_sums_allow(matrix, input_max, outliers):
    num_inputs, num_outputs, seed, scale = matrix
    random = np.random.RandomState(seed)
    column_scale = scale * np.exp(outliers * random.standard_normal(num_outputs))
    matrix = random.standard_normal((num_inputs, num_outputs)) * column_scale
    integers, exponent = to_fixed_point(matrix, 0, input_max)
    assert integers.dtype == np.int16 and exponent.dtype == np.int32 and exponent.shape == (num_outputs,)
    sums = np.abs(integers.astype(np.int64)).sum(axis=0) * input_max
    assert (sums < 1 << 24).all()
    step = 2.0**-exponent
    assert (np.abs(matrix - integers * step) <= step / 2).all()
    rounded_up = 2 * np.abs(integers.astype(np.int64)).sum(axis=0) + 2 * num_inputs
    finer_fits = (rounded_up * input_max < 1 << 24) & (2 * np.abs(integers.astype(np.int64)).max(axis=0) + 2 < 32767)
    assert (~finer_fits | (exponent == 30)).all()


def test_a_column_of_zeros_is_zeros():
    integers, _ = to_fixed_point(np.zeros((4, 3)), 0, 1023)
    assert not integers.any()


def test_heads_share_an_exponent_where_a_norm_follows(make_byte_lm, random_params):
    """Rounding aside, a head is then its float self times one number, which the norm takes out again."""
    params = random_params(heads=2)
    query = params["query"] * params["attention_scale"][:, :, None, None]
    ratio = np.median(make_byte_lm(heads=2).arrays["query"] / query, axis=(1, 3))
    np.testing.assert_allclose(np.log2(ratio), np.round(np.log2(ratio)), atol=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(random_params, value):
    params = random_params()
    params["down"][0, 1, 2] = value
    with pytest.raises(UserError, match="not finite in down; train it with a lower learning rate"):
        quantize(params, rope_theta=1e4, context_bytes=8)


@pytest.mark.parametrize("name", ["query_scale", "key_scale", "unembedding"])
def test_a_missing_parameter_is_named(random_params, name):
    params = random_params()
    del params[name]
    with pytest.raises(UserError, match=f"has no {name}; train one with --model.qk-norm"):
        quantize(params, rope_theta=1e4, context_bytes=8)


@pytest.mark.parametrize("length", [0, -1, byte_lm.MAX_CONTEXT_BYTES + 1])
def test_contexts_of_no_length_or_too_long_are_refused(make_byte_lm, length):
    arrays = make_byte_lm().arrays
    cos = np.zeros((max(length, 0), 4), np.int32)
    with pytest.raises(UserError, match="do not fit together"):
        ByteLM(arrays | {"cos": cos, "sin": cos})


def tampered(arrays: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    name, _, what = how.partition(" ")
    array = arrays[name]
    changed = {
        "too large": lambda: np.full_like(array, 32767),
        "too small": lambda: np.full_like(array, -32768),
        "another shape": lambda: np.concatenate([array, array]),
        "an axis less": lambda: array[0],
        "another dtype": lambda: array.astype(np.int64),
        "floats": lambda: array.astype(np.float32),
    }
    return arrays | {name: changed[what]()}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("what", ["too large", "too small", "another shape", "an axis less", "another dtype"])
def test_matrices_that_are_no_models_are_refused(make_byte_lm, name, what):
    arrays = make_byte_lm(embed=64, heads=4, head_dim=16, mlp=600).arrays
    with pytest.raises(UserError, match="too large for exact sums" if "too" in what else "fit"):
        ByteLM(tampered(arrays, f"{name} {what}"))


@pytest.mark.parametrize("how", ["cos floats", "sin another shape", "embedding an axis less", "silu another dtype"])
def test_other_arrays_that_are_no_models_are_refused(make_byte_lm, how):
    with pytest.raises(UserError, match="fit"):
        ByteLM(tampered(make_byte_lm().arrays, how))


def test_missing_or_more_arrays_are_refused(make_byte_lm):
    arrays = make_byte_lm().arrays
    for name in arrays:
        with pytest.raises(UserError, match="fit the representation again"):
            ByteLM({other: array for other, array in arrays.items() if other != name})
    with pytest.raises(UserError, match="do not fit together"):
        ByteLM(arrays | {"more": np.zeros(1, np.int32)})
    with pytest.raises(UserError):
        ByteLM({})


def test_hostile_tables_and_exponents_still_give_probabilities(make_byte_lm):
    arrays, random = make_byte_lm(context_bytes=CONTEXT).arrays, np.random.RandomState(0)
    texts = random_texts(256, CONTEXT)
    for largest in (40, 2**31 - 1):
        hostile = {
            name: random.randint(-largest, largest, array.shape).astype(np.int32)
            for name, array in arrays.items()
            if name not in MATRICES
        }
        assert_probabilities(ByteLM(arrays | hostile).shares(texts[:, :5]))


def test_files_give_back_the_model(make_byte_lm):
    lm = make_byte_lm()
    files = lm.to_files()
    loaded = ByteLM.from_files(files | {"equal_info.json": b"{}"})
    assert loaded.to_files() == files and all(name.startswith("lm_") and name.endswith(".npy") for name in files)
    assert loaded.arrays.keys() == lm.arrays.keys()
    with pytest.raises(UserError, match="lm_query.npy is not a whole .npy file"):
        ByteLM.from_files(files | {"lm_query.npy": files["lm_query.npy"][:-1]})


def test_flops_are_two_for_each_weight_and_those_of_what_is_seen(make_byte_lm):
    lm = make_byte_lm(layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24, context_bytes=4)
    layers, prediction = 2 * 2 * (2 * 16 * 4 * 8 + 2 * 16 * 2 * 8 + 3 * 16 * 24), 2 * 16 * 256
    seen = 2 * 2 * 2 * 4 * 8
    assert lm.flops(np.array([0, 3])) == 3 * (layers + prediction + 2 * seen)
    assert lm.flops(np.array([1, 1, 1, 1, 1, 1]), num_predictions=1) == 6 * layers + prediction + 13 * seen
    assert lm.flops(np.zeros(0, np.int64)) == 0


SHAPES = [{}, {"layers": 2, "embed": 24, "heads": 4, "kv_heads": 2, "mlp": 40}, {"layers": 3, "kv_heads": 2}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flops_are_those_of_the_products_in_the_program(make_byte_lm, count_product_flops, shape):
    """Each position sees the whole square in the program, and in the count itself and those before it."""
    lm = make_byte_lm(context_bytes=CONTEXT, **shape)
    one, row = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, CONTEXT), jnp.int32)
    step = count_product_flops(byte_lm.step, lm.weights, one, one, lm.empty_cache(1))
    assert lm.flops(np.eye(CONTEXT, dtype=int)[-1]) == step["dense"] + step["attention"]
    whole = count_product_flops(byte_lm.all_shares, lm.weights, row)
    causal = whole["attention"] * (CONTEXT + 1) / 2 / CONTEXT
    assert lm.flops(np.ones(CONTEXT, int)) == whole["dense"] + causal


def test_positions_by_depth_are_counted_one_by_one():
    lengths = [3, 0, 1, 3]
    depths = [depth for length in lengths for depth in range(length + 1)]
    assert byte_lm.positions_by_depth(lengths).tolist() == np.bincount(depths).tolist() == [4, 3, 2, 2]


@pytest.mark.parametrize("name", ["step", "all_shares"])
def test_every_product_asks_for_the_highest_precision(make_byte_lm, name):
    """Which changes nothing on a CPU: elsewhere float32 is multiplied in fewer bits unless it is asked for."""
    lm = make_byte_lm(context_bytes=CONTEXT)
    one, row = jnp.zeros(1, jnp.int32), jnp.zeros((1, CONTEXT), jnp.int32)
    arguments = {"step": (one, one, lm.empty_cache(1)), "all_shares": (row,)}[name]
    jaxpr = jax.make_jaxpr(getattr(byte_lm, name))(lm.weights, *arguments)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    products = [equation for equation in equations_of(jaxpr.jaxpr) if equation.primitive.name == "dot_general"]
    assert len(products) == 7 + 2 + 1, "matrices of a layer, scores and values, and the prediction"
    assert all(product.params["precision"] == highest for product in products)


def test_golden_integers(make_byte_lm):
    lm = make_byte_lm(layers=2, embed=24, heads=4, kv_heads=2, head_dim=8, mlp=40, context_bytes=CONTEXT)
    arrays = hash_of(*(lm.arrays[name] for name in sorted(lm.arrays)))
    assert arrays == GOLDEN_ARRAYS, f"quantize makes another model of the same weights; artifacts stay good: {arrays}"
    shares = hash_of(*(lm.shares(random_texts(16, length)) for length in (0, CONTEXT - 1, LONGEST)))
    assert shares == GOLDEN_SHARES, f"{ARITHMETIC_CHANGED}\n{shares}"


GOLDEN_ARRAYS = "8924a3fecffdb1ba4df738f60905d2c4e2c4bebf30fb94b0ff8fbf0d024b74d0"
GOLDEN_SHARES = "5ad47572b8804e3625c25c58cefe09bfc75cb392e79b473fbfc49e555ed9774b"
