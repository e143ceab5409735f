"""Bits per byte as a power of FLOPs: a line through the logarithms of several sizes, and where two lines cross."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from train.evaluate.intervals import NUM_RESAMPLES, Interval, middle_95, student_t


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """bits per byte = exp(level) * FLOPs^slope, least squares in logarithms (Kaplan et al. 2020, arXiv 2001.08361,
    without a limit).

    Attributes:
      level, slope: of the line.
      covariance: of the two, f64[2, 2]; None for two runs, whose line goes through both.
      degrees: of freedom that the covariance is known with.
      flops: the least and the most of the runs.
    """

    level: float
    slope: float
    covariance: np.ndarray | None
    degrees: int
    flops: Interval

    def at(self, flops: float) -> float:
        return math.exp(self.level + self.slope * math.log(flops))

    @property
    def slope_interval(self) -> Interval | None:
        if self.covariance is None:
            return None
        half = student_t(self.degrees) * math.sqrt(self.covariance[1, 1])
        return self.slope - half, self.slope + half

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """f64[count, 2], levels and slopes that the runs leave possible: a multivariate t."""
        if self.covariance is None:
            return np.tile([self.level, self.slope], (count, 1))
        normal = rng.multivariate_normal([0, 0], self.covariance, count)
        return [self.level, self.slope] + normal * np.sqrt(self.degrees / rng.chisquare(self.degrees, count))[:, None]


def fit_power_law(flops: Sequence[float], bits_per_byte: Sequence[float]) -> PowerLaw | None:
    """The line through runs; None where all of them have spent about the same."""
    if max(flops) < 1.5 * min(flops):
        return None
    design = np.stack([np.ones(len(flops)), np.log(flops)], axis=1)
    (level, slope), *_ = np.linalg.lstsq(design, np.log(bits_per_byte), rcond=None)
    degrees, covariance = len(flops) - 2, None
    if degrees:
        residuals = np.log(bits_per_byte) - design @ [level, slope]
        covariance = residuals @ residuals / degrees * np.linalg.inv(design.T @ design)
    return PowerLaw(float(level), float(slope), covariance, degrees, (min(flops), max(flops)))


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where two lines meet.

    Attributes:
      flops: the point; None for parallel lines.
      interval: of 95 % of the lines that the runs leave possible; an end is None where the lines need not meet at all.
      measured: whether the point lies between the least and the most FLOPs that both arms have runs of.
    """

    flops: float | None
    interval: tuple[float | None, float | None]
    measured: bool


def crossing(first: PowerLaw, second: PowerLaw, seed: int = 0) -> Crossing:
    """Where one arm overtakes the other, by their lines."""
    low, high = max(first.flops[0], second.flops[0]), min(first.flops[1], second.flops[1])
    if first.slope == second.slope:
        return Crossing(None, (None, None), False)
    flops, rng = _flops((first.level - second.level) / (second.slope - first.slope)), np.random.default_rng(seed)
    interval: tuple[float | None, float | None] = None, None
    level, slope = (first.draws(rng, NUM_RESAMPLES) - second.draws(rng, NUM_RESAMPLES)).T
    # That the lines meet, on the side where they do, has to be beyond doubt.
    if np.mean(slope > 0) < 0.025 or np.mean(slope < 0) < 0.025:
        least, most = middle_95(-level / slope)
        interval = _flops(least), _flops(most)
    return Crossing(flops, interval, low <= flops <= high)


def _flops(logarithm: float) -> float:
    return math.exp(min(logarithm, 700.0))  # beyond that, no float
