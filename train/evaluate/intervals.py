"""How far numbers can be trusted: over documents, by the paired bootstrap, and over seeds."""

import math
from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 1000  # of every bootstrap
_DOCUMENTS_AT_ONCE = 1 << 16  # that are drawn, in as many resamples as these make
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
    rng, count, found = np.random.default_rng(seed), len(num_bytes_n), []
    at_once = max(1, _DOCUMENTS_AT_ONCE // max(1, count))
    for start in range(0, NUM_RESAMPLES, at_once):
        drawn_rn = rng.integers(0, count, (min(at_once, NUM_RESAMPLES - start), count))
        drawn_bytes_r = num_bytes_n[drawn_rn].sum(axis=1)
        some_r = drawn_bytes_r > 0
        nats_ar = nats_an[:, drawn_rn].sum(axis=2)
        found.append((nats_ar[:, some_r] / math.log(2) / drawn_bytes_r[some_r]).T)
    return np.concatenate(found)


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
