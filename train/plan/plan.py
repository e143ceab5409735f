"""`toklab plan`: what a recipe's training step takes on TPUs that are not there.

The step is the one that `toklab train` runs, compiled by libtpu for the named chips (`train/plan/tpu_compile.py`);
memory is the compiled program's, FLOPs and collectives are counted in its text (`train/plan/hlo_cost.py`), and time is
a roofline over the chip's peaks (`train/hosts/hardware.py`). Nothing is read but the recipe: of its representation the
number of ids and their mean bytes are enough.
"""

import dataclasses
import math
from typing import Any

from train.hosts.hardware import Chip
from train.plan.compiler_process import compile_ahead
from train.plan.pod import Pod, on_pod
from train.plan.representations import Ids
from train.recipe import Recipe
from train.setup import count_parameters, model_flops_per_token

ASSUMPTIONS = (
    (
        "time is that of the slowest of matrix units, HBM, ICI and DCN if they all work at once (hidden), or of all of"
        " them one after the other (exposed)"
    ),
    "each at its peak of train/hosts/hardware.py; every link of a chip carries what it sends, over wrapped rings",
    "host, input pipeline, checkpoints and evaluation take no time",
)


def make_plan(recipe: Recipe, pod: Pod, ids: Ids, hlo_file: str | None = None) -> dict[str, Any]:
    """Compiles a recipe's step for a pod and says what it takes; JSON values, per chip unless named otherwise.

    Raises:
      UserError: the recipe does not suit the pod; libtpu is not installed, or died.
    """
    recipe = on_pod(recipe, pod)
    compiled = compile_ahead(recipe, ids.vocab_size, pod, hlo_file)
    return summarize_plan(recipe, pod, ids, compiled)


def summarize_plan(recipe: Recipe, pod: Pod, ids: Ids, compiled: dict[str, Any]) -> dict[str, Any]:
    """What a compiled step says about training a recipe on a pod."""
    data = recipe.data
    positions = data.batch_rows * data.sequence_length
    plan = {
        "recipe": recipe.name,
        "pod": str(pod),
        "num_chips": pod.num_chips,
        "mesh": compiled["mesh"],
        "remat": recipe.model.remat,
        "batch_rows": data.batch_rows,
        "sequence_length": data.sequence_length,
        "num_microbatches": data.num_microbatches,
        "representation": dataclasses.asdict(ids),
        "num_parameters": count_parameters(recipe, ids.vocab_size)["total"],
        "positions_per_step": positions,
        "text_bytes_per_step": positions * ids.bytes_per_id,
        "memory": memory(compiled, pod.chip),
        "compile_seconds": round(compiled["compile_seconds"], 1),
        "warnings": compiled["warnings"],
    }
    if "program" in compiled:
        flops = count_flops(recipe, ids.vocab_size, pod.num_devices, compiled["program"])
        plan |= {
            "flops": flops,
            "collectives": compiled["program"]["collectives"],
            "estimate": estimate(flops, compiled["program"], pod.chip, plan["text_bytes_per_step"]),
        }
    if not plan["memory"]["fits"]:
        plan["remedies"] = remedies(recipe, plan)
    return plan


def memory(compiled: dict[str, Any], chip: Chip) -> dict[str, Any]:
    """Bytes by kind. Gradients are float32 and laid out as the parameters are; they and the activations are the
    program's temporaries."""
    parts, used = compiled["bytes"], compiled.get("memory")
    kinds = {"parameters": parts["parameters"], "optimizer": parts["optimizer"], "gradients": parts["parameters"]}
    if used:
        available = chip.hbm_bytes
        total = used["argument"] + used["output"] - used["alias"] + used["temp"] + used["generated_code"]
        rest = {
            "batch_and_padding": (
                used["argument"] + used["output"] - used["alias"] - kinds["parameters"] - kinds["optimizer"]
            ),
            "program": used["generated_code"],
        }
    else:
        complaint, arguments = compiled["out_of_memory"], parts["state"] + parts["batch"]
        total, available = (
            complaint["needed"] + (arguments if complaint["temporaries_only"] else 0),
            complaint["available"],
        )
        rest = {"batch_and_padding": arguments - kinds["parameters"] - kinds["optimizer"], "program": 0}
    kinds["activations"] = max(0, total - sum(kinds.values()) - sum(rest.values()))
    return {
        **kinds,
        **rest,
        "total": total,
        "available": available,
        "spare": available - total,
        "fits": used is not None and total <= available,
    }


