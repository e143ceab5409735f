"""The part of a report's page that is about an experiment: its summary, its arms with their seeds together, charts,
laws, parts and costs."""

from collections.abc import Callable, Sequence
from statistics import fmean

from train.compare.decision_data import as_json
from train.compare.in_words import supported, unsupported
from train.compare.results import Cell, Decision, Part, Ranking
from train.evaluate.intervals import Interval, mean_interval
from train.report import chart
from train.report.chart import Axis, Line
from train.report.findings import Opening
from train.report.page import (
    Column,
    cell as _td,
    escape as _e,
    fixed,
    percent,
    row_head as _row_head,
    si,
    some as _some,
    table as _table,
    with_code,
)

_AXES = (Axis("flops", "FLOPs spent", ""), Axis("bytes_seen", "bytes seen", "B"))


def opening(decision: Decision) -> Opening:
    """What the report of an experiment begins with."""
    design = decision.design
    title = (
        f"{design.name}: {_some(len(design.arms), 'arm')}, {_some(len(design.sizes), 'size')},"
        f" {_some(design.num_seeds, 'seed')}"
    )
    return Opening(title=title, html=_sections(decision), data=as_json(decision))


def _sections(decision: Decision) -> str:
    styles = {arm: number for number, arm in enumerate(decision.design.arms)}
    sections = {
        "What the numbers support": _items(supported(decision)),
        "What they do not": _items(unsupported(decision)),
    }
    if decision.rankings:
        sections |= {
            "Results": _results(decision, styles),
            "Bits per byte against compute and text": _charts(decision, styles),
        }
    if any(decision.laws.values()):
        sections["Laws"] = _laws(decision, styles)
    if decision.parts:
        sections[f"Domains and scripts at size {decision.largest.size}"] = _parts(decision, styles)
    if decision.encoders:
        sections["Encoders"] = _encoders(decision, styles)
    if decision.rankings:
        sections |= {"Costs": _costs(decision, styles), "Noise": _noise(decision, styles)}
    return "".join(f"<section><h2>{_e(title)}</h2>{content}</section>" for title, content in sections.items())


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{with_code(line)}</li>' for line in lines)}</ul>"


def _arm(cell_or_name: str, styles: dict[str, int]) -> str:
    return _row_head(cell_or_name, chart.key(styles[cell_or_name]))


def _results(decision: Decision, styles: dict[str, int]) -> str:
    columns = [
        Column("Arm", number=False),
        Column("Size", number=False),
        Column("Bits per byte", "mean, 95 % over seeds", sorted=len(decision.rankings) == 1),
        Column("Behind the best", "95 % over documents; over seeds"),
        Column("Clear", "both above zero", number=False),
        Column("FLOPs", "spent"),
        Column("Bytes", "seen"),
        Column("Params", "all"),
        Column("Seeds"),
    ]
    rows = []
    for ranking in reversed(decision.rankings):
        for cell in ranking.cells:
            rows.append(
                [
                    _arm(cell.arm, styles),
                    _td(cell.size, _e(cell.size)),
                    _td(cell.mean, f"<strong>{cell.mean:.3f}</strong>{_small(cell.interval)}"),
                    *_behind(ranking, cell),
                    *(
                        _td(cell.average(key), si(cell.average(key), unit))
                        for key, unit in (("flops", ""), ("bytes_seen", "B"), ("parameters", ""))
                    ),
                    _td(len(cell.runs), str(len(cell.runs))),
                ]
            )
    return _table("Arms at each size, largest first. A heading sorts by its column.", columns, rows)


def _behind(ranking: Ranking, cell: Cell) -> list[str]:
    if cell.arm not in ranking.behind:
        return [_td(0.0, "best"), _td("best", "")]
    difference = ranking.behind[cell.arm]
    return [
        _td(
            difference.bits, f"{difference.bits:.3f}{_small(difference.over_documents)}{_small(difference.over_seeds)}"
        ),
        _td("yes" if difference.clear else "no", "yes" if difference.clear else "no"),
    ]


def _small(interval: Interval | None) -> str:
    return "" if interval is None else f"<small>{interval[0]:.3f} to {interval[1]:.3f}</small>"


# ---- Charts --------------------------------------------------------------------------------------


def _charts(decision: Decision, styles: dict[str, int]) -> str:
    legend = "".join(f"<li>{chart.key(styles[cell.arm])}{_e(cell.arm)}</li>" for cell in decision.largest.cells)
    figures = "".join(_over_sizes(decision, styles, axis) for axis in _AXES)
    for ranking in reversed(decision.rankings):
        figures += "".join(_while_training(ranking, styles, axis) for axis in _AXES)
    return f"""
<ul class="legend">{legend}</ul>
<label class="log"><input type="checkbox"> logarithmic x axis</label>
<div class="charts">{figures}</div>
<p class="caption">All held-out documents: means over seeds with their 95&nbsp;% intervals, a mark for each size.
While training: means over seeds on a fixed subset of the held-out documents, so that the two need not meet. A
compressor's fit is in its arm's FLOPs from the beginning.</p>
"""


