"""The equal-info arm of `make demo`."""

import dataclasses

from configs import demo_byte
from train.recipe import Recipe


def recipe() -> Recipe:
    """The byte arm's decoder over windows of 16 bits in ids of 8; its rows hold about as much text as the byte arm's.

    toklab train demo_equal_info --run-dir demo/runs/equal_info

    Its budget counts what the compressor has spent.
    """
    byte = demo_byte.recipe()
    return dataclasses.replace(
        byte,
        name="demo_equal_info",
        representation="demo/equal_info",
        data=dataclasses.replace(byte.data, sequence_length=256),
    )
