"""Bytes that a compiled program's operations read from HBM and write to it."""

from train.plan.hlo import Computation, Instruction, only

# What moves no bytes by itself, or whose bytes are counted where they are begun.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "recv",
    "recv-done",
    "send-done",
    "copy-done",
    "slice-done",
    "all-gather-done",
    "all-reduce-done",
    "collective-permute-done",
    "async-start",
    "async-update",
    "async-done",
    "opt-barrier",
}
_SLICES = {"dynamic-slice", "slice", "gather", "slice-start"}


def moved_bytes(computations: dict[str, Computation], computation: Computation, instruction: Instruction) -> float:
    """Bytes that an operation reads from HBM and writes to it; of what it takes or changes a slice of, the slice."""
    if instruction.opcode in _FREE:
        return 0.0
    if instruction.opcode == "fusion":
        inside = computations[only(r"calls=%?([\w.\-]+)", instruction.attributes)]
        parameters = {int(i.arguments): i for i in inside.values() if i.opcode == "parameter"}
        read = sum(
            _read_bytes(inside, parameters[number])
            for number, name in enumerate(instruction.operands)
            if all(shape.in_hbm for shape in computation[name].shapes)
        )
        roots = [inside[name] for name in inside.root.operands] if inside.root.opcode == "tuple" else [inside.root]
        return read + sum(
            _written_bytes(inside, root) for root, shape in zip(roots, instruction.shapes) if shape.in_hbm
        )
    written = _written_bytes(computation, instruction)
    if instruction.opcode in _SLICES or instruction.opcode == "dynamic-update-slice":
        return 2 * written
    return written + sum(shape.num_bytes for shape in computation.operand_shapes(instruction) if shape.in_hbm)


def _read_bytes(inside: Computation, parameter: Instruction) -> float:
    """What a fused operation reads of a parameter."""
    users = [user for user in inside.users[parameter.name] if user.opcode != "tuple"]  # handed on as it is
    whole = sum(shape.num_bytes for shape in parameter.shapes)
    if users and all(user.opcode in _SLICES for user in users):
        return min(whole, sum(shape.num_bytes for user in users for shape in user.shapes))
    in_place = users and all(
        user.opcode == "dynamic-update-slice" and inside.operand(user, 0) is parameter for user in users
    )
    return 0.0 if in_place or not users else whole


def _written_bytes(inside: Computation, root: Instruction) -> float:
    """What an operation writes of its result."""
    while root.opcode == "bitcast":
        root = inside[root.operands[0]]
    if root.opcode == "parameter":
        return 0.0
    if root.opcode == "dynamic-update-slice":
        return sum(shape.num_bytes for shape in inside[root.operands[1]].shapes)
    if root.opcode.endswith("-start"):
        return sum(shape.num_bytes for shape in root.shapes[1:2] if shape.in_hbm)
    return sum(shape.num_bytes for shape in root.shapes if shape.in_hbm)