def _over_sizes(decision: Decision, styles: dict[str, int], axis: Axis) -> str:
    lines = []
    for arm in (cell.arm for cell in decision.largest.cells):
        cells = [cell for ranking in decision.rankings for cell in ranking.cells if cell.arm == arm]
        points = [(cell.average(axis.key), cell.mean) for cell in cells]
        lines.append(
            Line(
                label=arm,
                style=styles[arm],
                points=points,
                final=points,
                intervals=[cell.interval or () for cell in cells],
            )
        )
    return chart.figure(f"All held-out documents against {axis.name}", lines, axis)


def _while_training(ranking: Ranking, styles: dict[str, int], axis: Axis) -> str:
    lines = [Line(label=cell.arm, style=styles[cell.arm], points=_mean_curve(cell, axis)) for cell in ranking.cells]
    return chart.figure(f"Size {ranking.size} while training, against {axis.name}", lines, axis)


def _mean_curve(cell: Cell, axis: Axis) -> list[tuple[float, float]]:
    """Means over seeds at the steps that all of them were evaluated at."""
    by_step = [
        {point["step"]: point for point in run.curve if None not in (point[axis.key], point["bits_per_byte"])}
        for run in cell.runs.values()
    ]
    steps = sorted(set.intersection(*map(set, by_step)))
    return [
        tuple(fmean(points[step][key] for points in by_step) for key in (axis.key, "bits_per_byte")) for step in steps
    ]


# ---- Tables --------------------------------------------------------------------------------------


def _laws(decision: Decision, styles: dict[str, int]) -> str:
    columns = [
        Column("Arm", number=False),
        Column("Exponent", "of bits per byte in FLOPs"),
        Column("Interval", "from"),
        Column("Interval", "to"),
        Column("Runs"),
        *(Column("Crosses", arm) for arm in decision.laws),
    ]
    rows = []
    for arm, law in decision.laws.items():
        if law is None:
            continue
        low, high = law.slope_interval or (None, None)
        rows.append(
            [
                _arm(arm, styles),
                _td(law.slope, fixed(law.slope, 4)),
                _td(low, fixed(low, 4)),
                _td(high, fixed(high, 4)),
                _td(law.degrees + 2, str(law.degrees + 2)),
                *(_crossing(decision, arm, other) for other in decision.laws),
            ]
        )
    sizes = len(decision.rankings)
    shape = "Two sizes cannot tell whether it is a line." if sizes == 2 else "That it has no limit is an assumption."
    return (
        _table("Bits per byte as a power of FLOPs, and where arms cross", columns, rows)
        + f'<p class="caption">A line through the logarithms of all runs of an arm. {shape} Crossings in brackets are'
        " outside of what was measured; without an interval, the runs leave open whether the lines cross at all.</p>"
    )


def _crossing(decision: Decision, arm: str, other: str) -> str:
    point = decision.crossings.get((arm, other)) or decision.crossings.get((other, arm))
    if point is None or point.flops is None:
        return _td(None, "–")
    shown = (
        si(point.flops) if point.measured else f"({si(point.flops)})" if 1e-3 < point.flops < 1e30 else "(nowhere near)"
    )
    ends = [si(min(end, 1e30)) for end in point.interval if end is not None and end > 1e-3]
    return _td(
        point.flops,
        f"{_e(shown)}<small>{_e(' to '.join(ends))}</small>" if len(ends) == 2 and point.measured else _e(shown),
    )


def _parts(decision: Decision, styles: dict[str, int]) -> str:
    arms = [cell.arm for cell in decision.largest.cells]
    columns = [
        Column("Part", number=False),
        Column("Kind", number=False),
        Column("Documents"),
        Column("Bytes"),
        *(Column(arm, "bits per byte") for arm in arms),
    ]
    rows = [
        [
            _row_head(part.name),
            _td(part.kind, part.kind),
            _td(part.num_documents, fixed(part.num_documents)),
            _td(part.num_bytes, si(part.num_bytes, "B")),
            *(_part_of(part, arm) for arm in arms),
        ]
        for part in decision.parts
    ]
    return _table(
        "Bits per byte of parts of the held-out text; small: behind the part's best arm, 95 % over documents",
        columns,
        rows,
    )


