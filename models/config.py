"""What every model's config offers, and the shape that all transformers here have in common."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.initialization import fan_in_normal, published_normal
from tokenizer_lab.errors import POSITIVE, Range, UserError, check_numbers

_VOCAB_MULTIPLE = 128  # a lane tile of a TPU; an unpadded table costs two copies of itself there

Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is asked of the config of every model: by the trainer, plans, fine-tuning and reports. The vocabulary is not
    in it: that is the representation's.

    A model that predicts next ids offers `models.next_id.NextIdConfig` besides.
    """

    embed_dim: int = 256
    """Width of the hidden states that the model gives, and of its residual stream if it has one."""
    remat: Remat = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or each layer from its input."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations and matrix products; parameters are float32."""

    family: ClassVar[str]
    """Which objectives train it: "decoder", those that predict the next id; "encoder", those that see a whole row."""
    causal: ClassVar[bool] = True
    """Whether a position sees only those before it."""
    ranges: ClassVar[Mapping[str, Range]] = {}
    """Of fields, where they are others than `check_numbers` takes by itself."""

    def __post_init__(self) -> None:
        check_numbers(self, "model.", **self.ranges)
        for field in dataclasses.fields(self):
            choices = get_args(field.type)
            if isinstance(field.type, type(Literal["a"])) and getattr(self, field.name) not in choices:
                raise UserError(
                    f"model.{field.name} is {getattr(self, field.name)!r}; it is one of {', '.join(choices)}"
                )

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Rows of a table of so many ids."""
        return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    def kept_bytes_per_token(self, tensor_shards: int) -> float:
        """Bytes of a chip that the backward pass needs of a position at the very least, where the chip has one of so
        many shards; plans leave out what cannot fit by it."""
        del tensor_shards
        return 0.0

    def layers_above(self, names: Sequence[str]) -> int | np.ndarray:
        """How many layers are between a parameter and a new head, for the learning rates of fine-tuning; `names` is the
        parameter's path. Where its first axis is layers, i64[L]."""
        del names
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """What the shapes of all transformers here have in common."""

    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    """Key/value heads; fewer than num_heads is grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245)."""
    head_dim: int = 64
    mlp_dim: int = 768
    """Width inside the MLP; a gated one has three matrices."""
    rope_theta: float = 10_000.0
    qk_norm: bool = True

    ranges: ClassVar[Mapping[str, Range]] = {"rope_theta": POSITIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim {self.head_dim} is odd; rotary positions rotate pairs, use an even one")

    @property
    def published(self) -> bool:
        """Whether the layers are BERT's: post-norm, LayerNorm, biases, GELU, no rotary positions."""
        return False

    @property
    def residual_scale(self) -> float:
        """Of the matrices that write to the residual stream, so that its variance does not grow with depth (GPT-2,
        section 2.3)."""
        return (2 * self.num_layers) ** -0.5

    def matrix(self, rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> jax.Array:
        """A matrix as training begins with it."""
        return published_normal(rngs, shape) if self.published else fan_in_normal(rngs, shape, fan_in, scale)

    def kept_bytes_per_token(self, tensor_shards: int) -> float:
        """Of each layer its input, and unless that is all, what is inside the MLP."""
        width = self.embed_dim + (0 if self.remat == "full" else 2 * self.mlp_dim / tensor_shards)
        return self.num_layers * width * jnp.dtype(self.compute_dtype).itemsize

    def layers_above(self, names: Sequence[str]) -> int | np.ndarray:
        """With the final norm and the tables counted as layers (`_get_layer_lrs` of google-research/electra,
        optimization.py)."""
        if "blocks" in names:
            return 1 + np.arange(self.num_layers)[::-1]
        return 0 if names[-1] == "final_scale" else 1 + self.num_layers
