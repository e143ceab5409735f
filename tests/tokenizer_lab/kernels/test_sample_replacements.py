"""Every implementation of the generator head, values, gradients and samples, against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tokenizer_lab.kernels.sample_replacements import api, reference, sample_replacements, tiles
from tokenizer_lab.kernels.table_softmax import chunked, pallas_gpu, pallas_tpu

IMPLEMENTATIONS = "reference", "chunked", "interpreted", "interpreted_gpu"
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# Positions, rows of the table, width, vocabulary: one position; tiles that are cut by the end of the table, with whole
# groups and single ids behind the vocabulary; two blocks of positions, and nothing behind the vocabulary.
ONE, CUT, TWO_BLOCKS = (1, 128, 8, 100), (130, 896, 32, 570), (600, 384, 16, 384)
NAMES = "nats", "logz", "sample", "gradient by x", "gradient by table", "gradient by bias"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of 256 ids where one would hold all; on a GPU, parts of two tiles."""
    monkeypatch.setattr(chunked, "MAX_TILE_BYTES", 1)
    monkeypatch.setattr(pallas_gpu, "MAX_GRADIENT_BYTES", 1)
    monkeypatch.setattr(pallas_gpu, "PART_TILES", 2)


def operation(implementation, vocab_size, temperature=1.0):
    """An implementation of (x, table, bias, labels, seeds); not by its own jit, which would not notice other tiles."""

    def call(x, table, bias, labels, seeds):
        return sample_replacements.__wrapped__(
            x, table, labels, seeds, bias, vocab_size=vocab_size, temperature=temperature, implementation=implementation
        )

    return call


@functools.cache
def compiled(implementation, vocab_size, temperature=1.0):
    """Results and gradients of sum(weights * (nats, logz)), compiled once for each shape."""

    def weighted(x, table, bias, labels, seeds, weights):
        results = operation(implementation, vocab_size, temperature)(x, table, bias, labels, seeds)
        return jnp.sum(weights[0] * results[0]) + jnp.sum(weights[1] * results[1]), results

    differentiated = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))

    def all_results(*arguments):
        gradients, results = differentiated(*arguments)
        return *results, *gradients

    return all_results


def inputs(num_positions, num_rows, width, vocab_size, dtype=np.float32, scale=1.0):
    """x, table, bias, labels, seeds, weights of nats and logz; what lies behind the vocabulary would win every draw."""
    rng = np.random.default_rng(num_positions)
    # Sixteenths, of which products and sums are exact: whoever adds them up in whichever order finds the same.
    x = jnp.asarray(rng.integers(-16, 17, (num_positions, width)) / 16 * scale, dtype)
    table = rng.integers(-16, 17, (num_rows, width)).astype(np.float32) / 16
    bias = rng.integers(-16, 17, num_rows).astype(np.float32) / 16
    bias[vocab_size:] = 1000
    table[vocab_size:] *= 100
    labels = rng.integers(0, vocab_size, num_positions, np.int32)
    labels[-1] = vocab_size - 1
    seeds = rng.integers(0, 2**32, (num_positions, 2), np.uint32)
    weights = rng.standard_normal((2, num_positions)).astype(np.float32)
    return x, jnp.asarray(table), jnp.asarray(bias), labels, seeds, weights


@functools.partial(jax.jit, static_argnums=1)
def _random_bits(seeds, vocab_size):
    return reference.random_bits(seeds[:, :1], seeds[:, 1:], jnp.arange(vocab_size)[None])


def random_bits(seeds, vocab_size):
    return np.asarray(_random_bits(seeds, vocab_size))


def noise(seeds, vocab_size):
    """Gumbel noise in float64, f64[N, vocab]."""
    bits = random_bits(seeds, vocab_size)
    return -np.log(-np.log(((bits >> 9) + 0.5) / 2**23))


def exact(x, table, bias, labels, seeds, weights, vocab_size, temperature=1.0):
    """What `compiled` returns, in float64, and by how much the best score is above the second."""
    x, table, bias, (by_nats, by_logz) = (np.asarray(a, np.float64) for a in (x, table, bias, weights))
    logits = x @ table[:vocab_size].T + bias[:vocab_size]
    largest = logits.max(axis=1, keepdims=True)
    logz = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    is_label = labels[:, None] == np.arange(vocab_size)
    scores = logits / temperature + noise(seeds, vocab_size)
    by_logits = (by_nats + by_logz)[:, None] * np.exp(logits - logz[:, None]) - by_nats[:, None] * is_label
    by_table, by_bias = np.zeros_like(table), np.zeros_like(bias)
    by_table[:vocab_size], by_bias[:vocab_size] = by_logits.T @ x, by_logits.sum(axis=0)
    results = logz - logits[is_label], logz, scores.argmax(axis=1), by_logits @ table[:vocab_size], by_table, by_bias
    second, best = np.sort(scores, axis=1)[:, -2:].T
    return results, best - second


