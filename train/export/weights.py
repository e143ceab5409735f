"""A run's weights under the names that Hugging Face `transformers` gives them, with the config.json that says which
class they are of.

Our decoder is Qwen3's, and without QK-norm Llama's: pre-norm with RMSNorm, rotary positions on halves, grouped queries,
SwiGLU, no biases. An encoder of the form "bert" is ELECTRA's. Whatever else there is in a model fits no class exactly,
and is refused.

Rows of tables that only pad the vocabulary are left out.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from models.decoder import DecoderConfig
from models.encoder import NUM_TYPES, EncoderConfig, Heads
from models.norms import LAYER_NORM_EPSILON, RMS_NORM_EPSILON
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import NUM_ENCODER_IDS

Tensors = dict[str, np.ndarray]
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `from_pretrained` reads of a model."""

    config: dict[str, Any]
    """config.json."""
    tensors: Tensors
    """f32, by name."""


def check_encoder(config: EncoderConfig) -> None:
    """Raises UserError where no class of transformers computes what this encoder does."""
    if config.form != "bert":
        raise UserError(
            f"model.form is {config.form!r}, bidirectional layers that no class of transformers has; only encoders of"
            " the form 'bert' can be exported"
        )
    if config.num_kv_heads != config.num_heads:
        raise UserError(
            f"model.num_kv_heads is {config.num_kv_heads} of {config.num_heads} heads and ElectraModel has no grouped"
            " queries; only encoders with as many of both can be exported"
        )
    if config.num_heads * config.head_dim != config.embed_dim:
        raise UserError(
            f"model.num_heads {config.num_heads} x model.head_dim {config.head_dim} is not model.embed_dim"
            f" {config.embed_dim}, as ElectraModel has it; only encoders where it is can be exported"
        )


def decoder(params: Params, config: DecoderConfig, vocab_size: int, eod_id: int, max_positions: int) -> Pretrained:
    """A decoder as Qwen3ForCausalLM or LlamaForCausalLM; every document begins with `eod_id` and ends with it."""
    tensors = {
        "model.embed_tokens.weight": array(params["embedding"])[:vocab_size],
        "model.norm.weight": array(params["final_scale"]),
    }
    if not config.tied_embeddings:
        tensors["lm_head.weight"] = array(params["unembedding"])[:vocab_size]
    for number in range(config.num_layers):
        tensors |= prefixed(f"model.layers.{number}.", _decoder_layer(layer(params["blocks"], number), config.qk_norm))
    about = {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if config.qk_norm else "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": RMS_NORM_EPSILON,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        "pad_token_id": eod_id,
        "torch_dtype": "float32",
    }
    return Pretrained(about, tensors)


def _decoder_layer(block: Params, qk_norm: bool) -> Tensors:
    attention, mlp = block["attention"], block["mlp"]
    tensors = {
        "input_layernorm.weight": block["attention_scale"],
        "self_attn.q_proj.weight": linear(attention["query"]),
        "self_attn.k_proj.weight": linear(attention["key"]),
        "self_attn.v_proj.weight": linear(attention["value"]),
        "self_attn.o_proj.weight": linear(attention["out"], num_inner=2),
        "post_attention_layernorm.weight": block["mlp_scale"],
        "mlp.gate_proj.weight": linear(mlp["gate"]),
        "mlp.up_proj.weight": linear(mlp["up"]),
        "mlp.down_proj.weight": linear(mlp["down"]),
    }
    if qk_norm:
        tensors |= {
            "self_attn.q_norm.weight": attention["query_scale"],
            "self_attn.k_norm.weight": attention["key_scale"],
        }
    return tensors


