"""What `toklab plan` prints."""

from collections.abc import Iterator
from typing import Any

from train.console import NamedRows
from train.plan.plan import ASSUMPTIONS, gib
from train.plan.search import Searched

_KINDS = (
    ("parameters", "parameters"),
    ("optimizer", "optimizer"),
    ("gradients", "gradients"),
    ("activations", "activations, temporaries"),
    ("batch_and_padding", "batch, padding"),
    ("program", "program"),
)


def plan_lines(plan: dict[str, Any]) -> Iterator[str | NamedRows]:
    """A plan, a section after the other."""
    ids, mesh = plan["representation"], " ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    yield (
        f"[bold]{plan['recipe']} on {plan['pod']}[/bold]: {plan['num_chips']:,} chips, mesh {mesh}, remat"
        f" {plan['remat']}"
    )
    yield (
        f"{ids['name']}: {ids['vocab_size']:,} ids of {ids['bytes_per_id']:g} bytes ({ids['source']});"
        f" {plan['num_parameters']:,} parameters; a step of {plan['batch_rows']:,} x {plan['sequence_length']:,}"
        f" positions, {plan['text_bytes_per_step'] / 1e6:,.1f} MB of text"
    )
    for warning in plan["warnings"]:
        yield f"[yellow]{warning}[/yellow]"
    yield memory_table(plan["memory"])
    yield verdict(plan)
    if "flops" in plan:
        yield flops_line(plan["flops"])
        yield collectives_table(plan["collectives"])
        yield from estimate_lines(plan["estimate"])
    yield f"compiled in {plan['compile_seconds']:.0f} s"


def verdict(plan: dict[str, Any]) -> str:
    memory = plan["memory"]
    if memory["fits"]:
        return f"[green]fits[/green], {gib(memory['spare'])} to spare"
    return f"[red]does not fit[/red], {gib(-memory['spare'])} too much; would fit with " + "; or ".join(
        plan["remedies"]
    )


def memory_table(memory: dict[str, Any]) -> NamedRows:
    table = NamedRows("HBM of a chip", "GiB")
    for kind, name in _KINDS:
        table.add_row(name, f"{memory[kind] / 2**30:.2f}")
    table.add_row("in all", f"{memory['total'] / 2**30:.2f}")
    table.add_section()
    table.add_row("that a program may have", f"{memory['available'] / 2**30:.2f}")
    return table


def flops_line(flops: dict[str, Any]) -> str:
    uncounted = f"; not known of kernels {', '.join(flops['uncounted_kernels'])}" if flops["uncounted_kernels"] else ""
    return (
        f"FLOPs of a chip's step: {flops['program']:.3g} in the program, {flops['model']:.3g} of the model:"
        f" {flops['waste']:.1%} more, of which {flops['vocab_padding']:.1%} pad the vocabulary and"
        f" {flops['computed_again']:.1%} are computed again (remat) or twice{uncounted}"
    )


def collectives_table(collectives: list[dict[str, Any]]) -> NamedRows:
    table = NamedRows("collectives", "network", "a step", "MB sent by a chip")
    for one in collectives:
        table.add_row(one["kind"], one["network"].upper(), f"{one['count']:,}", f"{one['bytes'] / 1e6:,.1f}")
    if not collectives:
        table.add_row("none", "", "", "")
    return table


def estimate_lines(estimate: dict[str, float]) -> Iterator[str]:
    parts = ", ".join(
        f"{name} {estimate[f'{name.lower()}_seconds']:.3g} s" for name in ("compute", "HBM", "ICI", "DCN")
    )
    yield (
        f"estimate: {estimate['hidden_step_seconds']:.3g} to {estimate['exposed_step_seconds']:.3g} s a step ({parts}),"
        f" MFU {estimate['exposed_mfu']:.0%} to {estimate['hidden_mfu']:.0%}"
    )
    yield from (f"  - {assumption}" for assumption in ASSUMPTIONS)


def arithmetic_table(rows: list[dict[str, Any]]) -> NamedRows:
    """What each representation would change, by arithmetic: positions of a row, and the softmax's share of the
    FLOPs."""
    table = NamedRows("same text", "ids", "bytes/id", "positions", "params", "softmax", "FLOPs/byte")
    for row in rows:
        table.add_row(
            row["representation"],
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_id']:g}",
            f"{row['sequence_length']:,}",
            f"{row['num_parameters'] / 1e6:,.0f} M",
            f"{row['softmax_share']:.1%}",
            f"{row['flops_per_byte']:.3g}",
        )
    return table


def compared_table(plans: list[dict[str, Any]]) -> NamedRows:
    """The compiled steps of each representation."""
    return _table_of_plans(
        "compiled over",
        [(plan["representation"]["name"], plan) for plan in plans],
        "positions",
        "HBM, GiB",
        "",
        "s a step",
        "MB text/s",
    )


def search_table(found: Searched) -> NamedRows:
    """What fits, the fastest first."""

    def name(plan: dict[str, Any]) -> str:
        mesh = plan["mesh"]
        rows = plan["batch_rows"] // (mesh["replica"] * mesh["fsdp"] * plan["num_microbatches"])
        return f"{' '.join(f'{axis} {size}' for axis, size in mesh.items() if size > 1)}, {plan['remat']}, {rows}"

    table = _table_of_plans(
        "mesh, remat, rows at a time",
        [(name(plan), plan) for plan in found.plans],
        "HBM, GiB",
        "waste",
        "s a step",
        "MFU",
    )
    table.caption = (
        f"{len(found.plans)} fit of {found.num_compiled} compiled; {found.num_impossible} could not by arithmetic"
    )
    table.caption += "".join(f"\n{failure}" for failure in found.failures)
    return table


def _table_of_plans(title: str, plans: list[tuple[str, dict[str, Any]]], *columns: str) -> NamedRows:
    """Named plans with some of the cells of `plan_cells`."""
    table = NamedRows(title, *columns)
    for name, plan in plans:
        cells = plan_cells(plan)
        table.add_row(name, *(cells[column] for column in columns))
    return table


def plan_cells(plan: dict[str, Any]) -> dict[str, str]:
    """A plan as a row, by column; the verdict's has no name."""
    memory = plan["memory"]
    cells = {
        "positions": f"{plan['sequence_length']:,}",
        "HBM, GiB": f"{memory['total'] / 2**30:.2f}",
        "": "fits" if memory["fits"] else f"{gib(-memory['spare'])} too much",
    }
    if "flops" not in plan:
        return cells | dict.fromkeys(("waste", "ICI, GB", "DCN, GB", "s a step", "MFU", "MB text/s"), "-")
    sent = {
        network: sum(one["bytes"] for one in plan["collectives"] if one["network"] == network)
        for network in ("ici", "dcn")
    }
    estimate = plan["estimate"]
    return cells | {
        "waste": f"{plan['flops']['waste']:.1%}",
        "ICI, GB": f"{sent['ici'] / 1e9:.2f}",
        "DCN, GB": f"{sent['dcn'] / 1e9:.2f}",
        "s a step": f"{estimate['hidden_step_seconds']:.3g} to {estimate['exposed_step_seconds']:.3g}",
        "MFU": f"{estimate['exposed_mfu']:.0%} to {estimate['hidden_mfu']:.0%}",
        "MB text/s": " to ".join(_megabytes(estimate[f"{how}_text_bytes_per_second"]) for how in ("exposed", "hidden")),
    }


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f}" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.3g}"