def count_flops(recipe: Recipe, vocab_size: int, num_devices: int, program: dict[str, Any]) -> dict[str, Any]:
    """FLOPs of a step on a device: the model's own and the program's, and what the program has more of."""
    positions = recipe.data.batch_rows * recipe.data.sequence_length / num_devices
    of_model = model_flops_per_token(recipe, vocab_size)
    padded = recipe.model.padded_vocab_size(vocab_size)
    padding = of_model.get("softmax", 0.0) * (padded / vocab_size - 1) * positions
    model = of_model["total"] * positions
    more = program["flops"] - model
    return {
        "model": model,
        "program": program["flops"],
        "waste": more / model,
        "vocab_padding": padding / model,
        "computed_again": (more - padding) / model,
        "uncounted_kernels": program["uncounted_kernels"],
    }


def estimate(
    flops: dict[str, Any], program: dict[str, Any], chip: Chip, text_bytes_per_step: float
) -> dict[str, float]:
    """Seconds of a step and MFU by a roofline (`ASSUMPTIONS`)."""
    sent = {
        network: sum(c["bytes"] for c in program["collectives"] if c["network"] == network)
        for network in ("ici", "dcn")
    }
    seconds = {
        "compute": flops["program"] / chip.peak_flops_per_second,
        "hbm": program["hbm_bytes"] / chip.hbm_bytes_per_second,
        "ici": sent["ici"] / chip.ici_bytes_per_second,
        "dcn": sent["dcn"] / chip.dcn_bytes_per_second,
    }
    hidden, exposed = max(seconds.values()), sum(seconds.values())
    mfu = lambda step: flops["model"] / (chip.peak_flops_per_second * step)
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "hidden_step_seconds": hidden,
        "exposed_step_seconds": exposed,
        "hidden_mfu": mfu(hidden),
        "exposed_mfu": mfu(exposed),
        "hidden_text_bytes_per_second": text_bytes_per_step / hidden,
        "exposed_text_bytes_per_second": text_bytes_per_step / exposed,
    }


def remedies(recipe: Recipe, plan: dict[str, Any]) -> list[str]:
    """What would make a plan fit, by arithmetic: options of the same command, the least intrusive first. `--search`
    tries them."""
    used, mesh, data = plan["memory"], plan["mesh"], recipe.data
    state = used["total"] - used["activations"]
    if state > used["available"]:
        shards = math.ceil(mesh["fsdp"] * mesh["tensor"] * state / used["available"])
        return [
            f"parameters, optimizer and gradients alone take {gib(state)}: more fsdp or tensor shards, at least"
            f" {shards} chips a replica"
        ]
    share = 0.9 * (used["available"] - state) / used["activations"]  # of the positions at a time, with a tenth to spare
    found = [] if recipe.model.remat == "full" else ["--model.remat full"]
    rows, now = data.batch_rows // (mesh["replica"] * mesh["fsdp"]), data.num_microbatches
    if parts := next((parts for parts in range(now, rows + 1) if rows % parts == 0 and now / parts <= share), None):
        return [
            *found,
            f"--data.num-microbatches {parts} (rows of a chip at a time: {rows // parts}, now {rows // now})",
        ]
    shards = 2 ** math.ceil(math.log2(now / (rows * share)))
    return [
        *found,
        (
            f"--mesh.sequence {mesh['sequence'] * shards} --data.num-microbatches {rows * shards} (one row at a time,"
            f" over {shards} chips)"
        ),
    ]


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
