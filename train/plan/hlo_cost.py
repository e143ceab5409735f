"""What a compiled program computes and moves, read from its text (XLA's HLO after all optimization, of one device).

XLA's own `cost_analysis` counts the body of a loop once, and a training step is loops: over layers, microbatches and
chunks of the vocabulary. Here an instruction counts as often as it runs: trip counts are read from the loops'
conditions. Matrix products are counted from their shapes, as XLA counts them; elementwise work is not, it is not what
takes a step's time.
"""

import collections
import re
from collections.abc import Sequence
from typing import Any

from train.plan.hlo import computations_of, runs
from train.plan.hlo_collectives import collective_kind, sent_bytes
from train.plan.hlo_flops import HEAD_KERNEL, attention_kernel_flops, head_kernel_flops, product_flops
from train.plan.hlo_traffic import moved_bytes


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
    uncounted = set()
    collectives: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for run in runs(hlo):
        instruction, computation = run.instruction, run.computation
        if instruction.opcode in ("dot", "convolution"):
            of_product = product_flops(computation, instruction)
            flops, once = flops + run.times * of_product, once + of_product
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
        "head_kernels": sorted(set(re.findall(HEAD_KERNEL, hlo))),
        "tpu_custom_calls": hlo.count('custom_call_target="tpu_custom_call"'),
        "collectives": [
            {"kind": kind, "network": network, "count": count, "bytes": num_bytes}
            for (kind, network), (count, num_bytes) in sorted(collectives.items())
        ],
    }
