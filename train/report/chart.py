"""Line charts of bits per byte as SVG, without a charting library.

Lines differ by colour (6), marker (5) and dash (4) at once: no two of 60 look the same, and colour is never needed.
Colours, dashes and type sizes are in `report.css`.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

_COLORS, _DASHES = 6, 4
_MARKERS = (
    "M-4 0A4 4 0 1 0 4 0 4 4 0 1 0-4 0Z",
    "M-3.6-3.6H3.6V3.6H-3.6Z",
    "M0-4.6 4.4 3.4H-4.4Z",
    "M0-5 5 0 0 5-5 0Z",
    "M0 4.6 4.4-3.4H-4.4Z",
)
_VISIBLE_MARKERS = 12
_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, _WIDTH - 14, 26, _HEIGHT - 42  # the frame within it


@dataclasses.dataclass(frozen=True)
class Axis:
    """What runs along x: its key in the records of a run, its name and unit."""

    key: str
    name: str
    unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One arm in a chart.

    Attributes:
      label: the arm's name, any text.
      style: which of the 60 looks.
      points: (x, bits per byte) of the curve.
      final: such points that are drawn apart from the curve.
      intervals: low and high ends of bits per byte at each `final`, or none.
    """

    label: str
    style: int
    points: list[tuple[float, float]]
    final: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    intervals: Sequence[Sequence[float]] = ()

    @property
    def xs(self) -> list[float]:
        return [x for x, _ in self.points + self.final]

    def positive(self) -> "Line":
        """What of the line a logarithmic axis can show."""
        points, final = ([p for p in part if p[0] > 0] for part in (self.points, self.final))
        intervals = [interval for (x, _), interval in zip(self.final, self.intervals) if x > 0]
        return dataclasses.replace(self, points=points, final=final, intervals=intervals)


def figure(title: str, lines: list[Line], axis: Axis) -> Markup:
    """A chart with its heading; a second one with a logarithmic x axis where x spans a decade. Empty without points."""
    xs = [x for line in lines for x in line.xs]
    if not xs:
        return Markup()
    charts, of_both = _chart(title, lines, axis), ""
    if max(xs) >= 10 * min((x for x in xs if x > 0), default=math.inf):
        charts += _chart(title, [line.positive() for line in lines], axis, log=True)
        of_both = ' class="both"'
    return Markup(f"<figure{of_both}><figcaption>{html.escape(title)}</figcaption>{charts}</figure>")


def key(style: int) -> Markup:
    """A short piece of a line with its marker, for legends."""
    return Markup(
        f'<svg class="key" viewBox="0 0 36 12" aria-hidden="true"><path class="line {_look(style)}" d="M1 6H35"/>'
        f'<path class="mark {_look(style)}" transform="translate(18 6)" d="{_marker(style)}"/></svg>'
    )


def scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """The map that takes `low` to `start` and `high` to `end`."""
    f = math.log10 if log else float
    span = f(high) - f(low) or 1.0
    return lambda value: start + (f(value) - f(low)) / span * (end - start)


