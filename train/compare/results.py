"""The results of an experiment: each arm at each size over its seeds, the rankings, and what is decided from them."""

import dataclasses
import functools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.compare.power_laws import Crossing, PowerLaw
from train.evaluate.intervals import Interval, mean_interval
from train.report.runs import RunRead

FEW_DOCUMENTS = 10  # below which a bootstrap over documents says little


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
class ArmAtSize:
    """The runs of an arm at a size, by seed."""

    arm: str
    size: str
    runs: "dict[int, RunRead]"

    @property
    def is_encoder(self) -> bool:
        return all(run.is_encoder for run in self.runs.values())

    @functools.cached_property
    def bits_per_byte(self) -> dict[int, float]:
        return {seed: _present(run.evaluation)["bits_per_byte"] for seed, run in self.runs.items()}

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
        return np.mean([_present(run.documents_scored)["nats"] for run in self.runs.values()], axis=0)

    @property
    def documents(self) -> dict[str, Any]:
        """The held-out documents, as each run's `documents_scored` has them."""
        return _present(next(iter(self.runs.values())).documents_scored)

    def values(self, key: str) -> list[float | None]:
        """A number from the row or the costs of each seed's run."""
        return [(run.row | run.costs).get(key) for run in self.runs.values()]

    def average(self, key: str) -> float | None:
        return _mean(self.values(key))

    @functools.cached_property
    def noise(self) -> dict[float, dict[str, float | None]]:
        """Rate of noise -> bits per byte and the share of pairs told apart, means over seeds."""
        by_rate: dict[float, list[dict[str, Any]]] = {}
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
    """How many more bits per byte one arm takes than another."""

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
    """The arms of a size, best first, and how far each is behind the best."""

    size: str
    cells: list[ArmAtSize]
    behind: dict[str, Difference]
    """Of all arms but the best."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A domain or a script of the held-out text, at the largest size.

    It has the bits per byte of each arm, and a 95 % interval over documents of how far the others are behind the best.
    A part with few documents has no intervals and is left out of the summary.
    """

    kind: str
    name: str
    num_documents: int
    num_bytes: int
    bits_per_byte: dict[str, float]
    behind: dict[str, Interval]

    @property
    def large(self) -> bool:
        return self.num_documents >= FEW_DOCUMENTS

    @property
    def best(self) -> str:
        return min(self.bits_per_byte, key=self.bits_per_byte.__getitem__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What the runs come to.

    Attributes:
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
    encoders: list[ArmAtSize]
    laws: dict[str, PowerLaw | None]
    crossings: dict[tuple[str, str], Crossing]
    parts: list[Part]
    left_out: list[str]

    @property
    def largest(self) -> Ranking | None:
        return self.rankings[-1] if self.rankings else None


def _present(part: dict[str, Any] | None) -> dict[str, Any]:
    """A part of a run that all runs in a comparison have."""
    assert part is not None
    return part


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None
