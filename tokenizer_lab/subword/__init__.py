"""Subwords: byte-level BPE and Unigram fitted here, superwords, characters, and any existing tokenizer.json. See
docs/subword.md."""

from tokenizer_lab.subword.fit import FIT_OPTIONS, SubwordFit
from tokenizer_lab.subword.representation import SubwordRepresentation

__all__ = ["FIT_OPTIONS", "SubwordFit", "SubwordRepresentation"]
