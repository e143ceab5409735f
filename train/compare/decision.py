"""What the runs of an experiment say: arms with their seeds together, differences that hold, laws, costs, and a summary
in plain words.

A difference between two arms is called clear if zero is outside of two 95 % intervals: over documents, both arms on the
same ones drawn again with replacement and each with its mean over seeds; and over seeds, by Student's t of what runs of
the same seed differ by. The first says whether other text would say the same, the second whether other runs would.
Neither says anything of other sizes, texts or settings.
"""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.evaluate.intervals import (
    Crossing,
    Interval,
    PowerLaw,
    crossing,
    fit_power_law,
    mean_interval,
    middle_95,
    resampled_bits_per_byte,
)
from train.report.page import percent, si
from train.report.runs import Arm as RunRead

COSTS = (
    "train_flops_per_byte",
    "generator_flops_per_byte",
    "encode_flops_per_byte",
    "generate_flops_per_byte",
    "kv_cache_bytes_per_byte",
)
_NEAR = 10  # times the most FLOPs of a run, up to where a crossing is spoken of
_FEW_DOCUMENTS = 10  # below which a bootstrap over documents says little
_BUDGETS = {"flops": "FLOPs, everything included", "bytes": "bytes of text", "seconds": "seconds of training"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """What an experiment compares.

    Attributes:
      name: the experiment's.
      budget: what is the same in all arms of a size: flops, bytes or seconds.
      arms, sizes: in the experiment's order, smallest size first.
      num_seeds: of each arm at each size.
      places: arm, size and seed of each run, in the order of the runs.
    """

    name: str
    budget: str
    arms: tuple[str, ...]
    sizes: tuple[str, ...]
    num_seeds: int
    places: tuple[tuple[str, str, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of an arm at a size, by seed."""

    arm: str
    size: str
    runs: "dict[int, RunRead]"

    @property
    def is_encoder(self) -> bool:
        return all(run.is_encoder for run in self.runs.values())

    @functools.cached_property
    def bits_per_byte(self) -> dict[int, float]:
        return {seed: run.evaluation["bits_per_byte"] for seed, run in self.runs.items()}

    @property
    def mean(self) -> float:
        return statistics.fmean(self.bits_per_byte.values())

    @property
    def interval(self) -> Interval | None:
        """95 %, over seeds."""
        return mean_interval(list(self.bits_per_byte.values()))

    @functools.cached_property
    def nats_n(self) -> np.ndarray:
        """f64[N], what each held-out document costs, the mean over seeds."""
        return np.mean([run.documents_scored["nats"] for run in self.runs.values()], axis=0)

    def values(self, key: str) -> list[float | None]:
        """What each seed has of a number in the runs' rows or costs."""
        return [(run.row | run.costs).get(key) for run in self.runs.values()]

    def average(self, key: str) -> float | None:
        return _mean(self.values(key))

    @functools.cached_property
    def noise(self) -> dict[float, dict[str, float | None]]:
        """Rate of noise -> bits per byte and the share of pairs told apart, means over seeds."""
        by_rate: dict[float, list[dict]] = {}
        for run in self.runs.values():
            for level in run.noise["levels"] if run.noise else ():
                by_rate.setdefault(level["rate"], []).append(level)
        return {
            rate: {key: _mean([level[key] for level in levels]) for key in ("bits_per_byte", "accuracy")}
            for rate, levels in by_rate.items()
            if len(levels) == len(self.runs)
        }


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more bits per byte an arm takes than another."""

    bits: float
    over_documents: Interval
    over_seeds: Interval | None
    """None for a single seed."""

    @property
    def clear(self) -> bool:
        """Whether the arm is behind for other documents and for other seeds alike."""
        return self.over_seeds is not None and min(self.over_documents[0], self.over_seeds[0]) > 0


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The arms of a size, best first, and what each is behind the best."""

    size: str
    cells: list[Cell]
    behind: dict[str, Difference]
    """Of all arms but the best."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A domain or a script of the held-out text at the largest size: bits per byte of each arm, and what arms are
    behind the best, over documents.

    A part of few documents has the numbers and no intervals, and is not spoken of in the summary.
    """

    kind: str
    name: str
    num_documents: int
    num_bytes: int
    bits_per_byte: dict[str, float]
    behind: dict[str, Interval]

    @property
    def large(self) -> bool:
        return self.num_documents >= _FEW_DOCUMENTS

    @property
    def best(self) -> str:
        return min(self.bits_per_byte, key=self.bits_per_byte.get)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Attributes:
    design: what was compared.
    rankings: of each size, smallest first; only arms that have all their seeds.
    encoders: cells that have no bits per byte.
    laws: arm -> bits per byte against FLOPs; None in an experiment of one size.
    crossings: of each two arms with laws.
    parts: domains, then scripts.
    left_out: why runs are in no table, an entry each.
    """

    design: Design
    rankings: list[Ranking]
    encoders: list[Cell]
    laws: dict[str, PowerLaw | None]
    crossings: dict[tuple[str, str], Crossing]
    parts: list[Part]
    left_out: list[str]

    @property
    def largest(self) -> Ranking | None:
        return self.rankings[-1] if self.rankings else None

    @property
    def supported(self) -> list[str]:
        """What the numbers say, in plain words."""
        if not self.largest or len(self.largest.cells) < 2:
            return ["Fewer than two arms have bits per byte on the same text: there is nothing to compare."]
        return [
            *map(self._leader, self.rankings),
            *_on_compute(self),
            *_on_parts(self),
            *_on_costs(self),
            *_on_noise(self),
        ]

    @property
    def unsupported(self) -> list[str]:
        """What they do not say."""
        seeds, sizes = self.design.num_seeds, self.design.sizes
        lines = []
        for ranking in self.rankings:
            if open_ := [arm for arm, difference in ranking.behind.items() if not difference.clear]:
                lines.append(
                    f"Size {ranking.size}: whether {ranking.cells[0].arm} is better than {_listed(open_)} is not"
                    f" settled by {'one seed' if seeds == 1 else f'{seeds} seeds'} and this text."
                )
        most = max((cell.average("flops") or 0 for ranking in self.rankings for cell in ranking.cells), default=0)
        lines += [
            f"{_overtaking(self, arms)} at about {si(point.flops, 'FLOPs')}, which is beyond what was measured."
            for arms, point in self.crossings.items()
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
        if encoders := sorted({cell.arm for cell in self.encoders}):
            lines.append(
                f"Encoders have no bits per byte and are not ranked ({_listed(encoders)}); `toklab finetune` and"
                " `toklab blimp` put them and decoders on one axis."
            )
        domains = [part.name for part in self.parts if part.kind == "domain"]
        lines.append(
            f"The text is {_listed(domains)}; of others it says nothing."
            if domains
            else "Of other texts it says nothing."
        )
        return lines + self.left_out

    def _leader(self, ranking: Ranking) -> str:
        best, behind = ranking.cells[0], ranking.behind
        clear = [f"{arm} by {difference.bits:.3f}" for arm, difference in behind.items() if difference.clear]
        found = (
            f"Size {ranking.size}, equal {_BUDGETS[self.design.budget]}: {best.arm} has the lowest bits per byte of"
            f" {len(ranking.cells)} arms, {best.mean:.3f}{_range(best.interval)} over {len(best.runs)}"
            f" seed{'s' if len(best.runs) > 1 else ''}."
        )
        if self.design.num_seeds == 1:
            return f"{found} With one seed, no difference can be called clear."
        return found + (f" It is clearly ahead of {_listed(clear)}." if clear else " It is clearly ahead of none.")


def decide(design: Design, runs: Sequence[RunRead]) -> Decision:
    """What runs say; those that cannot be compared with the others are left out, and named."""
    left_out: list[str] = []
    cells = _cells(design, runs, left_out)
    decoders, encoders = ([cell for cell in cells if cell.is_encoder is is_encoder] for is_encoder in (False, True))
    decoders = _on_one_text(decoders, left_out)
    rankings = [
        _rank(size, here) for size in design.sizes if (here := [cell for cell in decoders if cell.size == size])
    ]
    laws = _laws(decoders)
    known = [(arm, law) for arm in design.arms if (law := laws.get(arm))]
    crossings = {
        (one, other): crossing(law, other_law) for (one, law), (other, other_law) in itertools.combinations(known, 2)
    }
    return Decision(
        design=design,
        rankings=rankings,
        encoders=encoders,
        laws=laws,
        crossings=crossings,
        parts=_parts(rankings[-1].cells) if rankings else [],
        left_out=left_out,
    )


def _cells(design: Design, runs: Sequence[RunRead], left_out: list[str]) -> list[Cell]:
    """Arms at sizes of which all seeds have been scored, document by document."""
    found: dict[tuple[str, str], dict[int, Any]] = {(size, arm): {} for size in design.sizes for arm in design.arms}
    for (arm, size, seed), run in zip(design.places, runs, strict=True):
        if (
            run.finished
            and run.evaluation
            and run.evaluation["step"] == run.summary["steps"]
            and (run.is_encoder or run.documents_scored)
        ):
            found[size, arm][seed] = run
    for (size, arm), by_seed in found.items():
        if len(by_seed) < design.num_seeds:
            left_out.append(
                f"{arm} of size {size} is in no table yet: {len(by_seed)} of its {design.num_seeds} runs are finished"
                " and evaluated."
            )
    return [
        Cell(arm=arm, size=size, runs=dict(sorted(by_seed.items())))
        for (size, arm), by_seed in found.items()
        if len(by_seed) == design.num_seeds
    ]


def _on_one_text(cells: list[Cell], left_out: list[str]) -> list[Cell]:
    """The cells whose runs were evaluated on what most were."""
    if not cells:
        return []
    texts = [{run.held_out_text for run in cell.runs.values()} for cell in cells]
    usual = statistics.mode(text for of_cell in texts for text in of_cell)
    left_out += [
        f"{cell.arm} of size {cell.size} was evaluated on another text and is in no table."
        for cell, of_cell in zip(cells, texts)
        if of_cell != {usual}
    ]
    return [cell for cell, of_cell in zip(cells, texts) if of_cell == {usual}]


def _rank(size: str, cells: list[Cell]) -> Ranking:
    cells = sorted(cells, key=lambda cell: cell.mean)
    resampled_ra = resampled_bits_per_byte(np.stack([cell.nats_n for cell in cells]), _num_bytes(cells[0]))
    behind = {}
    for number, cell in enumerate(cells[1:], 1):
        by_seed = [
            bits - cells[0].bits_per_byte[seed]
            for seed, bits in cell.bits_per_byte.items()
            if seed in cells[0].bits_per_byte
        ]
        behind[cell.arm] = Difference(
            cell.mean - cells[0].mean, middle_95(resampled_ra[:, number] - resampled_ra[:, 0]), mean_interval(by_seed)
        )
    return Ranking(size, cells, behind)


def _num_bytes(cell: Cell) -> np.ndarray:
    return np.array(next(iter(cell.runs.values())).documents_scored["num_bytes"])


def _laws(cells: list[Cell]) -> dict[str, PowerLaw | None]:
    laws = {}
    for arm in dict.fromkeys(cell.arm for cell in cells):
        runs = [run for cell in cells if cell.arm == arm for run in cell.runs.values()]
        laws[arm] = fit_power_law([run.row["flops"] for run in runs], [run.row["bits_per_byte"] for run in runs])
    return laws


def _parts(cells: list[Cell]) -> list[Part]:
    """Domains and scripts of the held-out documents; a single one is the whole text again."""
    documents, num_bytes = next(iter(cells[0].runs.values())).documents_scored, _num_bytes(cells[0])
    nats_an, parts = np.stack([cell.nats_n for cell in cells]), []
    for kind, key in (("domain", "domains"), ("script", "scripts")):
        names = sorted(set(documents[key]))
        for name in names if len(names) > 1 else ():
            chosen = np.array([other == name for other in documents[key]])
            if not num_bytes[chosen].sum():
                continue
            bits = nats_an[:, chosen].sum(axis=1) / math.log(2) / num_bytes[chosen].sum()
            part = Part(
                kind,
                name,
                int(chosen.sum()),
                int(num_bytes[chosen].sum()),
                {cell.arm: float(b) for cell, b in zip(cells, bits)},
                {},
            )
            if part.large:
                resampled_ra, best = (
                    resampled_bits_per_byte(nats_an[:, chosen], num_bytes[chosen]),
                    int(np.argmin(bits)),
                )
                part.behind.update(
                    (cell.arm, middle_95(resampled_ra[:, number] - resampled_ra[:, best]))
                    for number, cell in enumerate(cells)
                    if number != best
                )
            parts.append(part)
    return parts


# ---- In words ------------------------------------------------------------------------------------


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
    faster, slower = sorted(arms, key=lambda arm: decision.laws[arm].slope)
    return f"By lines through their runs, {faster} overtakes {slower}"


def _on_parts(decision: Decision) -> list[str]:
    lines = []
    for kind, whose in (("domain", "domains"), ("script", "scripts")):
        parts = [part for part in decision.parts if part.kind == kind and part.large]
        best = decision.largest.cells[0].arm
        others = [f"{part.best} in {part.name}" for part in parts if part.best != best]
        if len(parts) > 1:
            lines.append(
                f"At size {decision.largest.size}, {best} is best in {len(parts) - len(others)} of {len(parts)} {whose}"
                f" with {_FEW_DOCUMENTS} documents or more" + (f"; {_listed(others)}." if others else ".")
            )
    return lines


def _on_costs(decision: Decision) -> list[str]:
    lines = []
    for key, what, unit in (
        ("generate_flops_per_byte", "generate a byte of text", "FLOPs"),
        ("kv_cache_bytes_per_byte", "keep keys and values of a byte of text", "B"),
    ):
        costs = {cell.arm: cost for cell in decision.largest.cells if (cost := cell.average(key))}
        if len(costs) > 1:
            least, most = min(costs, key=costs.get), max(costs, key=costs.get)
            lines.append(
                f"To {what}, {least} needs least, {si(costs[least], unit)}, and {most} {costs[most] / costs[least]:.1f}"
                " times that."
            )
    return lines


def _on_noise(decision: Decision) -> list[str]:
    cells = [cell for cell in decision.largest.cells if cell.noise]
    rates = sorted({rate for cell in cells for rate in cell.noise})
    if len(cells) < 2 or len(rates) < 2:
        return []
    rise = {cell.arm: cell.noise[rates[-1]]["bits_per_byte"] - cell.noise[rates[0]]["bits_per_byte"] for cell in cells}
    least, most = min(rise, key=rise.get), max(rise, key=rise.get)
    return [
        f"With {percent(rates[-1])} of the characters wrong, bits per byte rise least for {least}, by"
        f" {rise[least]:.3f}, and most for {most}, by {rise[most]:.3f}."
    ]


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _listed(names: Sequence[str]) -> str:
    """`["a", "b", "c"] -> "a, b and c"`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


# ---- As data -------------------------------------------------------------------------------------


def rows(decision: Decision) -> list[dict[str, Any]]:
    """A line for each arm at each size, for CSV and JSON."""
    table, rates = [], sorted({rate for ranking in decision.rankings for cell in ranking.cells for rate in cell.noise})
    for ranking in decision.rankings:
        for cell in ranking.cells:
            low, high = cell.interval or (None, None)
            behind = ranking.behind.get(cell.arm)
            documents, seeds = (
                (behind.over_documents, behind.over_seeds or (None, None)) if behind else ((None, None), (None, None))
            )
            noise = {
                f"{key}_at_noise_{rate:g}": cell.noise.get(rate, {}).get(key)
                for rate in rates
                for key in ("bits_per_byte", "accuracy")
            }
            table.append(
                {
                    "size": cell.size,
                    "arm": cell.arm,
                    "seeds": len(cell.runs),
                    "bits_per_byte": cell.mean,
                    "bits_per_byte_low": low,
                    "bits_per_byte_high": high,
                    "behind_best": behind.bits if behind else None,
                    "behind_low_documents": documents[0],
                    "behind_high_documents": documents[1],
                    "behind_low_seeds": seeds[0],
                    "behind_high_seeds": seeds[1],
                    "clearly_behind": behind.clear if behind else None,
                    **{
                        key: cell.average(key)
                        for key in (
                            "flops",
                            "bytes_seen",
                            "parameters",
                            "bytes_per_id",
                            "fit_flops",
                            "bytes_per_second",
                            *COSTS,
                        )
                    },
                    **noise,
                }
            )
    return table


def as_json(decision: Decision) -> dict[str, Any]:
    """All numbers of the decision."""
    return {
        "experiment": decision.design.name,
        "budget": decision.design.budget,
        "supported": decision.supported,
        "unsupported": decision.unsupported,
        "arms": rows(decision),
        "laws": {
            arm: (
                None
                if law is None
                else {"slope": law.slope, "slope_interval": law.slope_interval, "level": law.level, "flops": law.flops}
            )
            for arm, law in decision.laws.items()
        },
        "crossings": [{"arms": list(arms), **dataclasses.asdict(point)} for arms, point in decision.crossings.items()],
        "parts": [dataclasses.asdict(part) for part in decision.parts],
    }
