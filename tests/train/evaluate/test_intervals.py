import math

import numpy as np
import pytest
import scipy.stats

from train.evaluate.intervals import crossing, fit_power_law, mean_interval, middle_95, resampled_bits_per_byte


def test_a_steady_difference_shows_through_documents_that_differ_much():
    """Documents cost between 1 and 8 bits a byte, one arm 0.1 more than the other on each: the pair settles what two
    intervals do not."""
    rng = np.random.default_rng(0)
    num_bytes, bits = np.full(60, 1000), rng.uniform(1, 8, 60)
    nats_an = np.stack([bits, bits + 0.1]) * math.log(2) * num_bytes
    resampled_ra = resampled_bits_per_byte(nats_an, num_bytes)
    assert resampled_ra.shape == (1000, 2)
    (_, high), (other_low, _) = middle_95(resampled_ra[:, 0]), middle_95(resampled_ra[:, 1])
    assert other_low < high, "by themselves they overlap"
    assert middle_95(resampled_ra[:, 1] - resampled_ra[:, 0]) == pytest.approx((0.1, 0.1))


def test_documents_weigh_as_much_as_they_have_bytes():
    resampled_ra = resampled_bits_per_byte(np.array([[math.log(2) * 9990, math.log(2) * 20]]), np.array([9990, 10]))
    assert set(np.round(resampled_ra[:, 0], 6)) == {1.0, 2.0, round(10010 / 10000, 6)}


def test_draws_without_a_byte_are_left_out():
    assert len(resampled_bits_per_byte(np.ones((1, 2)), np.array([0, 5]))) < 1000


def test_the_interval_of_three_seeds_is_students():
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6
    )
    assert mean_interval([1.0]) is None


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
