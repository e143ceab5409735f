"""What the numbers of an experiment say, and what they do not, in plain words."""

from collections.abc import Sequence

from train.compare.results import FEW_DOCUMENTS, Decision, Part, Ranking
from train.evaluate.intervals import Interval
from train.report.page import percent, si

_NEAR = 10  # times the most FLOPs of a run, up to where a crossing is spoken of
_BUDGETS = {"flops": "FLOPs, everything included", "bytes": "bytes of text", "seconds": "seconds of training"}


def supported(decision: Decision) -> list[str]:
    """What the numbers say, in plain words."""
    largest = decision.largest
    if largest is None or len(largest.cells) < 2:
        return ["Fewer than two arms have bits per byte on the same text: there is nothing to compare."]
    return [
        *(_leader(decision, ranking) for ranking in decision.rankings),
        *_on_compute(decision),
        *_on_parts(decision.parts, largest),
        *_on_costs(largest),
        *_on_noise(largest),
    ]


def unsupported(decision: Decision) -> list[str]:
    """What they do not say."""
    seeds, sizes = decision.design.num_seeds, decision.design.sizes
    lines = []
    for ranking in decision.rankings:
        if open_ := [arm for arm, difference in ranking.behind.items() if not difference.clear]:
            lines.append(
                f"Size {ranking.size}: whether {ranking.cells[0].arm} is better than {_listed(open_)} is not"
                f" settled by {'one seed' if seeds == 1 else f'{seeds} seeds'} and this text."
            )
    most = max((cell.average("flops") or 0 for ranking in decision.rankings for cell in ranking.cells), default=0)
    lines += [
        f"{_overtaking(decision, arms)} at about {si(point.flops, 'FLOPs')}, which is beyond what was measured."
        for arms, point in decision.crossings.items()
        if point.flops and not point.measured and most < point.flops < _NEAR * most
    ]
    lines.append(
        f"Nothing here is of more than {si(most, 'FLOPs')} a run. "
        + (
            "An order of small models need not be that of large ones."
            if len(sizes) > 1
            else "One size says nothing of how the order changes with compute."
        )
    )
    lines.append("All arms have the recipes' learning rates and shapes; an arm may gain from its own.")
    if encoders := sorted({cell.arm for cell in decision.encoders}):
        lines.append(
            f"Encoders have no bits per byte and are not ranked ({_listed(encoders)}); `toklab finetune` and"
            " `toklab blimp` put them and decoders on one axis."
        )
    domains = [part.name for part in decision.parts if part.kind == "domain"]
    lines.append(
        f"The text is {_listed(domains)}; of others it says nothing." if domains else "Of other texts it says nothing."
    )
    return lines + decision.left_out


def _leader(decision: Decision, ranking: Ranking) -> str:
    best, behind = ranking.cells[0], ranking.behind
    clear = [f"{arm} by {difference.bits:.3f}" for arm, difference in behind.items() if difference.clear]
    found = (
        f"Size {ranking.size}, equal {_BUDGETS[decision.design.budget]}: {best.arm} has the lowest bits per byte of"
        f" {len(ranking.cells)} arms, {best.mean:.3f}{_range(best.interval)} over {len(best.runs)}"
        f" seed{'s' if len(best.runs) > 1 else ''}."
    )
    if decision.design.num_seeds == 1:
        return f"{found} With one seed, no difference can be called clear."
    return found + (f" It is clearly ahead of {_listed(clear)}." if clear else " It is clearly ahead of none.")


def _on_compute(decision: Decision) -> list[str]:
    if not any(decision.laws.values()):
        return []
    leaders = [ranking.cells[0].arm for ranking in decision.rankings]
    lines = [
        (
            f"The same arm leads at every size, {leaders[0]}."
            if len(set(leaders)) == 1
            else (
                "The leader changes with compute:"
                f" {', '.join(f'{leader} at {ranking.size}' for leader, ranking in zip(leaders, decision.rankings))}."
            )
        )
    ]
    for (one, other), point in decision.crossings.items():
        if point.measured:
            ends = [si(end, "FLOPs") for end in point.interval if end is not None]
            lines.append(
                f"{_overtaking(decision, (one, other))} at about {si(point.flops, 'FLOPs')}"
                + (f" (95 % interval {' to '.join(ends)})." if ends else ", where noise alone could have put it.")
            )
    return lines


def _overtaking(decision: Decision, arms: tuple[str, str]) -> str:
    slopes = {arm: law.slope for arm, law in decision.laws.items() if law is not None}
    faster, slower = sorted(arms, key=slopes.__getitem__)
    return f"By lines through their runs, {faster} overtakes {slower}"


def _on_parts(all_parts: Sequence[Part], largest: Ranking) -> list[str]:
    lines = []
    for kind, whose in (("domain", "domains"), ("script", "scripts")):
        parts = [part for part in all_parts if part.kind == kind and part.large]
        best = largest.cells[0].arm
        others = [f"{part.best} in {part.name}" for part in parts if part.best != best]
        if len(parts) > 1:
            lines.append(
                f"At size {largest.size}, {best} is best in {len(parts) - len(others)} of {len(parts)} {whose}"
                f" with {FEW_DOCUMENTS} documents or more" + (f"; {_listed(others)}." if others else ".")
            )
    return lines


def _on_costs(largest: Ranking) -> list[str]:
    lines = []
    for key, what, unit in (
        ("generate_flops_per_byte", "generate a byte of text", "FLOPs"),
        ("kv_cache_bytes_per_byte", "keep keys and values of a byte of text", "B"),
    ):
        costs = {cell.arm: cost for cell in largest.cells if (cost := cell.average(key))}
        if len(costs) > 1:
            least, most = min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)
            lines.append(
                f"To {what}, {least} needs least, {si(costs[least], unit)}, and {most} {costs[most] / costs[least]:.1f}"
                " times that."
            )
    return lines


def _on_noise(largest: Ranking) -> list[str]:
    cells = [cell for cell in largest.cells if cell.noise]
    rates = sorted({rate for cell in cells for rate in cell.noise})
    if len(cells) < 2 or len(rates) < 2:
        return []
    rise: dict[str, float] = {}
    for cell in cells:
        clean, noisy = (cell.noise[rate]["bits_per_byte"] for rate in (rates[0], rates[-1]))
        assert clean is not None and noisy is not None, "only encoders have no bits per byte"
        rise[cell.arm] = noisy - clean
    least, most = min(rise, key=rise.__getitem__), max(rise, key=rise.__getitem__)
    return [
        f"With {percent(rates[-1])} of the characters wrong, bits per byte rise least for {least}, by"
        f" {rise[least]:.3f}, and most for {most}, by {rise[most]:.3f}."
    ]


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _listed(names: Sequence[str]) -> str:
    """`["a", "b", "c"] -> "a, b and c"`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
