"""ELECTRA's generator head at the masked positions: loss and sampled replacement without logits in memory."""

from tokenizer_lab.kernels.sample_replacements.api import PRODUCTION_SHAPES, sample_replacements

__all__ = ["PRODUCTION_SHAPES", "sample_replacements"]
