"""Projection onto the vocabulary and softmax cross-entropy as one operation."""

from tokenizer_lab.kernels.linear_cross_entropy.api import choose_num_chunks, linear_cross_entropy

__all__ = ["choose_num_chunks", "linear_cross_entropy"]
