import math

import numpy as np
import pytest

from train.evaluate.intervals import mean_interval, middle_95, resampled_bits_per_byte


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


def test_a_thousand_are_drawn_of_any_number_of_documents():
    for count in (1, 65, 66, 999):
        assert resampled_bits_per_byte(np.ones((1, count)), np.ones(count, np.int64)).shape == (1000, 1), count


def test_documents_weigh_as_much_as_they_have_bytes():
    resampled_ra = resampled_bits_per_byte(np.array([[math.log(2) * 9990, math.log(2) * 20]]), np.array([9990, 10]))
    assert set(np.round(resampled_ra[:, 0], 6)) == {1.0, 2.0, round(10010 / 10000, 6)}


def test_documents_are_drawn_equally_often():
    """Two of as many bytes: both the first, one of each in either order, both the second."""
    resampled_ra = resampled_bits_per_byte(np.array([[math.log(2) * 10, math.log(2) * 20]]), np.array([10, 10]))
    values, times = np.unique(np.round(resampled_ra[:, 0], 6), return_counts=True)
    assert values.tolist() == [1.0, 1.5, 2.0]
    np.testing.assert_allclose(times / len(resampled_ra), [0.25, 0.5, 0.25], atol=0.05)


def test_the_middle_leaves_a_fortieth_at_each_end():
    assert middle_95(np.arange(1001)) == (25.0, 975.0)


def test_draws_without_a_byte_are_left_out():
    assert len(resampled_bits_per_byte(np.ones((1, 2)), np.array([0, 5]))) < 1000


def test_the_interval_of_two_or_three_seeds_is_students():
    assert mean_interval([1.0, 3.0]) == pytest.approx((2 - 12.706205, 2 + 12.706205), rel=1e-6)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6
    )
    assert mean_interval([1.0]) is None
