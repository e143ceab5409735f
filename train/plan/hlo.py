"""A compiled program, read from its text (XLA's HLO after all optimization, of one device): its instructions, and how
often each runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool
    """Or in the chip's own memory, which nothing is charged for."""

    @property
    def num_bytes(self) -> float:
        bits = (
            {"pred": 8, "token": 0, "opaque": 0}[self.dtype]
            if not (found := re.match(r"[a-z]+(\d+)", self.dtype))
            else int(found[1])
        )
        return math.prod(self.dims) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: %name = shapes opcode(operands), attributes."""

    name: str
    shapes: tuple[Shape, ...]
    """Of its result; several if it is a tuple."""
    opcode: str
    arguments: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


class Computation(dict[str, Instruction]):
    """Instructions by their names."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.values() if instruction.is_root)

    def operand(self, instruction: Instruction, number: int) -> Instruction:
        """An operand, seen through what only renames it."""
        found = self[instruction.operands[number]]
        while found.opcode in ("bitcast", "copy", "convert", "reshape"):
            found = self[found.operands[0]]
        return found

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        return [shape for name in instruction.operands for shape in self[name].shapes if name in self]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who takes each instruction's result, seen through what only renames it."""
        users: dict[str, list[Instruction]] = collections.defaultdict(list)
        for instruction in reversed(self.values()):
            for name in dict.fromkeys(instruction.operands):
                users[name] += (
                    users[instruction.name]
                    if instruction.opcode == "bitcast" and not instruction.is_root
                    else [instruction]
                )
        return users


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction with how often it runs in a step."""

    computation: Computation
    instruction: Instruction
    times: int
    fused: bool
    """Whether it is a part of a larger operation, inside of which nothing goes through HBM."""


@functools.lru_cache(maxsize=1)
def computations_of(hlo: str) -> dict[str, Computation]:
    """The computations of a program by their names; the one it begins with is also "ENTRY"."""
    computations, computation = {}, None
    for line in hlo.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = computations[header[2]] = Computation(header[2])
            if header[1]:
                computations["ENTRY"] = computation
        elif computation is not None and (instruction := _parse_instruction(line)):
            computation[instruction.name] = instruction
    return computations


def _parse_instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        found[2],
        parse_shapes(rest[:end]),
        rest[end:opening].strip(),
        arguments,
        tuple(re.findall(r"%([\w.\-]+)", arguments)),
        rest[closing + 1 :],
        bool(found[1]),
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens there closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise AssertionError(f"no closing parenthesis: {text[:200]}")


def only(pattern: str, text: str) -> str:
    """What the group of a pattern stands for in a text that has it."""
    found = re.search(pattern, text)
    assert found, f"no {pattern} in {text[:200]}"
    return found[1]


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """`bf16[8,64]{1,0:T(8,128)S(1)}`, or several in a tuple. S(1) and higher are memories of the chip other than
    HBM."""
    return tuple(
        Shape(dtype, tuple(int(size) for size in re.findall(r"\d+", dims)), not re.search(r"S\([1-9]", layout))
        for dtype, dims, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", re.sub(r"/\*.*?\*/", "", text))
    )


def runs(hlo: str) -> Iterator[Run]:
    """Every instruction that a program runs, and how often. Of a conditional all branches count: ours does next to
    nothing in one."""
    computations = computations_of(hlo)

    def of(computation: Computation, times: int, fused: bool) -> Iterator[Run]:
        for instruction in computation.values():
            yield Run(computation, instruction, times, fused)
            called = re.findall(
                r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", instruction.attributes
            )
            called += re.findall(
                r"%?([\w.\-]+)", "".join(re.findall(r"branch_computations=\{([^}]*)\}", instruction.attributes))
            )
            if instruction.opcode in ("while", "call", "conditional", "fusion", "async-start"):
                inside = (
                    times * trip_count(computations, computation, instruction)
                    if instruction.opcode == "while"
                    else times
                )
                for name in called:
                    yield from of(computations[name], inside, fused or instruction.opcode == "fusion")

    yield from of(computations["ENTRY"], 1, False)


def trip_count(computations: dict[str, Computation], computation: Computation, loop: Instruction) -> int:
    """How often a loop runs: what XLA says, or else its counter's first value, step and limit."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition, body = (computations[only(rf"{name}=%?([\w.\-]+)", loop.attributes)] for name in ("condition", "body"))
    compare = condition.root
    while compare.opcode == "fusion":  # of nothing but the comparison
        condition = computations[only(r"calls=%?([\w.\-]+)", compare.attributes)]
        compare = condition.root
    limits = [
        int(i.arguments)
        for c in {id(c): c for c in (condition, _condition_of(computations, loop))}.values()
        for i in c.values()
        if i.opcode == "constant" and re.fullmatch(r"-?\d+", i.arguments)
    ]
    assert compare.opcode == "compare" and len(limits) == 1, (
        f"the trip count of {loop.name} is not plain: {compare}, {limits}"
    )
    counters = [
        int(only(r"index=(\d+)", i.attributes))
        for i in _condition_of(computations, loop).values()
        if i.opcode == "get-tuple-element"
    ]
    first, step = 0, 1
    if len(counters) == 1:
        tuple_, next_ = computation.operand(loop, 0), body.root
        if tuple_.opcode == "tuple":
            first = _constant(computation.operand(tuple_, counters[0])) or 0
        added = body.operand(next_, counters[0]) if next_.opcode == "tuple" else None
        if added is not None and added.opcode == "add":
            step = next((value for n in range(2) if (value := _constant(body.operand(added, n))) is not None), 1)
    more = 1 if "direction=LE" in compare.attributes else 0
    return max(0, -(-(limits[0] + more - first) // step))


def _condition_of(computations: dict[str, Computation], loop: Instruction) -> Computation:
    return computations[only(r"condition=%?([\w.\-]+)", loop.attributes)]


def _constant(instruction: Instruction) -> int | None:
    return int(instruction.arguments) if instruction.opcode == "constant" else None
