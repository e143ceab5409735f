"""`toklab plan`: what a recipe's training step takes on TPUs that are not there.

The step is the one that `toklab train` runs, compiled by libtpu for the named chips (`train/plan/tpu_compile.py`);
memory is the compiled program's, FLOPs and collectives are counted in its text (`train/plan/hlo.py`), and time is a
roofline over the chip's peaks (`train/hosts/hardware.py`). Nothing is read but the recipe: of its representation the
number of ids and their mean bytes are enough.
"""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import read_manifest
from train.hosts.hardware import CHIPS, Chip
from train.nearest import nearest
from train.recipe import Recipe, to_json
from train.setup import model_flops_per_token

ASSUMPTIONS = (
    (
        "time is that of the slowest of matrix units, HBM, ICI and DCN if they all work at once (hidden), or of all of"
        " them one after the other (exposed)"
    ),
    "each at its peak of train/hosts/hardware.py; every link of a chip carries what it sends, over wrapped rings",
    "host, input pipeline, checkpoints and evaluation take no time",
)

_LENGTH_MULTIPLE = 256  # of positions, for the attention kernel


@dataclasses.dataclass(frozen=True)
class Ids:
    """What a plan has to know of a representation."""

    name: str
    vocab_size: int
    bytes_per_id: float
    """Mean source bytes of an id."""
    source: str
    """Where the numbers are from."""


