"""`toklab plan --search`: the fastest layout of a recipe over a pod that fits its memory."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from models.config import Remat
from tokenizer_lab.errors import UserError
from train.plan.plan import gib, make_plan
from train.plan.pod import Pod
from train.plan.representations import Ids
from train.recipe import Recipe
from train.setup import abstract_parameters, count_parameters
from train.sharding import largest_split

_REMAT: tuple[Remat, ...] = ("full", "dots", "none")  # from the least memory to the most


@dataclasses.dataclass(frozen=True)
class Searched:
    """What a search has found."""

    plans: list[dict[str, Any]]
    """That fit, the fastest first (nothing hidden)."""
    num_compiled: int
    num_impossible: int
    """Left out before compiling."""
    failures: list[str]


def search(recipe: Recipe, pod: Pod, ids: Ids, update: Callable[[int, int], None]) -> Searched:
    """Tries rows a chip at a time (microbatches), remat policies and meshes; the global batch, and so what is learned,
    stays as it is.

    A candidate is not compiled where arithmetic says that it cannot fit, nor where one with fewer rows at a time or
    more remat of the same mesh has not fitted.
    """
    every = list(candidates(recipe, ids.vocab_size, pod))
    possible = [candidate for candidate in every if least_bytes(candidate, ids.vocab_size, pod) <= pod.chip.hbm_bytes]
    if not possible:
        raise UserError(
            f"none of {len(every)} ways to lay {recipe.name} out over {pod} can fit: parameters, optimizer, gradients"
            f" and the layers' inputs take more than the {gib(pod.chip.hbm_bytes)} of a chip; use more chips, shorter"
            " rows or a smaller model"
        )
    plans, failures, num_compiled = [], [], 0
    too_large: list[Recipe] = []
    for done, candidate in enumerate(possible):
        update(done, len(possible))
        if any(_needs_more(candidate, other) for other in too_large):
            continue
        num_compiled += 1
        try:
            plan = make_plan(candidate, pod, ids)
        except UserError as error:
            failures.append(str(error))
            continue
        plans.append(plan) if plan["memory"]["fits"] else too_large.append(candidate)
    update(len(possible), len(possible))
    plans.sort(key=lambda plan: plan["estimate"]["exposed_step_seconds"])
    return Searched(plans, num_compiled, len(every) - len(possible), failures)


def candidates(recipe: Recipe, vocab_size: int, pod: Pod) -> Iterator[Recipe]:
    """Layouts whose sizes divide what they split, those of a mesh from the least memory to the most."""
    shapes, axes = abstract_parameters(recipe, vocab_size)
    of_tensor, of_fsdp = (largest_split(shapes, axes, axis) for axis in ("tensor", "fsdp"))
    within = pod.num_devices // pod.num_slices
    for tensor in (1, 2, 4, 8):
        if within % tensor or of_tensor % tensor:
            continue
        shards = pod.num_devices // tensor
        if recipe.data.batch_rows % shards or of_fsdp % (within // tensor):
            continue
        mesh = dataclasses.replace(
            recipe.mesh, replica=pod.num_slices, fsdp=within // tensor, tensor=tensor, sequence=1
        )
        for parts, remat in itertools.product((8, 4, 2, 1), _REMAT):
            if recipe.data.batch_rows // shards % parts == 0:
                yield dataclasses.replace(
                    recipe,
                    mesh=mesh,
                    model=dataclasses.replace(recipe.model, remat=remat),
                    data=dataclasses.replace(recipe.data, num_microbatches=parts),
                )


def _needs_more(candidate: Recipe, other: Recipe) -> bool:
    """Whether a candidate needs at least the memory of another, for certain."""
    return (
        candidate.mesh == other.mesh
        and candidate.data.num_microbatches <= other.data.num_microbatches
        and _REMAT.index(candidate.model.remat) >= _REMAT.index(other.model.remat)
    )


def least_bytes(recipe: Recipe, vocab_size: int, pod: Pod) -> float:
    """Bytes of a chip that a layout takes at the very least: state, gradients, and what the layers keep for the
    backward pass."""
    mesh, data = recipe.mesh, recipe.data
    moments = 2 if recipe.optimizer.kind == "adamw" else 1
    state = 4 * (2 + moments) * count_parameters(recipe, vocab_size)["total"] / (mesh.fsdp * mesh.tensor)
    positions = (
        data.batch_rows * data.sequence_length / (mesh.replica * mesh.fsdp * mesh.sequence * data.num_microbatches)
    )
    return state + positions * recipe.model.kept_bytes_per_token(mesh.tensor)
