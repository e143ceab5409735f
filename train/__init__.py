"""The trainer. Its spine is here, read in this order: recipe, setup, objectives/, optimizer, sharding, step, loop.

The wings beside it are folders. Imports go one way, and a contract in pyproject.toml holds them to it:

    commands -> compare, inspect -> submit -> plan, report, export, compressor -> evaluate -> the spine
      -> run -> hosts -> exits

Everything here may import `data`, `models` and `tokenizer_lab`; none of them imports anything of `train`.
"""
