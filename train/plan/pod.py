"""TPU pods by their names, and a recipe laid out over one."""

import dataclasses
import math
import re

from tokenizer_lab.errors import UserError
from train.hosts.hardware import CHIPS, Chip
from train.nearest import nearest
from train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Pod:
    """Slices of TPU chips: "v5p:8x8x16" is one of 1,024."""

    topology: str
    num_slices: int = 1

    def __post_init__(self) -> None:
        generation, _, sizes = self.topology.partition(":")
        known = [f"{name}:{common}" for name, chip in CHIPS.items() for common in chip.topologies]
        rank = CHIPS[generation].topologies[0].count("x") + 1 if generation in CHIPS else 0
        if not re.fullmatch("x".join([r"[1-9]\d*"] * rank), sizes) or not rank:
            raise UserError(
                f"no topology {self.topology!r}{nearest(self.topology, known)}; there are {', '.join(known)}"
            )

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def num_chips(self) -> int:
        return self.num_slices * self.chips_per_slice

    @property
    def chips_per_slice(self) -> int:
        return math.prod(int(size) for size in self.topology.partition(":")[2].split("x"))

    @property
    def num_devices(self) -> int:
        """As JAX counts them."""
        return self.num_chips * self.chip.devices_per_chip

    def __str__(self) -> str:
        return f"{self.num_slices} x {self.topology}" if self.num_slices > 1 else self.topology


def on_pod(recipe: Recipe, pod: Pod) -> Recipe:
    """The recipe with a replica on each slice, if its mesh has not said otherwise. Raises UserError where mesh or batch
    do not fit the chips."""
    if recipe.mesh.replica == 1 and pod.num_slices > 1:
        recipe = dataclasses.replace(recipe, mesh=dataclasses.replace(recipe.mesh, replica=pod.num_slices))
    recipe.check_devices(pod.num_devices, pod.num_slices)
    return recipe
