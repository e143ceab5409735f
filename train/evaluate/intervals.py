"""How far numbers can be trusted: over documents, over seeds, and of lines through runs of several sizes."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

NUM_RESAMPLES = 1000
Interval = tuple[float, float]


def resampled_bits_per_byte(nats_an: np.ndarray, num_bytes_n: np.ndarray, seed: int = 0) -> np.ndarray:
    """Bits per byte of A arms over documents drawn again with replacement, the same ones for all arms (Efron &
    Tibshirani 1993, ch. 13).

    Args:
      nats_an: f64[A, N], what N documents cost each arm.
      num_bytes_n: i64[N].
      seed: of the draws.

    Returns:
      f64[R, A]; draws without a byte are left out.
    """
    rng, count, rows = np.random.default_rng(seed), len(num_bytes_n), []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.integers(0, count, count)
        if (drawn_bytes := num_bytes_n[drawn].sum()) > 0:
            rows.append(nats_an[:, drawn].sum(axis=1) / math.log(2) / drawn_bytes)
    return np.array(rows)


def middle_95(values: np.ndarray) -> Interval:
    """The 2.5th and the 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean of what seeds gave, by Student's t; None for a single one, which says nothing of
    others."""
    if len(values) < 2:
        return None
    half = _t(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _t(degrees: int) -> float:
    """97.5th percentile of Student's t."""
    return float(stdtrit(degrees, 0.975))


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
        half = _t(self.degrees) * math.sqrt(self.covariance[1, 1])
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
    if (
        np.mean(slope > 0) < 0.025 or np.mean(slope < 0) < 0.025
    ):  # that the lines meet, on the side where they do, is not in doubt
        least, most = middle_95(-level / slope)
        interval = _flops(least), _flops(most)
    return Crossing(flops, interval, low <= flops <= high)


def _flops(logarithm: float) -> float:
    return math.exp(min(logarithm, 700.0))  # beyond that, no float
