"""The tables of docs/pods.md: what training takes on pods of TPUs that are not there, by `toklab plan`.

    python benchmarks/pods.py --out plans

One compilation after the other, minutes each on one core; every plan is kept in the folder, so that a second run goes
on where the first was stopped. What has been made is printed as Markdown at the end, or alone with --only-print.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import rich.console
import rich.progress
import tyro

from tokenizer_lab.errors import UserError
from train.commands.cli import leave_out_absent_tpus
from train.plan.plan import make_plan
from train.plan.pod import Pod
from train.plan.representations import ASSUMED, Ids, compared
from train.plan.tables import plan_cells
from train.recipe import Recipe, load_recipe

PODS = (Pod("v5e:16x16"), Pod("v5p:8x8x16"), Pod("v5e:16x16", 2))
COLUMNS = ("positions", "HBM, GiB", "", "waste", "ICI, GB", "DCN, GB", "s a step", "MFU", "MB text/s")
HEADER = ("recipe", "over", "pod", "rows", *COLUMNS)


@dataclasses.dataclass(frozen=True)
class Options:
    out: pathlib.Path
    """Folder of the plans."""
    only_print: bool = False
    """Make no more plans."""


def rows(name: str, batch_rows: int) -> Recipe:
    recipe = load_recipe(name)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, batch_rows=batch_rows))


def with_mesh(recipe: Recipe, **sizes: int) -> Recipe:
    return dataclasses.replace(recipe, mesh=dataclasses.replace(recipe.mesh, **sizes))


def cases() -> dict[str, list[tuple[Recipe, Ids, Pod]]]:
    """What is compiled, by table."""
    over = {
        (name, ids.name): (recipe, ids)
        for name in ("decoder_1b", "decoder_8b")
        for recipe, ids in compared(load_recipe(name), ASSUMED["subword"])
    }
    return {
        "subword": [(*over[name, "subword"], pod) for name in ("decoder_8b", "decoder_1b") for pod in PODS],
        "other representations": [
            (*over[name, kind], pod)
            for name in ("decoder_8b", "decoder_1b")
            for kind in ("byte", "equal_info")
            for pod in PODS
        ],
        "weak scaling": [
            (rows("decoder_1b", 4 * chips), ASSUMED["subword"], Pod(f"v5p:{shape}"))
            for chips, shape in ((16, "2x2x4"), (64, "4x4x4"), (256, "4x8x8"), (1024, "8x8x16"))
        ],
        "other recipes": [  # narrow ones, which split over fewer chips than there are
            (
                with_mesh(rows(name, 1024), replica=max(pod.num_slices, pod.num_chips // most_shards)),
                ASSUMED["subword"],
                pod,
            )
            for name, most_shards in (("electra_small", 64), ("decoder_125m", 256), ("decoder_350m", 1024))
            for pod in PODS[1:]
        ],
        "replicas within a slice": [
            (with_mesh(load_recipe("decoder_8b"), replica=replicas), ASSUMED["subword"], PODS[1])
            for replicas in (4, 16)
        ],
    }


def file_of(folder: pathlib.Path, recipe: Recipe, ids: Ids, pod: Pod) -> pathlib.Path:
    name = (
        f"{recipe.name}-{ids.name}-{pod}-{recipe.data.batch_rows}x{recipe.data.sequence_length}-{recipe.mesh.replica}"
    )
    return folder / f"{name.replace(' ', '').replace(':', '_')}.json"


def make(options: Options, every: dict[str, list[tuple[Recipe, Ids, Pod]]], console: rich.console.Console) -> None:
    todo = [case for table in every.values() for case in table if not file_of(options.out, *case).exists()]
    for recipe, ids, pod in rich.progress.track(todo, "plans", console=console):
        try:
            plan = make_plan(recipe, pod, ids)
        except UserError as error:
            console.print(f"{recipe.name} {ids.name} {pod}: {error}", soft_wrap=True)
            continue
        file_of(options.out, recipe, ids, pod).write_text(json.dumps(plan, indent=2) + "\n")


def markdown(folder: pathlib.Path, table: list[tuple[Recipe, Ids, Pod]]) -> Iterator[str]:
    yield "| " + " | ".join(HEADER) + " |"
    yield "|" + "|".join(["---"] * len(HEADER)) + "|"
    for case in table:
        recipe, ids, pod = case
        if (file := file_of(folder, *case)).exists():
            plan: dict[str, Any] = json.loads(file.read_text())
            yield (
                f"| {recipe.name} | {ids.name} | {pod} | {plan['batch_rows']:,} | "
                + " | ".join(plan_cells(plan)[column] for column in COLUMNS)
                + " |"
            )


def main() -> None:
    options, console = tyro.cli(Options), rich.console.Console()
    options.out.mkdir(parents=True, exist_ok=True)
    every = cases()
    if not options.only_print:
        make(options, every, console)
    for name, table in every.items():
        print(f"\n{name}\n")
        print("\n".join(markdown(options.out, table)))


if __name__ == "__main__":
    leave_out_absent_tpus()
    main()
