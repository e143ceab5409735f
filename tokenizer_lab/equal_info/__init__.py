"""Neurally compressed text in windows of equal information: the byte LM in integers, the exact window code, the
published rule.

`representation.py` is what the rest of the code sees. See docs/equal_info.md.
"""

from tokenizer_lab.equal_info.representation import EqualInfoFit, EqualInfoRepresentation

__all__ = ["EqualInfoFit", "EqualInfoRepresentation"]
