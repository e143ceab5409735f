"""The subword arm of `make demo`."""

import dataclasses

from configs import demo_byte
from train.recipe import Recipe


def recipe() -> Recipe:
    """The byte arm's decoder over 2,048 byte-level BPE ids; its rows hold about as much text as the byte arm's.

    toklab train demo_subword --run-dir demo/runs/subword
    """
    byte = demo_byte.recipe()
    return dataclasses.replace(
        byte,
        name="demo_subword",
        representation="demo/subword",
        data=dataclasses.replace(byte.data, sequence_length=176),
    )
