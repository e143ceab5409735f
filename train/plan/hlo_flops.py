"""FLOPs of a compiled program's matrix products and kernels, from their shapes."""

import math
import re

import numpy as np

from models.attention import splash_block
from train.plan.hlo import Computation, Instruction, only

HEAD_KERNEL = r"(?:linear_cross_entropy|sample_replacements)_(?:forward|backward_by_x|backward_by_table)"
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of queries x keys x head dimension that each kernel computes


def product_flops(computation: Computation, product: Instruction) -> float:
    """Of a dot or a convolution, as XLA's cost analysis counts them: a multiply-add is 2, what falls on padding is left
    out."""
    left, right = (computation[name].shapes[0].dims for name in product.operands[:2])
    out = product.shapes[0].dims
    if product.opcode == "dot":
        contracted = only(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        return 2.0 * math.prod(out) * math.prod(left[int(dim)] for dim in contracted.split(",") if dim)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    assert labels, product.attributes
    size = {
        (which, label): dim
        for which, dims, text in zip("lro", (left, right, out), labels.groups())
        for label, dim in zip(text, dims)
    }
    found = re.search(r"window=\{([^}]*)\}", product.attributes)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", found[1] if found else ""))
    found = re.search(r"batch_group_count=(\d+)", product.attributes)
    groups = int(found[1] if found else 1)
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
    num_blocks = key[-2] / (splash_block(query[-2], key[-2]) or 1)
    share = (num_blocks + 1) / (2 * num_blocks) if causal else 1.0
    return 2.0 * _SPLASH_PRODUCTS[found[1]] * math.prod(query) * key[-2] * share


def head_kernel_flops(computation: Computation, kernel: Instruction) -> float | None:
    """Of a kernel that projects onto a vocabulary (tokenizer_lab/kernels/table_softmax/), from its shapes; None for
    another kernel."""
    if not re.match(HEAD_KERNEL, kernel.name):
        return None
    (num_positions, width), (num_rows, _) = [shape.dims for shape in computation.operand_shapes(kernel)][:2]
    return (
        2.0 * num_positions * num_rows * width * (1 if "forward" in kernel.name else 2)
    )  # backward passes compute the logits again
