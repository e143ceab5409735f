"""How far numbers can be trusted: over documents, by the paired bootstrap, and over seeds."""

import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 1000  # of every bootstrap
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
    half = student_t(len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def student_t(degrees: int) -> float:
    """97.5th percentile of Student's t."""
    from scipy.special import stdtrit  # training imports this module, and has no use for it

    return float(stdtrit(degrees, 0.975))