def si(value: float, unit: str = "", form: str = "#.3g") -> str:
    """`12_000_000, "B" -> "12.0 MB"`."""
    if not value:
        return f"0\N{NARROW NO-BREAK SPACE}{unit}".rstrip()
    power = min(max(int(math.log10(abs(value)) // 3), 0), 8)
    if abs(value) / 1000**power >= 999.5 and power < 8:  # would read 1000
        power += 1
    scaled = value / 1000**power
    digits = format(scaled, form).rstrip(".") if abs(scaled) < 999.5 else f"{scaled:.3g}"
    return f"{digits}\N{NARROW NO-BREAK SPACE}{' kMGTPEZY'[power].strip()}{unit}".rstrip()


def _chart(title: str, lines: list[Line], axis: Axis, log: bool = False) -> str:
    """One SVG. Its frame leaves out what lies above every arm's values after a quarter of its run."""
    xs = [x for line in lines for x in line.xs]
    x_limits, y_limits = (min(xs) if log else 0, max(xs)), _y_limits(lines)
    x, y = scale(*x_limits, _LEFT, _RIGHT, log), scale(*y_limits, _BOTTOM, _TOP)
    x_ticks, y_ticks = (_log_ticks if log else _ticks)(*x_limits), _ticks(*y_limits)
    places = _places(y_ticks)
    grid = [f'<path d="M{_LEFT} {y(v):.1f}H{_RIGHT}"/>{_text(_LEFT - 7, y(v) + 4, f"{v:.{places}f}")}' for v in y_ticks]
    for v in x_ticks:
        grid += [f'<path d="M{x(v):.1f} {_BOTTOM}v5"/>', _text(x(v), _BOTTOM + 18, si(v, axis.unit, "g"), "middle")]
    grid += [_text(_LEFT, 14, "bits per byte", "start"), _text(_RIGHT, _HEIGHT - 6, axis.name)]
    curves = []
    for line in lines:
        path = "L".join(f"{x(px):.1f} {y(py):.1f}" for px, py in line.points)
        curves += [f'<path class="line {_look(line.style)}" d="M{path}"/>'] if len(line.points) > 1 else []
    width, height = _RIGHT - _LEFT, _BOTTOM - _TOP
    return (
        f'<svg class="chart {"logarithmic" if log else "linear"}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}, a line for each arm"><g class="grid">{"".join(grid)}</g>'
        # A nested svg cuts its content off at its border.
        f'<svg x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" viewBox="{_LEFT} {_TOP} {width} {height}">'
        f"{''.join(curves)}</svg>{''.join(_marks(line, x, y, axis) for line in lines)}</svg>"
    )


def _y_limits(lines: list[Line]) -> tuple[float, float]:
    ys = [y for line in lines for _, y in line.final]
    ys += [end for line in lines for interval in line.intervals for end in interval]
    for line in lines:
        start = 0.25 * max((x for x, _ in line.points), default=0)
        ys += [y for x, y in line.points if x >= start]
    pad = 0.06 * (max(ys) - min(ys)) or 0.05
    return min(ys) - pad, max(ys) + pad


def _marks(line: Line, x: Callable[..., Any], y: Callable[..., Any], axis: Axis) -> str:
    """The points of a line, all with a tooltip but only some visible, and the final one with its interval."""
    every = math.ceil(len(line.points) / _VISIBLE_MARKERS)
    marks = []
    for from_end, (px, py) in zip(range(len(line.points) - 1, -1, -1), line.points, strict=True):
        if y(py) >= _TOP:
            tip = f"{line.label}: {axis.name} {si(px, axis.unit)}, bits per byte {py:.3f}"
            marks.append(_mark(line, x(px), y(py), "quiet" if from_end % every else "some", tip))
    for number, (px, py) in enumerate(line.final):
        interval = line.intervals[number] if number < len(line.intervals) else ()
        tip = f"{line.label}, all held-out documents: {axis.name} {si(px, axis.unit)}, bits per byte {py:.3f}"
        if interval:
            low, high = interval
            tip += f", 95 % interval {low:.3f} to {high:.3f}"
            caps = "".join(f"M{x(px) - 4:.1f} {y(end):.1f}h8" for end in (low, high))
            marks.append(f'<path class="error {_look(line.style)}" d="M{x(px):.1f} {y(low):.1f}V{y(high):.1f}{caps}"/>')
        marks.append(_mark(line, x(px), y(py), "final", tip, size=1.5))
    return "".join(marks)


def _mark(line: Line, x: float, y: float, kind: str, tip: str, size: float = 1) -> str:
    return (
        f'<path class="mark {kind} {_look(line.style)}" transform="translate({x:.1f} {y:.1f}) scale({size})" '
        f'd="{_marker(line.style)}"><title>{html.escape(tip)}</title></path>'
    )


def _text(x: float, y: float, text: str, anchor: str = "end") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _look(style: int) -> str:
    return f"color-{style % _COLORS} dash-{style % _DASHES}"


def _marker(style: int) -> str:
    return _MARKERS[style % len(_MARKERS)]


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two."""
    raw = ((high - low) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers, or some of them, where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits, every = (1, 2, 5) if len(powers) <= 3 else (1,), math.ceil(len(powers) / 6)
    return [value for power in powers[::every] for k in digits if low <= (value := k * 10.0**power) <= high]


def _places(ticks: list[float]) -> int:
    """Decimals that tell the ticks apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.1
    return min(max(0, -math.floor(math.log10(step) + 1e-9)), 9)