def encoder(params: Params, config: EncoderConfig, heads: Heads, vocab_size: int, eod_id: int) -> dict[str, Pretrained]:
    """An encoder with its heads, by folder: "" for itself, "generator" for ELECTRA's.

    As `ElectraForPreTraining` where it detects, as `ElectraForMaskedLM` where it predicts. Raises UserError where
    ElectraModel does not fit.
    """
    check_encoder(config)
    predictor = heads.predictor(config)
    check_encoder(predictor)
    models = {}
    if heads.detects:
        tensors = _electra(params["embeddings"], params["body"], config, vocab_size) | _detection_head(
            params["detection_head"]
        )
        models[""] = Pretrained(_electra_config("ElectraForPreTraining", config, vocab_size, eod_id), tensors)
    if heads.predicts:
        tensors = _electra(
            params["embeddings"], params["generator" if heads.generator_share else "body"], predictor, vocab_size
        )
        tensors |= _vocab_head(params["vocab_head"], vocab_size)
        folder = "generator" if heads.generator_share else ""
        models[folder] = Pretrained(_electra_config("ElectraForMaskedLM", predictor, vocab_size, eod_id), tensors)
    return models


def _electra_config(architecture: str, config: EncoderConfig, vocab_size: int, eod_id: int) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "electra",
        "vocab_size": vocab_size + NUM_ENCODER_IDS,
        "embedding_size": config.table_width,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": LAYER_NORM_EPSILON,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": NUM_TYPES,
        "tie_word_embeddings": True,
        "pad_token_id": eod_id,  # which no encoder's rows have
        "torch_dtype": "float32",
    }


def _electra(embeddings: Params, body: Params, config: EncoderConfig, vocab_size: int) -> Tensors:
    tensors = {
        "embeddings.word_embeddings.weight": array(embeddings["table"])[: vocab_size + NUM_ENCODER_IDS],
        "embeddings.position_embeddings.weight": array(embeddings["positions"]),
        "embeddings.token_type_embeddings.weight": array(embeddings["types"]),
        **layer_norm("embeddings.LayerNorm", embeddings["norm"]),
    }
    if config.table_width != config.embed_dim:
        tensors |= dense("embeddings_project", body["projection"])
    for number in range(config.num_layers):
        tensors |= prefixed(f"encoder.layer.{number}.", _electra_layer(layer(body["blocks"], number)))
    return prefixed("electra.", tensors)


def _electra_layer(block: Params) -> Tensors:
    attention = block["attention"]
    tensors: Tensors = {}
    for name in ("query", "key", "value"):
        tensors |= {
            f"attention.self.{name}.weight": linear(attention[name]),
            f"attention.self.{name}.bias": attention[f"{name}_bias"].ravel(),
        }
    tensors |= {
        "attention.output.dense.weight": linear(attention["out"], num_inner=2),
        "attention.output.dense.bias": attention["out_bias"],
    }
    tensors |= layer_norm("attention.output.LayerNorm", block["attention_norm"]) | layer_norm(
        "output.LayerNorm", block["mlp_norm"]
    )
    return tensors | dense("intermediate.dense", block["up"]) | dense("output.dense", block["down"])


def _detection_head(head: Params) -> Tensors:
    return dense("discriminator_predictions.dense", head["dense"]) | dense(
        "discriminator_predictions.dense_prediction", head["out"]
    )


def _vocab_head(head: Params, vocab_size: int) -> Tensors:
    """An encoder's own ids are nothing that it predicts: their bias leaves them no probability."""
    never = np.full(NUM_ENCODER_IDS, np.finfo(np.float32).min, np.float32)
    bias = np.concatenate([array(head["bias"])[:vocab_size], never])
    return {
        **dense("generator_predictions.dense", head["dense"]),
        **layer_norm("generator_predictions.LayerNorm", head["norm"]),
        "generator_lm_head.bias": bias,
    }


def layer(blocks: Params, number: int) -> Any:
    """One of the stacked layers."""
    return jax.tree.map(lambda x: array(x[number]), blocks)


def array(x: jax.Array | np.ndarray) -> np.ndarray:
    return np.asarray(x)


def linear(kernel: jax.Array, num_inner: int = 1) -> np.ndarray:
    """f[*in, *out] with `num_inner` axes in -> f[out, in], as torch.nn.Linear has it."""
    return array(kernel).reshape(math.prod(kernel.shape[:num_inner]), -1).T


def dense(name: str, of: Params) -> Tensors:
    return {f"{name}.weight": linear(of["kernel"]), f"{name}.bias": array(of["bias"])}


def layer_norm(name: str, of: Params) -> Tensors:
    return {f"{name}.weight": array(of["scale"]), f"{name}.bias": array(of["bias"])}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}
