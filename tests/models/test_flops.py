"""Analytic counts of parameters and FLOPs, against the model itself and XLA's count of the program that trains it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from models import attention, flops
from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from tokenizer_lab.kernels.linear_cross_entropy import linear_cross_entropy

# Wide enough for the matrix products to dwarf everything elementwise. Nothing of this size is ever run.
CONFIG = DecoderConfig(
    num_layers=2,
    embed_dim=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=128,
    mlp_dim=1536,
    remat="none",
    compute_dtype="float32",
)
VOCAB, LENGTH = 4096, 512


def abstract_model(config, vocab_size):
    return nnx.split(nnx.eval_shape(lambda: config.build(vocab_size, nnx.Rngs(0))), nnx.Param)


@pytest.mark.parametrize("vocab_size", [128, 257, 4096])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_embeddings": True},
        {"qk_norm": False},
        {"num_kv_heads": 4},
        {"num_kv_heads": 1, "num_layers": 3, "head_dim": 64},
    ],
)
def test_count_parameters(options, vocab_size):
    config = dataclasses.replace(CONFIG, **options)
    _, params = abstract_model(config, vocab_size)
    num_tables = 1 if config.tied_embeddings else 2
    padding = num_tables * (config.padded_vocab_size(vocab_size) - vocab_size) * config.embed_dim
    counts = config.count_parameters(vocab_size)
    assert counts["total"] == sum(leaf.size for leaf in jax.tree.leaves(params)) - padding
    assert counts["total"] == sum(count for name, count in counts.items() if name != "total")
    of_blocks = {
        name: sum(leaf.size for leaf in jax.tree.leaves(params["blocks"][name])) for name in ("attention", "mlp")
    }
    qk_norm = 2 * config.head_dim * config.num_layers if config.qk_norm else 0
    assert of_blocks == {"attention": counts["attention"] + qk_norm, "mlp": counts["mlp"]}


@functools.cache
def lowered_training(config, vocab_size, length):
    """The program of loss and gradients for one row. On one CPU device layers are written out; XLA counts the body of a
    loop once."""
    model_def, params = abstract_model(config, vocab_size)
    row = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(params, ids, segments, positions, targets):
        model = nnx.merge(model_def, params)
        nats, _ = linear_cross_entropy(
            model(ids, segments, positions), model.output_table[...], targets, vocab_size=vocab_size
        )
        return jnp.sum(nats)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "on_one_cpu", lambda: False)  # else blocks of the square are skipped
        return jax.jit(jax.grad(loss)).lower(params, row, row, row, row)


def xla_flops(config, vocab_size=VOCAB, length=LENGTH):
    """FLOPs per position by XLA's analysis of the program as it was written."""
    return lowered_training(config, vocab_size, length).cost_analysis()["flops"] / length


def our_flops(config, vocab_size=VOCAB, length=LENGTH):
    """By component, and "total"; attention's scores as XLA's plain attention computes them, which is the whole
    square."""
    counts = config.training_flops_per_token(vocab_size, length)
    assert counts["total"] == pytest.approx(sum(count for name, count in counts.items() if name != "total"))
    whole_square = counts["attention_scores"] * length / ((length + 1) / 2)
    return counts | {
        "attention_scores": whole_square,
        "total": counts["total"] - counts["attention_scores"] + whole_square,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied_embeddings": True},
        {"qk_norm": False, "num_kv_heads": 4},
        {"compute_dtype": "bfloat16"},
        {"embed_dim": 1024},
    ],
)
def test_total_is_within_2_percent_of_xla(options):
    config = dataclasses.replace(CONFIG, **options)
    assert our_flops(config)["total"] == pytest.approx(xla_flops(config), rel=0.02)


def test_total_is_within_2_percent_of_the_compiled_program(quick_options):
    config = dataclasses.replace(CONFIG, num_layers=1)
    # As outside of tests (`quick_compiles`): the former emitters make a loop of the embedding's gradient.
    compiled = lowered_training(config, VOCAB, LENGTH).compile(
        dict.fromkeys(quick_options.keys() & {"xla_cpu_use_fusion_emitters"}, True)
    )
    assert " while(" not in compiled.as_text()
    assert our_flops(config)["total"] == pytest.approx(compiled.cost_analysis()["flops"] / LENGTH, rel=0.02)


@pytest.mark.parametrize(
    "component, vocab_size, length, options",
    [
        ("mlp", VOCAB, LENGTH, {"mlp_dim": 3072}),
        ("softmax", 2 * VOCAB, LENGTH, {}),
        ("attention_projections", VOCAB, LENGTH, {"num_kv_heads": 4}),
    ],
)
def test_components_are_within_2_percent_of_xla(component, vocab_size, length, options):
    """What one more of a component costs, by the difference of two programs."""
    larger = dataclasses.replace(CONFIG, **options)
    ours = our_flops(larger, vocab_size, length)
    more = {name: ours[name] - count for name, count in our_flops(CONFIG).items()}
    assert more[component] == more["total"] > 0
    assert more["total"] == pytest.approx(xla_flops(larger, vocab_size, length) - xla_flops(CONFIG), rel=0.02)


def test_attention_scores_are_within_2_percent_of_xla():
    """Twice the length: what a position costs more is attention's scores. Large heads, as the softmax of a score is not
    counted."""
    config = dataclasses.replace(CONFIG, num_heads=2, num_kv_heads=2, head_dim=512)
    short, long = (our_flops(config, length=length) for length in (LENGTH, 2 * LENGTH))
    assert long["attention_scores"] - short["attention_scores"] == long["total"] - short["total"] > 0
    expected = xla_flops(config, length=2 * LENGTH) - xla_flops(config)
    assert long["total"] - short["total"] == pytest.approx(expected, rel=0.02)


def test_causal_attention_is_counted_at_half():
    scores = CONFIG.training_flops_per_token(VOCAB, LENGTH)["attention_scores"]
    assert scores * LENGTH == 3 * CONFIG.num_layers * sum(4 * 4 * 128 * (position + 1) for position in range(LENGTH))


@pytest.mark.parametrize("form", ["decoder", "bert"])
def test_layers_by_hand(form):
    """Queries and outputs are 10 x 24 numbers, keys and values 10 x 12, a matrix of the MLP 10 x 14."""
    shape = dict(num_layers=3, embed_dim=10, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=14)
    published = form == "bert"
    config = EncoderConfig(form="bert", **shape) if published else DecoderConfig(**shape)
    projections = 2 * 240 + 2 * 120
    matrices = 2 if published else 3
    biases = {"attention": 24 + 12 + 12 + 10, "mlp": 14 + 10}
    norms = 2 * (10 + 10) if published else 10 + 10 + 6 + 6
    parameters = {"attention": projections, "mlp": matrices * 140}
    if published:
        parameters = {name: count + biases[name] for name, count in parameters.items()}
    assert flops.layer_parameters(config) == {name: 3 * n for name, n in (parameters | {"norm": norms}).items()}
    assert flops.layer_flops(config, seen=7) == {
        "attention_projections": 3 * 2 * projections,
        "attention_scores": 3 * 2 * (24 * 7 + 7 * 24),  # scores, and what is seen weighed by them
        "mlp": 3 * 2 * matrices * 140,
    }


def test_training_is_three_forward_passes_and_a_lookup():
    assert flops.training_flops({"a": 1.0, "b": 2.5}, lookups=5) == {
        "a": 3.0,
        "b": 7.5,
        "embedding": 5.0,
        "total": 15.5,
    }
