"""Line charts: points where they belong, a few round ticks, lines that differ without colour."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from train.report import chart


def line(points, **final):
    return chart.Line(label="a", style=0, points=points, **final)


def positions(figure, kind):
    """Where the marks of a kind are, in a figure with one chart."""
    assert figure.count('<svg class="chart') == 1
    return [tuple(map(float, at)) for at in re.findall(rf'class="mark {kind} [^>]*translate\((\S+) (\S+)\)', figure)]


def test_a_chart_puts_points_where_they_belong():
    axis = chart.Axis("bytes_seen", "bytes seen", "B")
    curve = [(100, 8.0), (500, 3.0), (900, 2.0)]
    figure = chart.figure("Chart", [line(curve, final=[(900, 2.1)], intervals=[[1.9, 2.4]])], axis)
    (left, upper), (right, lower) = positions(figure, "some")  # the early value is above the frame
    assert chart._TOP < upper < lower < chart._BOTTOM and right == chart._RIGHT
    assert (left - chart._LEFT) / (right - chart._LEFT) == pytest.approx(5 / 9, abs=1e-3)
    [(final_x, final_y)] = positions(figure, "final")
    assert final_x == right and (lower - final_y) / (lower - upper) == pytest.approx(0.1, abs=2e-3)
    assert "bits per byte 2.100, 95 % interval 1.900 to 2.400" in figure
    [(x, y)] = positions(chart.figure("Chart", [line([(5, 2.0)])], axis), "some")
    assert (x, y) == (chart._RIGHT, (chart._TOP + chart._BOTTOM) / 2)
    decade = chart.figure("Chart", [line([(10, 2.0), (100, 1.0)])], axis)
    assert decade.count('<svg class="chart logarithmic') == decade.count('<svg class="chart linear') == 1
    assert chart.figure("Chart", [line([])], axis) == ""


def test_lines_look_different_without_colour():
    looks = {re.sub(r"color-\d", "", chart.key(style)) for style in range(20)}
    assert len(looks) == 20


@hypothesis.settings(deadline=None)
@hypothesis.given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_ticks_are_a_few_and_within(low, span):
    hypothesis.assume(span > 1e-6 * abs(low))
    high = low + span
    ticks = chart._ticks(low, high)
    assert 2 <= len(ticks) <= 7 and ticks == sorted(ticks)
    assert all(low - 1e-9 * abs(low) - 1e-9 * span <= tick <= high + 1e-9 * abs(high) + 1e-9 * span for tick in ticks)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.floats(1e-3, 1e24), st.floats(10, 1e9))
def test_log_ticks_are_a_few_and_within(low, ratio):
    ticks = chart._log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 12 and ticks == sorted(ticks)
    assert all(low <= tick <= low * ratio for tick in ticks)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (0.5, "0.500 B"),
        (258, "258 B"),
        (999, "999 B"),
        (999.7, "1.00 kB"),
        (1000, "1.00 kB"),
        (20_000_000, "20.0 MB"),
        (4.1e24, "4.10 YB"),
    ],
)
def test_si(value, shown):
    assert chart.si(value, "B") == shown.replace(" ", "\N{NARROW NO-BREAK SPACE}")
