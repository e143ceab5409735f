"""Text <-> ids: input representations, their artifacts, and the kernels that only they need."""

from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import Representation, load

__all__ = ["Representation", "UserError", "load"]
