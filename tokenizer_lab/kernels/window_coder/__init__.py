"""One step down the tree of the exact window code, for many independent streams at once, in integers."""

from tokenizer_lab.kernels.window_coder.api import PRODUCTION_SHAPES, decode_step, encode_step

__all__ = ["PRODUCTION_SHAPES", "decode_step", "encode_step"]
