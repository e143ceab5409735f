import math

import numpy as np
import pytest
import scipy.stats

from train.compare.power_laws import PowerLaw, crossing, fit_power_law


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
    assert fit_power_law([100.0, 149.0], [3.0, 2.9]) is None and fit_power_law([100.0, 150.0], [3.0, 2.9]) is not None


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


@pytest.mark.parametrize("at, measured", [(5, False), (10, True), (50, True), (100, True), (500, False)])
def test_a_crossing_is_measured_where_both_arms_have_runs(at, measured):
    """Runs of one from 1 to 100 FLOPs, of the other from 10 to 1000; two each, so that there is nothing to draw."""
    first = PowerLaw(1.0 + 0.25 * math.log(at), -0.5, None, 0, (1.0, 100.0001))
    second = PowerLaw(1.0, -0.25, None, 0, (9.9999, 1000.0))
    for point in (crossing(first, second), crossing(second, first)):
        assert point.flops == pytest.approx(at) and point.measured == measured
        assert point.interval == pytest.approx((at, at))


def test_parallel_lines_meet_nowhere_and_nearly_parallel_ones_at_a_finite_number():
    first = PowerLaw(1.0, -0.5, None, 0, (1.0, 100.0))
    parallel = crossing(first, PowerLaw(2.0, -0.5, None, 0, (1.0, 100.0)))
    assert (parallel.flops, parallel.interval, parallel.measured) == (None, (None, None), False)
    far = crossing(first, PowerLaw(0.0, -0.499, None, 0, (1.0, 100.0)))
    assert far.flops == pytest.approx(math.exp(700), rel=1e-12) and not far.measured


def test_drawn_lines_spread_as_students_t_does():
    """Its covariance is that of the normal times degrees / (degrees - 2)."""
    covariance = np.array([[4.0, -1.0], [-1.0, 0.5]])
    drawn = PowerLaw(3.0, -2.0, covariance, 12, (1.0, 10.0)).draws(np.random.default_rng(0), 100_000)
    np.testing.assert_allclose(drawn.mean(axis=0), [3.0, -2.0], atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.T), covariance * 12 / 10, rtol=0.03)
