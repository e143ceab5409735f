"""What the benchmarks that need PyTorch say without it."""

import importlib
import sys

INSTALL = {"torch": "pip install torch==2.13.0", "transformers": "pip install 'tokenizer-lab[hf]'"}


def require_pytorch(*others: str) -> None:
    """Ends the program in one line where PyTorch is not installed, or one of the others, which are of INSTALL."""
    for name in ("torch", *others):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.exit(f"{sys.argv[0]} needs {name}, which is not installed here: {INSTALL[name]}")
