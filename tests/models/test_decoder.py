"""The decoder: what a position may depend on, and that every way to compute it is the same function."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh

from models.axes import Placement, parameter_axes, use_placement
from models.decoder import Decoder, DecoderConfig
from tokenizer_lab.errors import UserError
from tokenizer_lab.kernels.linear_cross_entropy import Layout, linear_cross_entropy
from tokenizer_lab.kernels.table_softmax import chunked

VOCAB = 50
TINY = DecoderConfig(
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    remat="none",
    compute_dtype="float32",
)
LENGTH = 16


def build(config=TINY, vocab_size=VOCAB) -> Decoder:
    """A decoder with random numbers in every parameter, scales of norms included. (Its own initialization takes long to
    compile.)"""
    rng = np.random.default_rng(0)
    model_def, state = nnx.split(nnx.eval_shape(lambda: config.build(vocab_size, nnx.Rngs(0))))
    return nnx.merge(
        model_def, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), state)
    )


DEEP = dataclasses.replace(TINY, num_layers=12, embed_dim=64)


@nnx.jit
def initialize(key) -> Decoder:
    """A deep decoder as training begins with it."""
    return DEEP.build(VOCAB, nnx.Rngs(key))


def pack(*lengths, length=LENGTH):
    """Segment ids and positions, i32[1, length], of documents of these lengths, with padding after them."""
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    return tuple(np.pad(x, (0, length - len(x)))[None].astype(np.int32) for x in (segments, positions))


def random_ids(*shape, vocab_size=VOCAB):
    return np.random.default_rng(1).integers(0, vocab_size, shape, np.int32)


@nnx.jit
def hidden(model, ids, segments, positions):
    return model(ids, segments, positions)


extend = nnx.jit(Decoder.extend)


def mean_nats(model, ids, segments, positions, targets):
    nats, _ = linear_cross_entropy(
        model(ids, segments, positions), model.output_table[...], targets, vocab_size=model.vocab_size
    )
    return jnp.mean(nats, where=segments > 0)


value_and_gradients = nnx.jit(nnx.value_and_grad(mean_nats))


def flat(tree: dict) -> dict[str, Any]:
    """Leaves by the names of their paths, such as "blocks.mlp.gate"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def parameters(model) -> dict[str, jax.Array]:
    return flat(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def decoder_in_float64(model, ids, segments, positions) -> np.ndarray:
    """f64[T, D]: what a decoder computes for one row, written out."""
    config, params = model.config, {name: np.asarray(value, np.float64) for name, value in parameters(model).items()}
    visible = (segments[:, None] == segments) & np.tril(np.ones((len(ids), len(ids)), bool))

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale

    def rotate(x_thd):
        half = config.head_dim // 2
        angle = positions[:, None, None] * config.rope_theta ** (-np.arange(half) / half)
        turned = (x_thd[..., :half] + 1j * x_thd[..., half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = params["embedding"][ids]
    for layer in range(config.num_layers):
        block = {
            name.removeprefix("blocks."): value[layer] for name, value in params.items() if name.startswith("blocks.")
        }
        normed = norm(x, block["attention_scale"])
        q, k, v = (np.einsum("td,dhk->thk", normed, block[f"attention.{name}"]) for name in ("query", "key", "value"))
        if config.qk_norm:
            q, k = norm(q, block["attention.query_scale"]), norm(k, block["attention.key_scale"])
        k, v = (np.repeat(y, config.num_heads // config.num_kv_heads, axis=1) for y in (rotate(k), v))
        scores = np.where(visible, np.einsum("thk,shk->hts", rotate(q), k) / math.sqrt(config.head_dim), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hts,shk,hkd->td", weights, v, block["attention.out"])
        normed = norm(x, block["mlp_scale"])
        gate = normed @ block["mlp.gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ block["mlp.up"])) @ block["mlp.down"]
    return norm(x, params["final_scale"])


@pytest.mark.parametrize("options", [{}, {"qk_norm": False, "num_kv_heads": 4, "tied_embeddings": True}])
def test_hidden_states_are_those_of_the_definition(options):
    model, ids, (segments, positions) = (
        build(dataclasses.replace(TINY, **options)),
        random_ids(1, LENGTH),
        pack(6, 1, 9),
    )
    expected = decoder_in_float64(model, ids[0], segments[0], positions[0])
    np.testing.assert_allclose(hidden(model, ids, segments, positions)[0], expected, atol=2e-5)


def test_a_position_depends_on_its_own_document_up_to_itself_and_on_all_of_that():
    segments, positions = pack(6, 1, 5)
    ids = np.arange(LENGTH, dtype=np.int32)[None]  # all different: a row of the table is the input of one position
    model_def, state = nnx.split(build())
    params = nnx.to_pure_dict(state)

    def outputs(table):  # f32[T], one direction of each position's hidden state
        model = nnx.merge(model_def, nnx.State(params | {"embedding": table}))
        return model(ids, segments, positions)[0] @ jnp.arange(1.0, TINY.embed_dim + 1)

    by_input = jax.jit(jax.jacrev(outputs))(params["embedding"])[:, :LENGTH]
    depends = np.any(np.asarray(by_input), axis=-1)
    expected = (segments[0][:, None] == segments[0][None]) & np.tril(np.ones((LENGTH, LENGTH), bool))
    documents = segments[0] > 0
    np.testing.assert_array_equal(depends[documents], expected[documents])


def test_documents_in_one_row_are_computed_as_if_alone():
    lengths = (5, 9, 1)
    model, ids = build(), random_ids(1, LENGTH)
    packed = hidden(model, ids, *pack(*lengths))
    starts = np.cumsum([0, *lengths])
    for start, length in zip(starts, lengths):
        alone = np.zeros_like(ids)
        alone[:, :length] = ids[:, start : start + length]
        np.testing.assert_allclose(
            hidden(model, alone, *pack(length))[:, :length], packed[:, start : start + length], atol=2e-6
        )


def loss_and_gradients(**options) -> dict[str, np.ndarray]:
    """Of a row of two documents that has every id once."""
    ids = np.arange(VOCAB, dtype=np.int32)[None]
    model = build(dataclasses.replace(TINY, **options))
    loss, gradients = value_and_gradients(model, ids, *pack(20, 30, length=VOCAB), ids[:, ::-1])
    return {"loss": np.asarray(loss), **flat(nnx.to_pure_dict(gradients))}


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_neither_values_nor_gradients(remat):
    remembered, computed_again = loss_and_gradients(), loss_and_gradients(remat=remat)
    for name, expected in remembered.items():
        np.testing.assert_allclose(computed_again[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("remat, count", [("none", 0), ("dots", 1), ("full", 1)])
def test_remat_is_asked_for_layer_by_layer(remat, count):
    model_def, params = nnx.split(build(dataclasses.replace(TINY, remat=remat)), nnx.Param)
    ids, (segments, positions) = random_ids(1, LENGTH), pack(LENGTH)
    jaxpr = jax.make_jaxpr(lambda params: nnx.merge(model_def, params)(ids, segments, positions))(params)
    assert str(jaxpr).count("= remat2[") == count


def test_the_program_does_not_grow_with_depth(placement):
    """But on one CPU device, where layers are written out, up to twelve of them."""

    def num_lines(num_layers, placement):
        model_def, params = nnx.split(
            nnx.eval_shape(lambda: build(dataclasses.replace(TINY, num_layers=num_layers))), nnx.Param
        )
        ids, (segments, positions) = random_ids(2, LENGTH), (np.repeat(x, 2, axis=0) for x in pack(LENGTH))
        loss = lambda params: jnp.sum(nnx.merge(model_def, params)(ids, segments, positions))
        with use_placement(placement):
            return jax.jit(jax.value_and_grad(loss)).lower(params).as_text().count("\n")

    assert num_lines(2, placement) == num_lines(3, placement) == num_lines(24, placement)
    assert num_lines(2, None) < num_lines(3, None) and num_lines(24, None) == num_lines(36, None)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": False, "tied_embeddings": True}, {"num_kv_heads": 1, "num_layers": 1}]
)
def test_every_parameter_is_used_in_every_option(options):
    config, found = dataclasses.replace(TINY, **options), loss_and_gradients(**options)
    assert np.isfinite(found.pop("loss"))
    assert ("unembedding" in found) != config.tied_embeddings
    assert ("blocks.attention.query_scale" in found) == config.qk_norm
    assert found["blocks.attention.key"].shape == (
        config.num_layers,
        config.embed_dim,
        config.num_kv_heads,
        config.head_dim,
    )
    for name, gradient in found.items():
        if "embedding" in name:
            assert not gradient[VOCAB:].any(), f"{name}: a row that only pads the table has a gradient"
            gradient = gradient[:VOCAB]
        assert np.isfinite(gradient).all() and np.any(gradient, axis=-1).all(), name


@pytest.mark.parametrize("options", [{}, {"qk_norm": False, "num_kv_heads": 4, "tied_embeddings": True}])
@pytest.mark.parametrize("prefill", [1, 7, LENGTH])
def test_extending_a_cache_gives_the_logits_of_the_whole(options, prefill):
    model = build(dataclasses.replace(TINY, **options))
    ids = random_ids(2, LENGTH)
    segments, positions = (np.broadcast_to(x, ids.shape) for x in pack(LENGTH))
    expected = model.logits(hidden(model, ids, segments, positions))
    logits, cache = extend(model, ids[:, :prefill], jnp.zeros(2, jnp.int32), model.empty_cache(2, LENGTH + 3))
    np.testing.assert_allclose(logits[:, :VOCAB], expected[:, prefill - 1, :VOCAB], atol=1e-5)
    for position in range(prefill, LENGTH):
        logits, cache = extend(model, ids[:, position : position + 1], jnp.full(2, position), cache)
        np.testing.assert_allclose(logits[:, :VOCAB], expected[:, position, :VOCAB], atol=1e-5)


@pytest.mark.parametrize("vocab_size, padded", [(50, 128), (128, 128), (257, 384)])
def test_ids_that_only_pad_the_table_cannot_be_drawn(vocab_size, padded):
    model = build(vocab_size=vocab_size)
    assert model.embedding.shape == model.unembedding.shape == (padded, TINY.embed_dim)
    logits = model.logits(random_ids(3, TINY.embed_dim).astype(np.float32))
    assert logits.shape == (3, padded) and logits.dtype == jnp.float32
    assert np.isfinite(logits[:, :vocab_size]).all()
    assert (logits[:, vocab_size:] == -np.inf).all()


def test_logits_are_those_of_the_loss():
    model, ids, (segments, positions) = build(), random_ids(1, LENGTH), pack(LENGTH)
    log_probability = jax.nn.log_softmax(model.logits(hidden(model, ids, segments, positions)))
    expected = -np.take_along_axis(np.asarray(log_probability), ids[..., None], axis=-1).mean()
    np.testing.assert_allclose(mean_nats(model, ids, segments, positions, ids), expected, rtol=1e-5)


def test_compute_dtype_is_of_activations_and_not_of_parameters_and_logits():
    ids, (segments, positions) = random_ids(1, LENGTH), pack(LENGTH)
    exact, coarse = build(), build(dataclasses.replace(TINY, compute_dtype="bfloat16"))
    assert {leaf.dtype for leaf in parameters(coarse).values()} == {np.dtype("float32")}
    out = hidden(coarse, ids, segments, positions)
    assert out.dtype == jnp.bfloat16 and hidden(exact, ids, segments, positions).dtype == jnp.float32
    assert coarse.logits(out).dtype == jnp.float32
    assert {x.dtype for x in coarse.empty_cache(1, 4)} == {np.dtype("bfloat16")}
    np.testing.assert_allclose(out.astype(jnp.float32), hidden(exact, ids, segments, positions), atol=0.1)


def test_no_dtype_is_promoted_unasked():  # in float32: JAX's own attention promotes bfloat16
    model, ids, (segments, positions) = build(), random_ids(1, LENGTH), pack(LENGTH)
    with jax.numpy_dtype_promotion("strict"):
        jax.make_jaxpr(lambda: model(ids, segments, positions))()
        jax.make_jaxpr(lambda: model.extend(ids, jnp.zeros(len(ids), jnp.int32), model.empty_cache(1, LENGTH)))()


@pytest.fixture
def placement():
    mesh = Mesh(
        np.array(jax.devices()).reshape(2, 2, 2), ("rows", "split", "positions"), axis_types=(AxisType.Auto,) * 3
    )
    return Placement(
        mesh,
        {"batch": "rows", "sequence": "positions", "embed": None, "heads": "split", "mlp": "split", "vocab": "split"},
    )


def test_the_same_over_a_mesh(placement):
    model, ids, (segments, positions) = build(), random_ids(2, LENGTH), pack(5, 11)
    segments, positions = (np.broadcast_to(x, ids.shape) for x in (segments, positions))

    @nnx.jit
    def sharded(model):
        with use_placement(placement):
            return model(ids, segments, positions)

    np.testing.assert_allclose(sharded(model), hidden(model, ids, segments, positions), atol=2e-6)


def test_a_loss_in_chunks_gathers_the_output_table_once(placement, monkeypatch):
    monkeypatch.setattr(chunked, "MAX_TILE_BYTES", 1)
    model_def, state = nnx.split(build())
    params = nnx.to_pure_dict(state)
    stored = jax.NamedSharding(placement.mesh, jax.P("split", "rows"))
    rows = jax.NamedSharding(placement.mesh, jax.P("rows"))

    def loss(table, hidden):
        with use_placement(placement):
            table = nnx.merge(model_def, nnx.State(params | {"unembedding": table})).output_table[...]
        layout = Layout(placement.mesh, placement.spec("batch", "sequence"), "split")
        return linear_cross_entropy(
            hidden, table, random_ids(2, LENGTH), vocab_size=VOCAB, layout=layout, implementation="chunked"
        )[0].sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(stored, rows), out_shardings=(stored, rows))
    program = gradients.lower(params["unembedding"], jnp.zeros((2, LENGTH, TINY.embed_dim))).compile().as_text()
    loops, entry = program.split("\nENTRY ")
    assert " all-gather(" in entry
    assert " all-gather(" not in loops


@pytest.mark.parametrize("tied_embeddings", [False, True])
def test_before_training_all_ids_are_about_as_likely(tied_embeddings):
    params = nnx.to_pure_dict(nnx.state(initialize(jax.random.key(0))))
    if tied_embeddings:
        del params["unembedding"]
    model = nnx.merge(
        nnx.graphdef(build(dataclasses.replace(DEEP, tied_embeddings=tied_embeddings))), nnx.State(params)
    )
    ids, targets = random_ids(2, 4, 64)
    segments, positions = (np.broadcast_to(x, ids.shape) for x in pack(64, length=64))
    nats = nnx.jit(mean_nats)(model, ids, segments, positions, targets)
    # Table rows of length 1 and hidden states of variance 1 give logits of variance 1, which cost 1/2 nat more than
    # equal ones.
    assert math.log(VOCAB) <= nats <= math.log(VOCAB) + 0.7


def test_matrices_begin_with_the_variance_that_keeps_activations():
    params = parameters(initialize(jax.random.key(0)))
    residual = (2 * 12) ** -0.5
    deviations = {
        "embedding": 64**-0.5,
        "unembedding": 64**-0.5,
        "blocks.attention.query": 64**-0.5,
        "blocks.attention.key": 64**-0.5,
        "blocks.attention.value": 64**-0.5,
        "blocks.attention.out": residual * (4 * 8) ** -0.5,
        "blocks.mlp.gate": 64**-0.5,
        "blocks.mlp.up": 64**-0.5,
        "blocks.mlp.down": residual * 24**-0.5,
    }
    for name, value in params.items():
        if name in deviations:
            np.testing.assert_allclose(
                [value.mean() / value.std(), value.std() / deviations[name]], [0, 1], atol=0.03, err_msg=name
            )
            assert name.count(".") == 0 or not np.array_equal(value[0], value[1]), (
                f"{name}: layers begin as copies of each other"
            )
        else:
            assert name.endswith("scale") and (value == 1).all(), name


def test_the_seed_decides_the_parameters():
    first, again, other = (parameters(initialize(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if not name.endswith("scale"))


@pytest.mark.parametrize("options", [{}, {"qk_norm": False, "tied_embeddings": True}])
def test_every_axis_of_every_parameter_has_a_name(options):
    model = build(dataclasses.replace(TINY, **options))
    shapes, axes = parameters(model), flat(parameter_axes(nnx.state(model, nnx.Param)))
    assert axes.keys() == shapes.keys()
    sizes = {"layers": 2, "vocab": 128, "embed": 16, "norm": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 24}
    for name, names in axes.items():
        assert tuple(sizes[axis] for axis in names) == shapes[name].shape, (name, names)
        assert (names[0] == "layers") == name.startswith("blocks.")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
        ({"embed_dim": -1}, "model.embed_dim is -1"),
        ({"num_heads": 0}, "model.num_heads is 0"),
        ({"num_kv_heads": 0}, "model.num_kv_heads is 0"),
        ({"num_kv_heads": 3}, "model.num_heads 4 is not a multiple of model.num_kv_heads 3"),
        ({"head_dim": 7}, "model.head_dim 7 is odd"),
        ({"head_dim": 0}, "model.head_dim is 0"),
        ({"mlp_dim": 0}, "model.mlp_dim is 0"),
        ({"rope_theta": 0.0}, "model.rope_theta is 0.0"),
        ({"remat": "some"}, "model.remat is 'some'.*none, dots, full"),
        ({"compute_dtype": "float16"}, "model.compute_dtype is 'float16'.*bfloat16, float32"),
    ],
)
def test_bad_shapes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **options)
