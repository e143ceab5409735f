import numpy as np
import pytest
import scipy.stats

from train.compare.power_laws import crossing, fit_power_law


def law(level: float, slope: float, noise: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    flops = np.repeat([1e12, 1e13, 1e14], 3)
    return fit_power_law(flops.tolist(), (level * (flops / 1e12) ** slope * np.exp(rng.normal(0, noise, 9))).tolist())


def test_a_power_law_is_found_again():
    found = law(3.0, -0.05)
    assert (
        found.slope == pytest.approx(-0.05)
        and found.at(1e13) == pytest.approx(3 * 10**-0.05)
        and found.flops == (1e12, 1e14)
    )


def test_the_interval_of_an_exponent_is_that_of_linear_regression():
    flops, bits = np.array([1e12, 1e12, 3e12, 1e13]), np.array([3.0, 3.1, 2.8, 2.5])
    expected = scipy.stats.linregress(np.log(flops), np.log(bits))
    low, high = fit_power_law(flops.tolist(), bits.tolist()).slope_interval
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((expected.slope, 4.302653 * expected.stderr), rel=1e-6)


def test_the_interval_of_an_exponent_covers_it_about_as_often_as_it_says():
    covered = [
        low <= -0.05 <= high for low, high in (law(3.0, -0.05, 0.02, seed).slope_interval for seed in range(200))
    ]
    assert 0.9 <= np.mean(covered) <= 0.99


def test_runs_of_one_size_have_no_law():
    assert fit_power_law([1e12, 1.01e12, 1.02e12], [3.0, 3.1, 3.2]) is None


def test_two_runs_have_a_law_without_an_interval():
    found = fit_power_law([1e12, 1e13], [3.0, 2.5])
    assert found.at(1e13) == pytest.approx(2.5) and found.slope_interval is None


def test_where_two_arms_cross():
    """3.0 c^-0.02 and 3.3 c^-0.1 meet at c = 1.1^(1 / 0.08), in units of 1e12."""
    expected = 1e12 * 1.1 ** (1 / 0.08)
    point = crossing(law(3.0, -0.02, 0.002), law(3.3, -0.1, 0.002, seed=1))
    assert point.measured and point.flops == pytest.approx(expected, rel=0.15)
    assert point.interval[0] < expected < point.interval[1]


def test_a_crossing_far_out_is_not_measured():
    assert not crossing(law(3.0, -0.02), law(6.0, -0.1)).measured


def test_lines_that_may_be_parallel_have_no_interval():
    assert crossing(law(3.0, -0.05, 0.02), law(3.01, -0.05, 0.02, seed=5)).interval == (None, None)