def _part_of(part: Part, arm: str) -> str:
    bits = part.bits_per_byte[arm]
    return _td(
        bits,
        (
            f"<strong>{bits:.3f}</strong><small>best</small>"
            if arm == part.best
            else f"{bits:.3f}{_small(part.behind.get(arm))}"
        ),
    )


_ENCODER_COLUMNS = {
    "detection_nats": Column("Detection", "nats a position"),
    "always_real_nats": Column("Always real", "nats a position"),
    "auc": Column("AUC", "of detection"),
    "predicted_nats": Column("Prediction", "nats a chosen position"),
    "predicted_right": Column("Prediction", "share right"),
}


def _encoders(decision: Decision, styles: dict[str, int]) -> str:
    columns = [Column("Arm", number=False), Column("Size", number=False), *_ENCODER_COLUMNS.values()]
    rows = [
        [
            _arm(cell.arm, styles),
            _td(cell.size, _e(cell.size)),
            *(_over_seeds(cell.values(key)) for key in _ENCODER_COLUMNS),
        ]
        for cell in decision.encoders
    ]
    return _table(
        "What encoders detect and predict: means over seeds with their 95 % intervals. They have no bits per byte.",
        columns,
        rows,
    )


def _over_seeds(values: Sequence[float | None]) -> str:
    if None in values:
        return _td(None, fixed(None))
    return _td(fmean(values), f"{fmean(values):.4f}{_small(mean_interval(values))}")


_COST_COLUMNS: dict[str, tuple[Column, Callable[[float | None], str]]] = {
    "bytes_per_id": (Column("Bytes", "per id, held out"), lambda value: fixed(value, 2)),
    "ids_per_kilobyte": (Column("Sequence", "ids for 1,000 bytes"), fixed),
    "train_flops_per_byte": (Column("Training", "FLOPs per byte"), si),
    "generate_flops_per_byte": (Column("Generating", "FLOPs per byte"), si),
    "kv_cache_bytes_per_byte": (Column("KV cache", "bytes per byte of text"), fixed),
    "bytes_per_second": (Column("Speed", "of training, bytes/s, measured"), si),
    "fit_flops": (Column("Compressor's fit", "FLOPs, in the budget"), si),
    "encode_flops_per_byte": (Column("Compressor", "FLOPs per byte, in training"), si),
    "generator_flops_per_byte": (Column("Generator", "FLOPs per byte, in training"), si),
}


def _costs(decision: Decision, styles: dict[str, int]) -> str:
    columns = [
        Column("Arm", number=False),
        Column("Size", number=False),
        *(column for column, _ in _COST_COLUMNS.values()),
    ]
    rows = []
    for size in reversed(decision.design.sizes):
        for cell in (
            cell
            for cells in (*(ranking.cells for ranking in decision.rankings), decision.encoders)
            for cell in cells
            if cell.size == size
        ):
            per_id = cell.average("bytes_per_id")
            values = {key: cell.average(key) for key in _COST_COLUMNS} | {
                "ids_per_kilobyte": 1000 / per_id if per_id else None
            }
            rows.append(
                [
                    _arm(cell.arm, styles),
                    _td(size, _e(size)),
                    *(_td(values[key], _e(show(values[key]))) for key, (_, show) in _COST_COLUMNS.items()),
                ]
            )
    return _table("What a byte of text costs, by the ids that the held-out text takes", columns, rows)


def _noise(decision: Decision, styles: dict[str, int]) -> str:
    cells = [
        cell
        for cell in (
            *decision.largest.cells,
            *(cell for cell in decision.encoders if cell.size == decision.largest.size),
        )
        if cell.noise
    ]
    if not cells:
        return "<p>Not measured; <code>toklab eval RUN --noise</code> does.</p>"
    rates = sorted({rate for cell in cells for rate in cell.noise})
    columns = [
        Column("Arm", number=False),
        *(Column("Bits per byte", f"{100 * rate:g} % noise") for rate in rates),
        *(Column("Told apart", f"{100 * rate:g} % noise") for rate in rates),
    ]
    rows = []
    for cell in cells:
        bits, accuracy = (
            [cell.noise.get(rate, {}).get(key) for rate in rates] for key in ("bits_per_byte", "accuracy")
        )
        rows.append(
            [
                _arm(cell.arm, styles),
                *(_td(value, fixed(value, 3)) for value in bits),
                *(_td(value, percent(value)) for value in accuracy),
            ]
        )
    return (
        _table(f"Size {_e(decision.largest.size)} on text with wrong characters", columns, rows)
        + '<p class="caption">Bits per byte of a fixed part of the held-out text, with noise in the share of its'
        " characters that is given. Told apart: how often a line of it has a better score than the same with two"
        " neighbouring words exchanged, both with the same noise; half is chance. Encoders score by their own"
        " objective.</p>"
    )
