"""Exported weights, read by their names as `transformers` reads them, compute what our models compute."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.special
from flax import nnx

from models.decoder import DecoderConfig
from models.encoder import Encoder, EncoderConfig, Heads
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import NUM_ENCODER_IDS
from train.export.hugging_face import write_model
from train.export.weights import Pretrained, decoder, encoder

GOLDEN = pathlib.Path(__file__).with_name("golden")
RENEW = "with PyTorch installed: UPDATE_GOLDEN=1 python -m pytest -n 0 tests/train/export/test_weights.py"
VOCAB, TOLERANCE = 300, 1e-4
DECODER = DecoderConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=48,
    compute_dtype="float32",
    remat="none",
)
DECODERS = {
    "qwen3": DECODER,
    "llama": dataclasses.replace(DECODER, qk_norm=False, rope_theta=5e5, num_kv_heads=4),
    "tied": dataclasses.replace(DECODER, tied_embeddings=True, num_kv_heads=1),
}
ENCODER = EncoderConfig(
    form="bert",
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    mlp_dim=48,
    max_positions=24,
    dropout=0.1,
    compute_dtype="float32",
    remat="none",
)
ELECTRA = dataclasses.replace(ENCODER, table_dim=16)


def with_noise(build: Callable[[], nnx.Module]) -> tuple[nnx.Module, dict]:
    """A module and its weights, none of which is the 0 or 1 that it would begin with."""
    model_def, shapes = nnx.split(nnx.eval_shape(build), nnx.Param)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: (0.3 * random.standard_normal(x.shape)).astype(np.float32), nnx.to_pure_dict(shapes)
    )
    return nnx.merge(model_def, nnx.State(jax.tree.map(jnp.asarray, params))), params


def made(name: str) -> tuple[nnx.Module, Pretrained]:
    module, params = with_noise(lambda: DECODERS[name].build(VOCAB, nnx.Rngs(0)))
    return module, decoder(params, DECODERS[name], VOCAB, VOCAB - 1, 64)


def made_encoder(config: EncoderConfig, heads: Heads) -> tuple[Encoder, dict[str, Pretrained]]:
    module, params = with_noise(lambda: Encoder(config, VOCAB, heads, rngs=nnx.Rngs(0)))
    return module, encoder(params, config, heads, VOCAB, VOCAB - 1)


# ---- The published architectures in NumPy, from their papers, by the names of config.json and of the tensors
# -------------------------


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)


def rms(x, weight, config):
    return weight * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config["rms_norm_eps"])


def heads_of(x_td, width):
    return x_td.reshape(len(x_td), -1, width).swapaxes(0, 1)


def attention(q_htd, k_htd, v_htd, visible_ts):
    scores = q_htd @ k_htd.swapaxes(1, 2) / np.sqrt(q_htd.shape[-1])
    weights = scipy.special.softmax(np.where(visible_ts, scores, -np.inf), -1)
    return (weights @ v_htd).swapaxes(0, 1).reshape(q_htd.shape[1], -1)


def rotated(x_htd, theta):
    half = x_htd.shape[-1] // 2
    angles = np.arange(x_htd.shape[1])[:, None] / theta ** (np.arange(half) / half)
    turned = (x_htd[..., :half] + 1j * x_htd[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], -1)


def llama_logits(pretrained: Pretrained, ids: np.ndarray) -> np.ndarray:
    """i[T] -> f64[T, V], Llama, and Qwen3 where there are norms of queries and keys."""
    config, tensors = pretrained.config, {name: x.astype(np.float64) for name, x in pretrained.tensors.items()}
    x, length = tensors["model.embed_tokens.weight"][ids], len(ids)
    for number in range(config["num_hidden_layers"]):
        block = {name.removeprefix(f"model.layers.{number}."): tensor for name, tensor in tensors.items()}
        normed = rms(x, block["input_layernorm.weight"], config)
        q, k, v = (heads_of(linear(block, f"self_attn.{name}_proj", normed), config["head_dim"]) for name in "qkv")
        if config["model_type"] == "qwen3":
            q, k = rms(q, block["self_attn.q_norm.weight"], config), rms(k, block["self_attn.k_norm.weight"], config)
        q, k = rotated(q, config["rope_theta"]), rotated(k, config["rope_theta"])
        k, v = (np.repeat(each, len(q) // len(k), axis=0) for each in (k, v))
        x = x + linear(block, "self_attn.o_proj", attention(q, k, v, np.tri(length, dtype=bool)))
        normed = rms(x, block["post_attention_layernorm.weight"], config)
        gate = linear(block, "mlp.gate_proj", normed)
        x = x + linear(block, "mlp.down_proj", gate * scipy.special.expit(gate) * linear(block, "mlp.up_proj", normed))
    table = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(tensors, table, rms(x, tensors["model.norm.weight"], config))


def gelu(x):
    return x * scipy.special.ndtr(x)


def layer_norm(tensors, name, x, config):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config["layer_norm_eps"])
    return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def electra_outputs(pretrained: Pretrained, ids: np.ndarray, types: np.ndarray) -> np.ndarray:
    """i[T], i[T] -> f64[T] of a discriminator, f64[T, V] of a generator."""
    config, tensors = pretrained.config, {name: x.astype(np.float64) for name, x in pretrained.tensors.items()}
    embedded = [tensors[f"electra.embeddings.{name}_embeddings.weight"] for name in ("word", "token_type", "position")]
    x = layer_norm(
        tensors,
        "electra.embeddings.LayerNorm",
        sum(table[at] for table, at in zip(embedded, (ids, types, np.arange(len(ids))))),
        config,
    )
    if config["embedding_size"] != config["hidden_size"]:
        x = linear(tensors, "electra.embeddings_project", x)
    for number in range(config["num_hidden_layers"]):
        block = {name.removeprefix(f"electra.encoder.layer.{number}."): tensor for name, tensor in tensors.items()}
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        q, k, v = (heads_of(linear(block, f"attention.self.{name}", x), head_dim) for name in ("query", "key", "value"))
        x = layer_norm(
            block,
            "attention.output.LayerNorm",
            x + linear(block, "attention.output.dense", attention(q, k, v, True)),
            config,
        )
        inner = gelu(linear(block, "intermediate.dense", x))
        x = layer_norm(block, "output.LayerNorm", x + linear(block, "output.dense", inner), config)
    if config["architectures"] == ["ElectraForPreTraining"]:
        hidden = gelu(linear(tensors, "discriminator_predictions.dense", x))
        return linear(tensors, "discriminator_predictions.dense_prediction", hidden)[:, 0]
    hidden = layer_norm(
        tensors, "generator_predictions.LayerNorm", gelu(linear(tensors, "generator_predictions.dense", x)), config
    )
    return hidden @ embedded[0].T + tensors["generator_lm_head.bias"]


# ---- Ours
#
#
#
# ----------------------------------------------------------------------------------------------------


def our_logits(module: nnx.Module, ids: np.ndarray) -> np.ndarray:
    row = jnp.asarray(ids)[None]
    compute = jax.jit(lambda row: module.logits(module(row, jnp.ones_like(row), jnp.arange(len(ids))[None])))
    return np.asarray(compute(row)[0])


def our_outputs(module: Encoder, ids: np.ndarray, types: np.ndarray, by_generator: bool) -> np.ndarray:
    detects = module.detection_head is not None and not by_generator

    @jax.jit
    def compute(row, types):
        hidden = module(row, jnp.ones_like(row), jnp.arange(len(ids))[None], types, by_generator=by_generator)
        return (
            module.detection_head(hidden)
            if detects
            else module.vocab_head(hidden) @ module.embeddings.output_table.T + module.vocab_head.bias[...]
        )

    return np.asarray(compute(jnp.asarray(ids)[None], jnp.asarray(types)[None])[0])


IDS = np.random.default_rng(0).integers(0, VOCAB, 20)
TYPES = np.arange(20) // 12


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_give_the_same_logits(name):
    module, pretrained = made(name)
    assert abs(llama_logits(pretrained, IDS) - our_logits(module, IDS)[:, :VOCAB]).max() <= TOLERANCE


ENCODERS = {
    "electra": (ELECTRA, Heads(predicts=True, detects=True, generator_share=0.5)),
    "one width": (ENCODER, Heads(predicts=True, detects=True, generator_share=0.25)),
    "masked": (ELECTRA, Heads(predicts=True)),
    "random": (ELECTRA, Heads(detects=True)),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_give_the_same_outputs(name):
    module, models = made_encoder(*ENCODERS[name])
    ids = np.concatenate([IDS, VOCAB + np.arange(NUM_ENCODER_IDS)])
    types = np.append(TYPES, [1, 1, 1])
    for folder, pretrained in models.items():
        ours = our_outputs(module, ids, types, by_generator=folder == "generator")
        theirs = electra_outputs(pretrained, ids, types)
        if ours.ndim == 2:
            assert (theirs[:, VOCAB:] < -1e30).all(), "an encoder's own ids have some probability"
            ours, theirs = ours[:, :VOCAB], theirs[:, :VOCAB]
        assert abs(ours - theirs).max() <= TOLERANCE
    assert list(models) == {"masked": [""], "random": [""]}.get(name, ["", "generator"])


# ---- What transformers computes, kept in golden/ for machines without PyTorch


def fingerprint(pretrained: Pretrained) -> str:
    """Of what an export writes down of a model."""
    digest = hashlib.sha256(json.dumps(pretrained.config, sort_keys=True).encode())
    for name, x in sorted(pretrained.tensors.items()):
        digest.update(f"{name} {x.shape} {x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def transformers_outputs(key: str, pretrained: Pretrained, folder: pathlib.Path, **inputs: np.ndarray) -> np.ndarray:
    """f32[T, ...] of a row i[T], by `transformers` where PyTorch is installed, or else as it was on the day of golden/.

    RENEW tells how to make golden/ anew.
    """
    golden, made_of = GOLDEN / f"{key}.safetensors", fingerprint(pretrained)
    if importlib.util.find_spec("torch"):
        computed = by_transformers(pretrained, folder, inputs)
        if "UPDATE_GOLDEN" in os.environ:
            safetensors.numpy.save_file({"outputs": computed}, golden, {"export": made_of})
        return computed
    with safetensors.safe_open(golden, "np") as file:
        assert file.metadata()["export"] == made_of, (
            f"what is exported is no longer what transformers was given; {RENEW}"
        )
        return file.get_tensor("outputs")


def by_transformers(pretrained: Pretrained, folder: pathlib.Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import torch
    import transformers

    write_model(folder, pretrained, {})
    model = getattr(transformers, pretrained.config["architectures"][0])
    theirs, told = model.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"], told
    with torch.no_grad():
        return theirs.eval()(**{name: torch.tensor(x[None]) for name, x in inputs.items()}).logits[0].numpy()


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_give_the_same_logits(name, tmp_path):
    module, pretrained = made(name)
    logits = transformers_outputs(name, pretrained, tmp_path / "model", input_ids=IDS)
    assert logits.shape == (len(IDS), VOCAB)
    assert abs(logits - our_logits(module, IDS)[:, :VOCAB]).max() <= TOLERANCE


@pytest.mark.parametrize("name", ENCODERS)
def test_transformers_give_the_same_electra(name, tmp_path):
    module, models = made_encoder(*ENCODERS[name])
    padded, types = np.append(IDS, [VOCAB - 1] * 3), np.append(TYPES, [0] * 3)
    inputs = {"input_ids": padded, "attention_mask": (np.arange(23) < 20).astype(np.int64), "token_type_ids": types}
    for folder, pretrained in models.items():
        key = f"{name.replace(' ', '_')}{folder and '_'}{folder}"
        outputs = transformers_outputs(key, pretrained, tmp_path / key, **inputs)[:20]
        ours = our_outputs(module, IDS, TYPES, by_generator=folder == "generator")
        assert outputs[..., :VOCAB].shape == ours[..., :VOCAB].shape
        assert abs(outputs[..., :VOCAB] - ours[..., :VOCAB]).max() <= TOLERANCE


def test_tables_have_a_row_for_each_id_and_no_more():
    assert made("qwen3")[1].tensors["lm_head.weight"].shape == (VOCAB, DECODER.embed_dim)
    assert "lm_head.weight" not in made("tied")[1].tensors


def test_every_option_of_a_decoder_is_accounted_for():
    """A new one changes what is computed: export it, or refuse it, and then name it here."""
    exported = {
        "num_layers",
        "embed_dim",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "mlp_dim",
        "rope_theta",
        "qk_norm",
        "tied_embeddings",
    }
    of_no_matter = {"remat", "compute_dtype", "kind"}
    assert {field.name for field in dataclasses.fields(DecoderConfig)} == exported | of_no_matter


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"form": "modern", "dropout": 0.0}, "model.form"),
        ({"num_kv_heads": 2}, "model.num_kv_heads"),
        ({"head_dim": 16}, "model.head_dim"),
    ],
)
def test_encoders_that_electra_is_not_are_refused(fields, named):
    config = dataclasses.replace(ENCODER, **fields)
    with pytest.raises(UserError, match=named) as error:
        made_encoder(config, Heads(detects=True))
    assert "\n" not in str(error.value)
