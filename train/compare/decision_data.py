"""A decision as data, for CSV and JSON."""

import dataclasses
from typing import Any

from train.compare.in_words import supported, unsupported
from train.compare.results import Decision

COSTS = (
    "train_flops_per_byte",
    "generator_flops_per_byte",
    "encode_flops_per_byte",
    "generate_flops_per_byte",
    "kv_cache_bytes_per_byte",
)


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
        "supported": supported(decision),
        "unsupported": unsupported(decision),
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
