"""Projection onto the vocabulary and softmax cross-entropy as one operation."""

from tokenizer_lab.kernels.linear_cross_entropy.api import (
    PRODUCTION_SHAPES,
    Implementation,
    Layout,
    linear_cross_entropy,
)

__all__ = ["PRODUCTION_SHAPES", "Implementation", "Layout", "linear_cross_entropy"]
