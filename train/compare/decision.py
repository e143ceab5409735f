"""Decides an experiment: ranks the arms of each size, tests their differences, fits power laws.

A difference between two arms is called clear if zero is outside of two 95 % intervals: over documents, both arms on the
same ones drawn again with replacement and each with its mean over seeds; and over seeds, by Student's t of what runs of
the same seed differ by. The first says whether other text would say the same, the second whether other runs would.
Neither says anything of other sizes, texts or settings.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.compare.power_laws import PowerLaw, crossing, fit_power_law
from train.compare.results import ArmAtSize, Decision, Design, Difference, Part, Ranking
from train.evaluate.intervals import mean_interval, middle_95, resampled_bits_per_byte
from train.report.runs import RunRead


def decide(design: Design, runs: Sequence[RunRead]) -> Decision:
    """Compares the runs. Those that cannot be compared with the others are left out, and named."""
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


def _cells(design: Design, runs: Sequence[RunRead], left_out: list[str]) -> list[ArmAtSize]:
    """The arms and sizes whose seeds have all been scored, document by document."""
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
        ArmAtSize(arm=arm, size=size, runs=dict(sorted(by_seed.items())))
        for (size, arm), by_seed in found.items()
        if len(by_seed) == design.num_seeds
    ]


def _on_one_text(cells: list[ArmAtSize], left_out: list[str]) -> list[ArmAtSize]:
    """Those whose runs were evaluated on the most common text."""
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


def _rank(size: str, cells: list[ArmAtSize]) -> Ranking:
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


def _num_bytes(cell: ArmAtSize) -> np.ndarray:
    return np.array(cell.documents["num_bytes"])


def _laws(cells: list[ArmAtSize]) -> dict[str, PowerLaw | None]:
    laws = {}
    for arm in dict.fromkeys(cell.arm for cell in cells):
        runs = [run for cell in cells if cell.arm == arm for run in cell.runs.values()]
        laws[arm] = fit_power_law([run.row["flops"] for run in runs], [run.row["bits_per_byte"] for run in runs])
    return laws


def _parts(cells: list[ArmAtSize]) -> list[Part]:
    """Domains and scripts of the held-out documents. A kind with only one part is skipped: it is the whole text."""
    documents, num_bytes = cells[0].documents, _num_bytes(cells[0])
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
