"""Which implementation of an operation is computed: one rule for all kernels."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax


def choose(
    operation: str,
    name: str,
    implementations: Mapping[str, Callable[..., Any]],
    *,
    elsewhere: str,
    refusals: Mapping[str, str | None] = {},
    platform: str | None = None,
) -> Callable[..., Any]:
    """The implementation of a name.

    Args:
      operation: what messages call it.
      name: of `implementations`; or "auto": "pallas", the TPU kernel, where it is compiled for a TPU and `elsewhere` on
        other platforms. GPU kernels are nowhere chosen, only named, until one has been measured against `elsewhere`.
      implementations: functions of the same arrays.
      elsewhere: the one for platforms without a kernel, and for what the TPU kernel refuses.
      refusals: of kernels' names, why the kernel does not take these arguments, with their shape; None: it does. "auto"
        says so once.
      platform: where it is going to run, as far as that is known; by default where this process computes.

    Raises:
      ValueError: no implementation has this name, or it is a kernel's that refuses.
    """
    if name != "auto":
        if name not in implementations:
            raise ValueError(f"no implementation {name!r} of {operation}; there are auto, {', '.join(implementations)}")
        if refusal := refusals.get(name):
            chip = "GPU" if name.endswith("_gpu") else "TPU"
            raise ValueError(
                f"the {chip} kernel of {operation} does not take {refusal}; use the implementation 'auto' or"
                f" {elsewhere!r}"
            )
        return implementations[name]
    if refusal := refusals.get("pallas"):
        if (platform or jax.default_backend()) == "tpu":
            warn_once(
                f"the TPU kernel of {operation} does not take {refusal}; it is computed by the {elsewhere}"
                " implementation instead"
            )
        return implementations[elsewhere]
    return functools.partial(
        jax.lax.platform_dependent, tpu=implementations["pallas"], default=implementations[elsewhere]
    )


@functools.cache
def warn_once(message: str) -> None:
    """However often a program is traced."""
    warnings.warn(message, stacklevel=2)