def assert_exact(actual, arguments, vocab_size, temperature=1.0, tolerance=1e-5):
    expected, margin_n = exact(*arguments, vocab_size, temperature)
    is_clear_n = margin_n > 1e-4
    assert is_clear_n.mean() > 0.99, "there should be hardly any position whose sample rounding may decide"
    for name, result, value in zip(NAMES, actual, expected, strict=True):
        if name == "sample":
            assert result.dtype == jnp.int32 and (np.asarray(result) < vocab_size).all()
            np.testing.assert_array_equal(np.asarray(result)[is_clear_n], value[is_clear_n])
        else:
            assert np.isfinite(result).all(), name
            value_type = np.asarray(result, np.float32)
            np.testing.assert_allclose(value_type, value, rtol=tolerance, atol=tolerance, err_msg=name)
    for name, gradient in zip(NAMES[4:], actual[4:]):
        assert not np.asarray(gradient, np.float32)[vocab_size:].any(), name


@every_implementation
@pytest.mark.parametrize("shape", [ONE, CUT, TWO_BLOCKS], ids=str)
def test_values_gradients_and_samples(implementation, shape):
    arguments, vocab_size = inputs(*shape), shape[-1]
    actual = compiled(implementation, vocab_size)(*arguments)
    assert all(result.dtype == jnp.float32 for name, result in zip(NAMES, actual) if name != "sample")
    assert_exact(actual, arguments, vocab_size, tolerance=2e-5)


@pytest.mark.parametrize("implementation", ["chunked", "interpreted", "interpreted_gpu"])
def test_the_program_as_it_ships(as_shipped, implementation):
    arguments, vocab_size = inputs(*CUT), CUT[-1]
    assert_exact(compiled.__wrapped__(implementation, vocab_size)(*arguments), arguments, vocab_size, tolerance=2e-5)


@every_implementation
def test_bfloat16_is_multiplied_and_nothing_else(implementation):
    shape = (3, 384, 64, 300)
    x, table, *others = inputs(*shape, dtype=jnp.bfloat16)
    actual = compiled(implementation, shape[-1], 0.5)(x, table * 1.001, *others)
    assert [result.dtype.name for result in actual] == ["float32"] * 2 + ["int32", "bfloat16"] + ["float32"] * 2
    rounded = (table * 1.001).astype(jnp.bfloat16).astype(jnp.float32)
    assert_exact((*actual[:3], *map(jnp.float32, actual[3:])), (x, rounded, *others), shape[-1], 0.5, tolerance=0.02)
    for result, value in zip(actual[:2], exact(x, rounded, *others, shape[-1])[0]):
        np.testing.assert_allclose(result, value, rtol=1e-5)


@every_implementation
@pytest.mark.parametrize("scale", [80, -80, 0])
def test_extreme_and_equal_logits(implementation, scale):
    """Logits of +-80 and labels that are all one, where float32's exp would overflow without the maximum."""
    x, table, bias, labels, seeds, weights = inputs(*CUT)
    x, table = jnp.zeros_like(x).at[:, 0].set(scale), jnp.sign(table)
    arguments = x, table, 0 * bias, np.full_like(labels, 569), seeds, weights
    assert_exact(compiled(implementation, 570)(*arguments), arguments, 570, tolerance=2e-4)


@every_implementation
@pytest.mark.parametrize("label", [-1, 570, 896, 2**30])
def test_a_label_that_is_none_cannot_be_overlooked(implementation, label):
    x, table, bias, labels, *others = inputs(*CUT)
    labels[7] = label
    nats, logz, sample, *_ = compiled(implementation, 570)(x, table, bias, labels, *others)
    assert np.isposinf(nats[7]) and np.isfinite(np.delete(nats, 7)).all() and np.isfinite(logz).all()
    assert 0 <= sample[7] < 570


def test_no_bias_is_a_bias_of_zeros():
    x, table, bias, labels, seeds, _ = inputs(*ONE)

    def loss(x, table, bias):
        results = sample_replacements(x, table, labels, seeds, bias, vocab_size=100)
        return jnp.sum(results[0]), results

    differentiated = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    with_zeros, without = (jax.tree.leaves(differentiated(x, table, zeros)) for zeros in (0 * bias, None))
    for one, other in zip(with_zeros, without, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_a_sample_has_no_gradient(implementation):
    *arguments, labels, seeds, _ = inputs(*ONE)

    def samples(*arguments):
        return operation(implementation, 100)(*arguments, labels, seeds)[2].astype(jnp.float32).sum()

    for gradient in jax.jit(jax.grad(samples, (0, 1, 2)))(*arguments):
        assert not gradient.any()


# What is drawn.


@pytest.mark.parametrize(
    "key, counter, words",
    [
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xBA3E4725, 0xF27D669E)),
    ],
)
def test_the_bits_are_threefrys(key, counter, words):
    """The known answers of "threefry2x32 13" in Random123's kat_vectors."""
    assert tuple(int(word) for word in reference.threefry(*map(jnp.uint32, (*key, *counter)))) == words


