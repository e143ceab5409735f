"""Which implementation of an operation is computed: one rule for all kernels."""

import functools
import warnings
from collections.abc import Callable, Mapping

import jax


def choose(
    operation: str, name: str, implementations: Mapping[str, Callable], *, elsewhere: str, refusal: str | None = None, platform: str | None = None,
) -> Callable:
    """The implementation of a name.

    Args:
      operation: what messages call it.
      name: of `implementations`; or "auto": "pallas" where it is compiled for a TPU and `elsewhere` on other platforms.
      implementations: functions of the same arrays.
      elsewhere: the one for platforms without a kernel, and for what the kernel refuses.
      refusal: why the kernel does not take these arguments, with their shape; None: it does. "auto" says so once.
      platform: where it is going to run, as far as that is known; by default where this process computes.

    Raises:
      ValueError: no implementation has this name, or it is the kernel's and the kernel refuses.
    """
    if name != "auto" and name not in implementations:
        raise ValueError(f"no implementation {name!r} of {operation}; there are auto, {', '.join(implementations)}")
    if refusal and name not in ("auto", *_plain(implementations)):
        raise ValueError(f"the TPU kernel of {operation} does not take {refusal}; use the implementation 'auto' or {elsewhere!r}")
    if name != "auto":
        return implementations[name]
    if refusal:
        if (platform or jax.default_backend()) == "tpu":
            warn_once(f"the TPU kernel of {operation} does not take {refusal}; it is computed by the {elsewhere} implementation instead")
        return implementations[elsewhere]
    return functools.partial(jax.lax.platform_dependent, tpu=implementations["pallas"], default=implementations[elsewhere])


@functools.cache
def warn_once(message: str) -> None:
    """However often a program is traced."""
    warnings.warn(message, stacklevel=2)


def _plain(implementations: Mapping[str, Callable]) -> list[str]:
    return [name for name in implementations if name not in ("pallas", "interpreted")]
