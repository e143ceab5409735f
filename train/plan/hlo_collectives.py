"""Which collectives a compiled program runs, and how many bytes a device sends over which network."""

import math
import re
from collections.abc import Sequence

import numpy as np

from train.plan.hlo import Computation, Instruction, Run

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")


def collective_kind(run: Run) -> str | None:
    """Which collective a run of an instruction is; None for others, and for the later parts of one that was begun
    before."""
    kind = run.instruction.opcode.removesuffix("-start")
    if kind not in _COLLECTIVES:
        return None
    if "chain_id=" in run.instruction.attributes and not any(
        "AsyncCollectiveStart" in other.attributes for other in run.computation.values()
    ):
        return None  # an asynchronous collective stands in every operation that runs beside it
    if kind == "send":  # between slices, by the runtime
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', run.instruction.attributes)
        return transfer[1].lower().replace("_", "-") if transfer else kind
    return "reduce-scatter" if run.computation.name.startswith("all-reduce-scatter") else kind


def sent_bytes(
    computation: Computation, collective: Instruction, kind: str, slices: Sequence[int]
) -> tuple[str, float] | None:
    """Over which network a device sends how many bytes, by the ring algorithms; None where a device is alone."""
    num_bytes = sum(shape.num_bytes for shape in computation.operand_shapes(collective))
    if collective.opcode == "send":  # of every slice, the device at the same place
        members, network = len(set(slices)), "dcn"
    elif kind == "collective-permute":
        pairs = re.findall(
            r"\{(\d+),(\d+)\}",
            collective.attributes[collective.attributes.index("source_target_pairs=") :].split("}}")[0] + "}",
        )
        members, network = 2, "dcn" if any(slices[int(a)] != slices[int(b)] for a, b in pairs) else "ici"
    else:
        group = first_group(collective.attributes, len(slices))
        members, network = len(group), "dcn" if len({slices[device] for device in group}) > 1 else "ici"
    if members < 2:
        return None
    factor = {
        "all-gather": members - 1,
        "reduce-scatter": (members - 1) / members,
        "all-to-all": (members - 1) / members,
        "all-reduce": 2 * (members - 1) / members,
    }.get(kind, 1)
    return network, num_bytes * factor


def first_group(attributes: str, num_devices: int) -> list[int]:
    """The first of a collective's `replica_groups`, in any of the three ways that XLA writes them; the others are like
    it."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[\S+)", attributes):
        return _devices_in_order(found[3]).reshape(int(found[1]), int(found[2]))[0].tolist()
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(device) for device in found[1].split(",")]
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        taken = {
            name: (int(before or 1), int(part or axes[name]))
            for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", found[3])
        }
        dims: list[int] = []
        index: list[int | slice] = []
        for name, size in axes.items():  # an axis, or a part of one
            before, part = taken.get(name, (size, 1))
            dims, index = [*dims, before, part, size // (before * part)], [*index, 0, slice(None), 0]
        return _devices_in_order(found[2] or f"[{math.prod(dims)}]").reshape(dims)[tuple(index)].reshape(-1).tolist()
    return list(range(num_devices))  # replica_groups={}, or none: all


def _devices_in_order(text: str) -> np.ndarray:
    """i[n] of "[2,4]", "[2,4]T(1,0)" (all in order, as an array of that shape, transposed) or "0,2,1,3"."""
    if not (found := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)):
        return np.array([int(device) for device in text.split(",")])
    dims = [int(size) for size in found[1].split(",")]
    devices = np.arange(math.prod(dims)).reshape(dims)
    return (devices.transpose([int(axis) for axis in found[2].split(",")]) if found[2] else devices).reshape(-1)
