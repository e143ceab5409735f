"""What a compiled program computes and moves, read from its text (XLA's HLO after all optimization, of one device).

XLA's own `cost_analysis` counts the body of a loop once, and a training step is loops: over layers, microbatches and
chunks of the vocabulary. Here an instruction counts as often as it runs: trip counts are read from the loops'
conditions. Matrix products are counted from their shapes, as XLA counts them; elementwise work is not, it is not what
takes a step's time.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from models.attention import splash_block

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "send")
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
_HEAD_KERNEL = r"(?:linear_cross_entropy|sample_replacements)_(?:forward|backward_by_x|backward_by_table)"
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of queries x keys x head dimension that each kernel computes


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
            {"pred": 8, "token": 0, "opaque": 0}.get(self.dtype)
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
        users = collections.defaultdict(list)
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


def summarize(hlo: str, slices: Sequence[int], causal: bool = True) -> dict[str, Any]:
    """What one device computes and moves in a run of a program.

    Args:
      hlo: the program's text.
      slices: of each device, in the order of the mesh, the number of its TPU slice.
      causal: whether attention kernels leave out what a causal mask hides.

    Returns:
      flops: of matrix products, those of attention kernels (`attention_flops`) and of heads' kernels included;
      `uncounted_kernels`: names of the kernels whose FLOPs are not known; `loops_counted_once`: `flops` if every loop
      ran once; `hbm_bytes`: read and written at the operations' borders; `collectives`: `kind`, `network` ("ici" or
      "dcn"), `count` and `bytes` that a device sends, of each.
    """
    flops = attention_flops = once = hbm_bytes = 0.0
    uncounted, collectives = set(), collections.defaultdict(lambda: [0, 0.0])
    for run in runs(hlo):
        instruction, computation = run.instruction, run.computation
        if instruction.opcode in ("dot", "convolution"):
            count = product_flops(computation, instruction)
            flops, once = flops + run.times * count, once + count
        elif 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            if (count := attention_kernel_flops(computation, instruction, causal)) is not None:
                attention_flops, once = attention_flops + run.times * count, once + count
            elif (count := head_kernel_flops(computation, instruction)) is not None:
                flops, once = flops + run.times * count, once + count
            else:
                uncounted.add(re.sub(r"\.\d+$", "", instruction.name))
        if (kind := collective_kind(run)) and (sent := sent_bytes(computation, instruction, kind, slices)):
            network, num_bytes = sent
            collectives[kind, network][0] += run.times
            collectives[kind, network][1] += run.times * num_bytes
        if not run.fused:
            hbm_bytes += run.times * moved_bytes(computations_of(hlo), computation, instruction)
    return {
        "flops": flops + attention_flops,
        "attention_flops": attention_flops,
        "loops_counted_once": once,
        "uncounted_kernels": sorted(uncounted),
        "hbm_bytes": hbm_bytes,
        "splash_kernels": sorted(set(re.findall(r"splash_mha_(fwd|dq|dkv)", hlo))),
        "head_kernels": sorted(set(re.findall(_HEAD_KERNEL, hlo))),
        "tpu_custom_calls": hlo.count('custom_call_target="tpu_custom_call"'),
        "collectives": [
            {"kind": kind, "network": network, "count": count, "bytes": num_bytes}
            for (kind, network), (count, num_bytes) in sorted(collectives.items())
        ],
    }


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
    condition, body = (
        computations[re.search(rf"{name}=%?([\w.\-]+)", loop.attributes)[1]] for name in ("condition", "body")
    )
    compare = condition.root
    while compare.opcode == "fusion":  # of nothing but the comparison
        condition = computations[re.search(r"calls=%?([\w.\-]+)", compare.attributes)[1]]
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
        int(re.search(r"index=(\d+)", i.attributes)[1])
        for i in _condition_of(computations, loop).values()
        if i.opcode == "get-tuple-element"
    ]
    first, step = 0, 1
    if len(counters) == 1:
        tuple_, next_ = computation.operand(loop, 0), body.root
        first = _constant(computation, computation.operand(tuple_, counters[0])) if tuple_.opcode == "tuple" else 0
        added = body.operand(next_, counters[0]) if next_.opcode == "tuple" else None
        if added is not None and added.opcode == "add":
            step = next(
                (value for n in range(2) if (value := _constant(body, body.operand(added, n), None)) is not None), 1
            )
    more = 1 if "direction=LE" in compare.attributes else 0
    return max(0, -(-(limits[0] + more - first) // step))


def _condition_of(computations: dict[str, Computation], loop: Instruction) -> Computation:
    return computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]


def _constant(computation: Computation, instruction: Instruction, otherwise: int | None = 0) -> int | None:
    return int(instruction.arguments) if instruction.opcode == "constant" else otherwise


def product_flops(computation: Computation, product: Instruction) -> float:
    """Of a dot or a convolution, as XLA's cost analysis counts them: a multiply-add is 2, what falls on padding is left
    out."""
    left, right = (computation[name].shapes[0].dims for name in product.operands[:2])
    out = product.shapes[0].dims
    if product.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)[1]
        return 2.0 * math.prod(out) * math.prod(left[int(dim)] for dim in contracted.split(",") if dim)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    size = {
        (which, label): dim
        for which, dims, text in zip("lro", (left, right, out), labels.groups())
        for label, dim in zip(text, dims)
    }
    window = dict(
        re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", product.attributes) or [None, ""])[1])
    )
    groups = int((re.search(r"batch_group_count=(\d+)", product.attributes) or [None, "1"])[1])
    flops = 2.0 * size["l", "b"] / groups * size["r", "i"] * size["r", "o"]
    for dim in range(len(out) - 2):
        option = lambda name, otherwise: window[name].split("x")[dim] if name in window else otherwise
        flops *= _valid_positions(
            size["l", str(dim)],
            size["r", str(dim)],
            size["o", str(dim)],
            stride=int(option("stride", "1")),
            before=int(option("pad", "0_0").split("_")[0]),
            left_dilation=int(option("lhs_dilate", "1")),
            right_dilation=int(option("rhs_dilate", "1")),
        )
    return flops


def _valid_positions(
    left: int, right: int, out: int, *, stride: int, before: int, left_dilation: int, right_dilation: int
) -> int:
    """Pairs of a place of the window and a place of the output that meet a number of the input, and no padding."""
    position = np.arange(out)[:, None] * stride - before + np.arange(right)[None, :] * right_dilation
    return int(np.sum((position >= 0) & (position % left_dilation == 0) & (position // left_dilation < left)))


def attention_kernel_flops(computation: Computation, kernel: Instruction, causal: bool) -> float | None:
    """Of a splash attention kernel, from its shapes; None for another kernel. Blocks that the causal mask hides are not
    computed."""
    if not (found := re.match(r"splash_mha_(fwd|dq|dkv)", kernel.name)):
        return None
    query, key = [shape.dims for shape in computation.operand_shapes(kernel) if shape.dtype in ("bf16", "f32")][
        :2
    ]  # [rows, heads, T, head dimension]
    num_blocks = key[-2] / splash_block(query[-2])
    share = (num_blocks + 1) / (2 * num_blocks) if causal else 1.0
    return 2.0 * _SPLASH_PRODUCTS[found[1]] * math.prod(query) * key[-2] * share


def head_kernel_flops(computation: Computation, kernel: Instruction) -> float | None:
    """Of a kernel that projects onto a vocabulary (tokenizer_lab/kernels/table_softmax/), from its shapes; None for
    another kernel."""
    if not re.match(_HEAD_KERNEL, kernel.name):
        return None
    (num_positions, width), (num_rows, _) = [shape.dims for shape in computation.operand_shapes(kernel)][:2]
    return (
        2.0 * num_positions * num_rows * width * (1 if "forward" in kernel.name else 2)
    )  # backward passes compute the logits again


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
        dims, index = [], []
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


def moved_bytes(computations: dict[str, Computation], computation: Computation, instruction: Instruction) -> float:
    """Bytes that an operation reads from HBM and writes to it; of what it takes or changes a slice of, the slice."""
    if instruction.opcode in _FREE:
        return 0.0
    if instruction.opcode == "fusion":
        inside = computations[re.search(r"calls=%?([\w.\-]+)", instruction.attributes)[1]]
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