# Representations that need not be fitted yet; what they hold per id depends on the text.
ASSUMED = {
    ids.name: ids
    for ids in (
        Ids("byte", 257, 1.0, "256 bytes and the end of a document"),
        Ids(
            "subword",
            65_536,
            4.5,
            "assumed for English; a unigram of 32k holds 4.28 (Lester et al. 2024, arXiv 2404.03626)",
        ),
        Ids("subword_200k", 200_000, 4.9, "assumed for English"),
        Ids("equal_info", 65_537, 5.31, "windows of 16 bits (Lester et al. 2024, arXiv 2404.03626)"),
    )
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """Slices of TPU chips: "v5p:8x8x16" is one of 1,024."""

    topology: str
    num_slices: int = 1

    def __post_init__(self):
        generation, _, sizes = self.topology.partition(":")
        known = [f"{name}:{common}" for name, chip in CHIPS.items() for common in chip.topologies]
        rank = CHIPS[generation].topologies[0].count("x") + 1 if generation in CHIPS else 0
        if not re.fullmatch("x".join([r"[1-9]\d*"] * rank), sizes) or not rank:
            raise UserError(
                f"no topology {self.topology!r}{nearest(self.topology, known)}; there are {', '.join(known)}"
            )
        if self.num_slices < 1:
            raise UserError(f"--slices is {self.num_slices}; it must be at least 1")

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


def find_ids(recipe: Recipe, vocab_size: int | None = None, bytes_per_id: float | None = None) -> Ids:
    """What a recipe's representation is: an artifact's folder, or the name of an assumed one; numbers that are given
    come first.

    Raises:
      UserError: it is neither, and the numbers are not given.
    """
    name, ids = recipe.representation, None
    if (pathlib.Path(name) / "manifest.json").exists():
        manifest = read_manifest(name)
        bytes_known, like = manifest["statistics"].get("bytes_per_id"), ASSUMED.get(manifest["kind"])
        source = "its artifact" if bytes_known else f"its artifact; bytes: {like.source if like else 'not known'}"
        ids = Ids(name, manifest["vocab_size"], bytes_known or (like.bytes_per_id if like else 0.0), source)
    ids = ids or ASSUMED.get(name)
    if ids is None and (vocab_size is None or bytes_per_id is None):
        raise UserError(
            f"no artifact {name!r} is here; plan with --representation and one of {', '.join(ASSUMED)}, or with"
            " --vocab-size and --bytes-per-id"
        )
    given = {
        field: value
        for field, value in (("vocab_size", vocab_size), ("bytes_per_id", bytes_per_id))
        if value is not None
    }
    ids = dataclasses.replace(ids or Ids(name, 0, 0.0, ""), **given, **({"source": "given"} if given else {}))
    if ids.vocab_size < 2 or not ids.bytes_per_id > 0:
        raise UserError(
            f"{ids.vocab_size:,} ids of {ids.bytes_per_id:g} bytes: give --vocab-size of at least 2 and --bytes-per-id"
            " above 0"
        )
    return ids


def on_pod(recipe: Recipe, pod: Pod) -> Recipe:
    """The recipe with a replica on each slice, if its mesh has not said otherwise. Raises UserError where mesh or batch
    do not fit the chips."""
    if recipe.mesh.replica == 1 and pod.num_slices > 1:
        recipe = dataclasses.replace(recipe, mesh=dataclasses.replace(recipe.mesh, replica=pod.num_slices))
    recipe.check_devices(pod.num_devices, pod.num_slices)
    return recipe


def make_plan(recipe: Recipe, pod: Pod, ids: Ids, hlo_file: str | None = None) -> dict[str, Any]:
    """Compiles a recipe's step for a pod and says what it takes; JSON values, per chip unless named otherwise.

    Raises:
      UserError: the recipe does not suit the pod; libtpu is not installed, or died.
    """
    recipe = on_pod(recipe, pod)
    compiled = compile_ahead(recipe, ids.vocab_size, pod, hlo_file)
    return summarize_plan(recipe, pod, ids, compiled)


def compile_ahead(recipe: Recipe, vocab_size: int, pod: Pod, hlo_file: str | None = None) -> dict[str, Any]:
    """The answer of `train.plan.tpu_compile.compile_for_tpu`, from a process of its own. Raises UserError."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "libtpu, which compiles for TPUs, is not installed; pip install 'tokenizer-lab[tpu]' (needs no TPU)"
        )
    request = {
        "recipe": to_json(recipe),
        "vocab_size": vocab_size,
        "topology": pod.topology,
        "num_slices": pod.num_slices,
        "hlo_file": hlo_file,
    }
    root = str(pathlib.Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "train.plan.tpu_compile"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
    )
    if done.returncode:
        raise UserError(cause_of_death(done.returncode, done.stderr, f"{recipe.name} for {pod}"))
    answer = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def cause_of_death(returncode: int, stderr: str, what: str) -> str:
    """One line on why the compiler's process gave no answer."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} |F0000", line)]
    told = (fatal or lines or ["it said nothing"])[-1][:300]
    died = f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else "failed"
    return (
        f"the TPU compiler {died} on {what}: {told}; try another mesh, sequence length or --model.remat, or another"
        " version of libtpu"
    )


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
        "num_parameters": recipe.objective.count_parameters(recipe.model, ids.vocab_size)["total"],
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


def compared(recipe: Recipe, ids: Ids) -> Iterator[tuple[Recipe, Ids]]:
    """The recipe over each assumed representation, with rows that hold about as much text as its own."""
    for other in ASSUMED.values():
        multiple = _LENGTH_MULTIPLE * recipe.mesh.sequence
        length = (
            max(1, round(recipe.data.sequence_length * ids.bytes_per_id / other.bytes_per_id / multiple)) * multiple
        )
        yield (
            dataclasses.replace(
                recipe, representation=other.name, data=dataclasses.replace(recipe.data, sequence_length=length)
            ),
            other,
        )


def compare_by_arithmetic(recipe: Recipe, ids: Ids) -> list[dict[str, Any]]:
    """What a representation changes before anything is compiled."""
    rows = []
    for other_recipe, other in compared(recipe, ids):
        flops = model_flops_per_token(other_recipe, other.vocab_size)
        parameters = recipe.objective.count_parameters(recipe.model, other.vocab_size)["total"]
        rows.append(
            {
                "representation": other.name,
                "vocab_size": other.vocab_size,
                "bytes_per_id": other.bytes_per_id,
                "num_parameters": parameters,
                "sequence_length": other_recipe.data.sequence_length,
                "softmax_share": flops.get("softmax", 0.0) / flops["total"],
                "flops_per_byte": flops["total"] / other.bytes_per_id,
            }
        )
    return rows


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
    every = list(candidates(recipe, pod))
    possible = [candidate for candidate in every if least_bytes(candidate, ids.vocab_size, pod) <= pod.chip.hbm_bytes]
    if not possible:
        raise UserError(
            f"none of {len(every)} ways to lay {recipe.name} out over {pod} can fit: parameters, optimizer, gradients"
            f" and the layers' inputs take more than the {gib(pod.chip.hbm_bytes)} of a chip; use more chips, shorter"
            " rows or a smaller model"
        )
    plans, failures, too_large, num_compiled = [], [], [], 0
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


_REMAT = ("full", "dots", "none")  # from the least memory to the most


def candidates(recipe: Recipe, pod: Pod) -> Iterator[Recipe]:
    """Layouts whose sizes divide what they split, those of a mesh from the least memory to the most."""
    model, within = recipe.model, pod.num_devices // pod.num_slices
    for tensor in (1, 2, 4, 8):
        if within % tensor or any(size % tensor for size in (model.num_heads, model.num_kv_heads, model.mlp_dim)):
            continue
        shards = pod.num_devices // tensor
        if recipe.data.batch_rows % shards or model.embed_dim % (within // tensor):
            continue
        mesh = dataclasses.replace(
            recipe.mesh, replica=pod.num_slices, fsdp=within // tensor, tensor=tensor, sequence=1
        )
        for parts, remat in itertools.product((8, 4, 2, 1), _REMAT):
            if recipe.data.batch_rows // shards % parts == 0:
                yield dataclasses.replace(
                    recipe,
                    mesh=mesh,
                    model=dataclasses.replace(model, remat=remat),
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
    model, mesh, data = recipe.model, recipe.mesh, recipe.data
    moments = 2 if recipe.optimizer.kind == "adamw" else 1
    state = (
        4 * (2 + moments) * recipe.objective.count_parameters(model, vocab_size)["total"] / (mesh.fsdp * mesh.tensor)
    )
    positions = (
        data.batch_rows * data.sequence_length / (mesh.replica * mesh.fsdp * mesh.sequence * data.num_microbatches)
    )
    width = model.embed_dim + (0 if model.remat == "full" else 2 * model.mlp_dim / mesh.tensor)
    return state + model.num_layers * positions * width * (2 if model.compute_dtype == "bfloat16" else 4)


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
