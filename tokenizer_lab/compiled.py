"""Loops over bytes that NumPy has no function for, as machine code."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit` without the GIL. What is compiled is kept beside the source (or where NUMBA_CACHE_DIR says), as
    compiling takes seconds at each start."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside the source nor at home is a folder to write into
        return numba.njit(nogil=True)(function)
