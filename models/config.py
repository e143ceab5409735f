"""The shape that all transformers here have in common."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

import jax
from flax import nnx

from models.initialization import fan_in_normal, published_normal
from tokenizer_lab.errors import POSITIVE, Range, UserError, check_numbers

_VOCAB_MULTIPLE = 128  # a lane tile of a TPU; an unpadded table costs two copies of itself there


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What the shapes of all transformers here have in common. The vocabulary is not in it: that is the
    representation's."""

    num_layers: int = 4
    embed_dim: int = 256
    """Width of the residual stream."""
    num_heads: int = 4
    num_kv_heads: int = 4
    """Key/value heads; fewer than num_heads is grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245)."""
    head_dim: int = 64
    mlp_dim: int = 768
    """Width inside the MLP; a gated one has three matrices."""
    rope_theta: float = 10_000.0
    qk_norm: bool = True
    remat: Literal["none", "dots", "full"] = "full"
    """What the backward pass recomputes: nothing, all but matrix products, or each layer from its input."""
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of activations and matrix products; parameters are float32."""

    causal: ClassVar[bool] = True
    """Whether a position sees only those before it."""
    ranges: ClassVar[Mapping[str, Range]] = {"rope_theta": POSITIVE}
    """Of fields, where they are others than `check_numbers` takes by itself."""

    def __post_init__(self) -> None:
        check_numbers(self, "model.", **self.ranges)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads {self.num_heads} is not a multiple of model.num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim {self.head_dim} is odd; rotary positions rotate pairs, use an even one")
        for field in dataclasses.fields(self):
            choices = get_args(field.type)
            if isinstance(field.type, type(Literal["a"])) and getattr(self, field.name) not in choices:
                raise UserError(
                    f"model.{field.name} is {getattr(self, field.name)!r}; it is one of {', '.join(choices)}"
                )

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

    def padded_vocab_size(self, vocab_size: int) -> int:
        return -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
