"""Loops over bytes that NumPy has no function for, as machine code."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types


def compiled(function: Callable[..., Any] | None = None, *, inline: bool = False) -> Callable[..., Any]:
    """`numba.njit` without the GIL. What is compiled is kept beside the source (or where NUMBA_CACHE_DIR says), as
    compiling takes seconds at each start.

    Args:
      inline: whether its code is put into its callers', as is worth it where it is called for every word with many
        arrays, each of which is several numbers to hand over.
    """
    if function is None:
        return lambda function: compiled(function, inline=inline)
    try:
        return numba.njit(nogil=True, cache=True, forceinline=inline)(function)
    except RuntimeError:  # neither beside the source nor at home is a folder to write into
        return numba.njit(nogil=True, forceinline=inline)(function)


def _borrowed(typing_context, arrays):
    """The same array, or tuple of arrays and numbers, but its references are not counted, which for arrays handed on at
    every word takes longer than all else. The caller's have to live as long."""

    def generate(context, builder, signature, arguments):
        return _without_owner(context, builder, signature.args[0], arguments[0])

    return arrays(arrays), generate


borrowed: Any = numba.extending.intrinsic(_borrowed)


def _without_owner(context: Any, builder: Any, type_: Any, value: Any) -> Any:
    is_array, is_tuple = isinstance(type_, types.Array), isinstance(type_, types.BaseTuple)
    if is_array:
        array = context.make_array(type_)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if is_tuple:
        parts = cgutils.unpack_tuple(builder, value, type_.count)
        parts = [_without_owner(context, builder, type_[number], part) for number, part in enumerate(parts)]
        return context.make_tuple(builder, type_, parts)
    return value


@compiled
def concatenate(text, starts, numbers, size):
    """u8[size]: of pieces of a text, u8[n], that begin at `starts`, i64[pieces + 1], those with these numbers, i64[m],
    one after the other."""
    out, at = np.empty(size, np.uint8), 0
    for number in numbers:
        for place in range(starts[number], starts[number + 1]):
            out[at] = text[place]
            at += 1
    return out