def test_a_tile_has_the_bits_of_its_ids():
    seeds = inputs(*CUT)[4]
    expected = random_bits(seeds, 1536).T
    assert len(np.unique(expected)) > 0.999 * expected.size
    of_tile = jax.jit(tiles._random_bits, static_argnums=(3, 4))
    for first_id, num_ids, one_below_other in (
        (0, 640, tiles.one_below_other),
        (512, 640, tiles.one_below_other),
        (256, 128, tiles.one_below_other),
        (256, 256, tiles.one_below_other_by_triton),
    ):
        actual = of_tile(*seeds.T[:, None], first_id, num_ids, one_below_other)
        np.testing.assert_array_equal(actual, expected[first_id : first_id + num_ids])


def test_the_noise_is_finite_for_all_bits():
    bits = np.array([0, 511, 512, 2**31, 2**32 - 512, 2**32 - 1], np.uint32)
    uniform = ((bits >> 9) + 0.5) / 2**23
    assert 0 < uniform.min() and uniform.max() < 1
    np.testing.assert_allclose(reference.gumbel(jnp.asarray(bits)), -np.log(-np.log(uniform)), rtol=1e-5, atol=1e-6)


def draws(implementation, logits, num_draws, temperature=1.0):
    """Samples of a softmax of up to 128 logits by positions whose seeds only count."""
    table = jnp.zeros((128, 1)).at[: len(logits), 0].set(logits)
    seeds = jnp.zeros((num_draws, 2), jnp.uint32).at[:, 1].set(jnp.arange(num_draws, dtype=jnp.uint32))
    arguments = jnp.ones((num_draws, 1)), table, jnp.zeros(128), jnp.zeros(num_draws, jnp.int32), seeds
    return np.asarray(jax.jit(operation(implementation, len(logits), temperature))(*arguments)[2])


def p_value(sample, logits):
    """Of Pearson's chi-square test that samples are distributed as a softmax."""
    probabilities = np.exp(logits) / np.exp(logits).sum()
    assert probabilities.min() * len(sample) > 5
    return scipy.stats.chisquare(np.bincount(sample, minlength=len(logits)), probabilities * len(sample)).pvalue


@pytest.mark.parametrize(
    "implementation, temperature", [("reference", 1.0), ("chunked", 1.0), ("chunked", 2.0), ("interpreted", 1.0)]
)
def test_samples_are_distributed_as_the_softmax(implementation, temperature):
    logits = np.linspace(-2, 2, 64)
    sample = draws(implementation, logits, 20_000, temperature)
    assert p_value(sample, logits / temperature) > 1e-3
    assert p_value(sample, logits / temperature * 1.1) < 1e-3, "the test should notice another temperature"


def test_neighbours_are_independent():
    """Positions whose seeds count draw as if they were not neighbours, and so do ids."""
    sample = draws("chunked", np.zeros(8), 20_000)
    for distance in (1, 2, 128):
        pairs = np.zeros((8, 8))
        np.add.at(pairs, (sample[:-distance], sample[distance:]), 1)
        assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-3

    for word in (0, 1):
        seeds = np.zeros((512, 2), np.uint32)
        seeds[:, word] = np.arange(512)
        noise_nv = noise(seeds, 512)
        standard = (noise_nv - np.euler_gamma) / (np.pi / np.sqrt(6))
        assert abs(standard.mean()) < 0.01 and abs(standard.std() - 1) < 0.01
        for positions, ids in ((1, 0), (0, 1), (1, 1), (1, -1), (128, 0), (0, 128), (0, 256), (2, 0), (0, 2)):
            shifted = np.roll(standard, (positions, ids), (0, 1))
            assert abs((standard * shifted).mean()) < 4 / np.sqrt(standard.size), (word, positions, ids)


@pytest.mark.parametrize("blocks", [(128, 256), (256, 512)], ids=str)
def test_blocks_do_not_change_a_sample(blocks, monkeypatch):
    monkeypatch.setattr(api, "BLOCKS", (pallas_tpu.Blocks(*blocks),))
    arguments = inputs(*CUT)
    expected = compiled("reference", 570)(*arguments)[2]
    np.testing.assert_array_equal(jax.jit(operation("interpreted", 570))(*arguments[:5])[2], expected)


