"""Subwords: byte-level BPE and Unigram fitted here, superwords, characters, and any existing tokenizer.json. See
docs/subword.md."""

from tokenizer_lab.subword.representation import SubwordFit, SubwordRepresentation

__all__ = ["SubwordFit", "SubwordRepresentation"]
