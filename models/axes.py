"""Logical axis names for arrays, and where the trainer says they live.

Model code names axes ("batch", "embed", ...) and nothing else. Which mesh axis each one maps to is decided by the table
in `train/sharding.py`, which is put in force around the model by `use_placement`. Without one (unit tests, a notebook)
every constraint is the identity.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None
Kernels = Literal["auto", "reference"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the map logical axis -> mesh axes for activations."""

    mesh: Mesh
    activations: Mapping[str, MeshAxes]
    kernels: Kernels = "auto"
    """Which implementation operations take that have a kernel; "reference" is plain JAX for all."""

    def spec(self, *axes: str | None) -> PartitionSpec:
        return PartitionSpec(*(self.activations[axis] if axis else None for axis in axes))


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)


@contextlib.contextmanager
def use_placement(placement: Placement | None) -> Iterator[None]:
    """Puts `placement` in force for the model code traced inside."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)


def current_placement() -> Placement | None:
    return _placement.get()


def on_one_cpu() -> bool:
    """Whether the model is computed on one CPU device, whose compiler wants some things written otherwise."""
    placement = _placement.get()
    return (
        jax.default_backend() == "cpu"
        if placement is None
        else placement.mesh.size == 1 and placement.mesh.devices.flat[0].platform == "cpu"
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, told to the compiler to be laid out by its logical axes (one name or None for each axis of `x`)."""
    assert len(axes) == x.ndim, (axes, x.shape)
    placement = _placement.get()
    if placement is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(placement.mesh, placement.spec(*axes)))


def parameter(value: jax.Array, *axes: str) -> nnx.Param[Any]:
    """A model parameter that knows the logical name of each of its axes."""
    assert len(axes) == value.ndim, (axes, value.shape)
    return nnx.Param(value, axes=axes)


def parameter_axes(state: nnx.State[Any, Any]) -> dict[str, Any]:
    """The logical axes of every parameter of `nnx.state(model)`, as a nested dict of tuples; stacked layers get
    "layers" in front."""

    def axes(variable: nnx.Param[Any]) -> tuple[str, ...]:
        names = variable.get_metadata("axes")
        return ("layers",) * (len(variable.shape) - len(names)) + tuple(names)

    return nnx.to_pure_dict(jax.tree.map(axes, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))