@pytest.mark.parametrize("part_tiles", [1, 3, 8])
def test_parts_do_not_change_a_sample(part_tiles, monkeypatch):
    monkeypatch.setattr(pallas_gpu, "PART_TILES", part_tiles)
    arguments = inputs(*CUT)
    expected = compiled("reference", 570)(*arguments)[2]
    np.testing.assert_array_equal(jax.jit(operation("interpreted_gpu", 570))(*arguments[:5])[2], expected)


@pytest.mark.parametrize("num_ids", [512, 768])
def test_tiles_do_not_change_a_sample(num_ids, monkeypatch):
    monkeypatch.setattr(chunked, "MAX_TILE_BYTES", 4 * 130 * num_ids)
    assert chunked.tile_ids(130) == num_ids
    arguments = inputs(*CUT)
    sampled = jax.jit(operation("chunked", 570))(*arguments[:5])[2]
    np.testing.assert_array_equal(sampled, compiled("reference", 570)(*arguments)[2])


@every_implementation
def test_a_sample_travels_with_its_position(implementation):
    """Among other positions, in another order, and with less behind the vocabulary, the same is drawn."""
    x, table, bias, labels, seeds, weights = inputs(*CUT)
    expected = np.asarray(compiled(implementation, 570)(x, table, bias, labels, seeds, weights)[2])
    order = np.random.default_rng(0).permutation(130)
    moved = compiled(implementation, 570)(x[order], table, bias, labels[order], seeds[order], weights[:, order])[2]
    np.testing.assert_array_equal(moved, expected[order])
    few = jax.jit(operation(implementation, 570))(x[5:8], table[:640], bias[:640], labels[5:8], seeds[5:8])[2]
    np.testing.assert_array_equal(few, expected[5:8])


@every_implementation
def test_every_bit_of_a_seed_counts(implementation):
    x, table, bias, labels, _, weights = inputs(*CUT)
    x = jnp.zeros_like(x)
    bits = [(1 << bit, 0) for bit in range(32)] + [(0, 1 << bit) for bit in range(32)] + [(0, 0)] * 66
    sample = compiled(implementation, 570)(x, table, bias, labels, np.array(bits, np.uint32), weights)[2]
    assert len(set(sample[64:].tolist())) == 1, "equal seeds draw the same"
    assert np.mean(sample[:64] == sample[64]) < 0.1 and len(set(sample[:64].tolist())) > 50


@every_implementation
def test_equal_scores_go_to_the_lower_id(implementation, monkeypatch):
    monkeypatch.setattr(reference, "gumbel", lambda bits: jnp.zeros(bits.shape))
    x, table, _, labels, seeds, _ = inputs(*CUT)
    best = jnp.full(896, -1.0).at[jnp.array([3, 200, 300, 560, 569])].set(0.0)
    head = jax.jit(operation(implementation, 570))
    for bias, expected in ((best, 3), (best.at[3].set(-1.0), 200), (best.at[:257].set(-1.0), 300)):
        assert (head(jnp.zeros_like(x), table, bias, labels, seeds)[2] == expected).all()


# Where it runs.


def test_positions_over_a_mesh_draw_the_same():
    mesh = Mesh(np.array(jax.devices()), ("positions",), axis_types=(AxisType.Auto,))
    assert mesh.size == 8
    shape = (136, *CUT[1:])
    arguments = inputs(*shape)
    expected = jax.jit(operation("chunked", 570))(*arguments[:5])[2]

    def put(value, *axes):
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*axes)))

    x, table, bias, labels, seeds, weights = arguments
    sharded = compiled("chunked", 570)(
        put(x, "positions"), put(table), put(bias), put(labels, "positions"), put(seeds, "positions"),
        put(weights, None, "positions"),
    )  # fmt: skip
    np.testing.assert_array_equal(sharded[2], expected)
    assert_exact(sharded, arguments, 570, tolerance=2e-5)


@pytest.mark.parametrize("implementation", ["interpreted", "interpreted_gpu"])
def test_the_kernel_under_shard_map(implementation):
    mesh = Mesh(np.array(jax.devices()), ("positions",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("positions"), PartitionSpec()
    arguments = inputs(136, *CUT[1:])
    head = jax.shard_map(
        operation(implementation, 570),
        mesh=mesh,
        in_specs=(split, whole, whole, split, split),
        out_specs=split,
        check_vma=False,
    )

    def weighted(x, table, bias, labels, seeds, weights):
        results = head(x, table, bias, labels, seeds)
        return jnp.sum(weights[0] * results[0]) + jnp.sum(weights[1] * results[1]), results

    gradients, results = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(*arguments)
    assert_exact((*results, *gradients), arguments, 570, tolerance=2e-5)
