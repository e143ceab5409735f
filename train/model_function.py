"""Functions of a model as functions of its weights, computed over a mesh: what evaluation and fine-tuning jit."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from models.axes import Kernels, use_placement
from train.sharding import placement, replicated


def of_weights(
    function: Callable[..., Any], model_def: Any, mesh: Mesh, kernels: Kernels = "auto"
) -> Callable[..., Any]:
    """`function(model, *arguments)` as a function (params, *arguments), over the mesh and with a recipe's kernels."""

    def computed(params: Any, *arguments: Any, **keywords: Any) -> Any:
        with use_placement(placement(mesh, kernels)):
            return function(nnx.merge(model_def, nnx.State(params)), *arguments, **keywords)

    return computed


def padded(count: int, smallest: int = 1) -> int:
    """The next power of two, so that there are few shapes to compile for."""
    return max(smallest, 1 << (count - 1).bit_length() if count else 0)


def jit_of_weights(
    function: Callable[..., Any],
    model_def: Any,
    mesh: Mesh,
    kernels: Kernels = "auto",
    static_argnames: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """`of_weights`, jitted; its result is whole on every host."""
    computed = of_weights(function, model_def, mesh, kernels)
    return jax.jit(computed, out_shardings=replicated(mesh), static_argnames=static_argnames)
