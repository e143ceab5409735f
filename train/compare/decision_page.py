"""The part of a report's page that is about an experiment: its summary, its arms with their seeds together, charts,
laws, parts and costs."""

from collections.abc import Callable, Sequence
from statistics import fmean

from train.compare.decision_data import as_json
from train.compare.in_words import supported, unsupported
from train.compare.results import ArmAtSize, Decision, Part, Ranking
from train.evaluate.intervals import Interval, mean_interval
from train.report import chart, page
from train.report.chart import Axis, Line
from train.report.findings import Opening
from train.report.page import Cell, Column, Table, fixed, percent, row_head, si, some as _some, text_cell

_AXES = (Axis("flops", "FLOPs spent", ""), Axis("bytes_seen", "bytes seen", "B"))
_ARM, _SIZE = Column("Arm", number=False), Column("Size", number=False)


def opening(decision: Decision) -> Opening:
    """What the report of an experiment begins with."""
    design = decision.design
    title = (
        f"{design.name}: {_some(len(design.arms), 'arm')}, {_some(len(design.sizes), 'size')},"
        f" {_some(design.num_seeds, 'seed')}"
    )
    styles, largest = {arm: number for number, arm in enumerate(design.arms)}, decision.largest
    parts = {
        "supported": supported(decision),
        "unsupported": unsupported(decision),
        "decision": decision,
        "largest": largest,
        "laws": _laws(decision, styles) if any(decision.laws.values()) else None,
        "parts": _parts(decision, largest) if largest is not None and decision.parts else None,
        "encoders": _encoders(decision, styles) if decision.encoders else None,
    }
    if largest is not None:
        parts |= {
            "results": _results(decision, styles),
            "legend": [(styles[cell.arm], cell.arm) for cell in largest.cells],
            "charts": _charts(decision, largest, styles),
            "costs": _costs(decision, styles),
            "noise": _noise(decision, largest, styles),
        }
    return Opening(title=title, html=page.fragment("compare/decision.html", parts), data=as_json(decision))


# ---- Tables --------------------------------------------------------------------------------------


def _results(decision: Decision, styles: dict[str, int]) -> Table:
    columns = [
        _ARM,
        _SIZE,
        Column("Bits per byte", "mean, 95 % over seeds", sorted=len(decision.rankings) == 1),
        Column("Behind the best", "95 % over documents; over seeds"),
        Column("Clear", "both above zero", number=False),
        Column("FLOPs", "spent"),
        Column("Bytes", "seen"),
        Column("Params", "all"),
        Column("Seeds"),
    ]
    rows = [
        [
            row_head(cell.arm, styles[cell.arm]),
            text_cell(cell.size),
            Cell(cell.mean, f"{cell.mean:.3f}", _small(cell.interval), strong=True),
            *_behind(ranking, cell),
            *(
                Cell(cell.average(key), si(cell.average(key), unit))
                for key, unit in (("flops", ""), ("bytes_seen", "B"), ("parameters", ""))
            ),
            Cell(len(cell.runs), str(len(cell.runs))),
        ]
        for ranking in reversed(decision.rankings)
        for cell in ranking.cells
    ]
    return Table("Arms at each size, largest first. A heading sorts by its column.", columns, rows)


def _behind(ranking: Ranking, cell: ArmAtSize) -> list[Cell]:
    if cell.arm not in ranking.behind:
        return [Cell(0.0, "best"), Cell("best", "")]
    difference = ranking.behind[cell.arm]
    small = [*_small(difference.over_documents), *_small(difference.over_seeds)]
    return [Cell(difference.bits, f"{difference.bits:.3f}", small), text_cell("yes" if difference.clear else "no")]


def _small(interval: Interval | None) -> list[str]:
    return [] if interval is None else [f"{interval[0]:.3f} to {interval[1]:.3f}"]


def _laws(decision: Decision, styles: dict[str, int]) -> Table:
    columns = [
        _ARM,
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
        numbers = [law.slope, *(law.slope_interval or (None, None))]
        rows.append(
            [
                row_head(arm, styles[arm]),
                *(Cell(number, fixed(number, 4)) for number in numbers),
                Cell(law.degrees + 2, str(law.degrees + 2)),
                *(_crossing(decision, arm, other) for other in decision.laws),
            ]
        )
    return Table("Bits per byte as a power of FLOPs, and where arms cross", columns, rows)


def _crossing(decision: Decision, arm: str, other: str) -> Cell:
    point = decision.crossings.get((arm, other)) or decision.crossings.get((other, arm))
    if point is None or point.flops is None:
        return Cell(None, "–")
    shown = (
        si(point.flops) if point.measured else f"({si(point.flops)})" if 1e-3 < point.flops < 1e30 else "(nowhere near)"
    )
    ends = [si(min(end, 1e30)) for end in point.interval if end is not None and end > 1e-3]
    return Cell(point.flops, shown, [" to ".join(ends)] if len(ends) == 2 and point.measured else [])


def _parts(decision: Decision, largest: Ranking) -> Table:
    arms = [cell.arm for cell in largest.cells]
    columns = [
        Column("Part", number=False),
        Column("Kind", number=False),
        Column("Documents"),
        Column("Bytes"),
        *(Column(arm, "bits per byte") for arm in arms),
    ]
    rows = [
        [
            row_head(part.name),
            text_cell(part.kind),
            Cell(part.num_documents, fixed(part.num_documents)),
            Cell(part.num_bytes, si(part.num_bytes, "B")),
            *(_part_of(part, arm) for arm in arms),
        ]
        for part in decision.parts
    ]
    return Table(
        "Bits per byte of parts of the held-out text; small: behind the part's best arm, 95 % over documents",
        columns,
        rows,
    )


def _part_of(part: Part, arm: str) -> Cell:
    bits, is_best = part.bits_per_byte[arm], arm == part.best
    return Cell(bits, f"{bits:.3f}", ["best"] if is_best else _small(part.behind.get(arm)), strong=is_best)


_ENCODER_COLUMNS = {
    "detection_nats": Column("Detection", "nats a position"),
    "always_real_nats": Column("Always real", "nats a position"),
    "auc": Column("AUC", "of detection"),
    "predicted_nats": Column("Prediction", "nats a chosen position"),
    "predicted_right": Column("Prediction", "share right"),
}


def _encoders(decision: Decision, styles: dict[str, int]) -> Table:
    rows = [
        [
            row_head(cell.arm, styles[cell.arm]),
            text_cell(cell.size),
            *(_over_seeds(cell.values(key)) for key in _ENCODER_COLUMNS),
        ]
        for cell in decision.encoders
    ]
    return Table(
        "What encoders detect and predict: means over seeds with their 95 % intervals. They have no bits per byte.",
        [_ARM, _SIZE, *_ENCODER_COLUMNS.values()],
        rows,
    )


def _over_seeds(values: Sequence[float | None]) -> Cell:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Cell(None, fixed(None))
    return Cell(fmean(known), f"{fmean(known):.4f}", _small(mean_interval(known)))


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


def _costs(decision: Decision, styles: dict[str, int]) -> Table:
    cells = [*(cell for ranking in decision.rankings for cell in ranking.cells), *decision.encoders]
    rows = []
    for cell in (cell for size in reversed(decision.design.sizes) for cell in cells if cell.size == size):
        per_id = cell.average("bytes_per_id")
        values = {key: cell.average(key) for key in _COST_COLUMNS}
        values["ids_per_kilobyte"] = 1000 / per_id if per_id else None
        costs = [Cell(values[key], show(values[key])) for key, (_, show) in _COST_COLUMNS.items()]
        rows.append([row_head(cell.arm, styles[cell.arm]), text_cell(cell.size), *costs])
    columns = [_ARM, _SIZE, *(column for column, _ in _COST_COLUMNS.values())]
    return Table("What a byte of text costs, by the ids that the held-out text takes", columns, rows)


def _noise(decision: Decision, largest: Ranking, styles: dict[str, int]) -> Table | None:
    encoders = [cell for cell in decision.encoders if cell.size == largest.size]
    cells = [cell for cell in (*largest.cells, *encoders) if cell.noise]
    if not cells:
        return None
    rates = sorted({rate for cell in cells for rate in cell.noise})
    columns = [
        _ARM,
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
                row_head(cell.arm, styles[cell.arm]),
                *(Cell(value, fixed(value, 3)) for value in bits),
                *(Cell(value, percent(value)) for value in accuracy),
            ]
        )
    return Table(f"Size {largest.size} on text with wrong characters", columns, rows)


# ---- Charts --------------------------------------------------------------------------------------


def _charts(decision: Decision, largest: Ranking, styles: dict[str, int]) -> list[str]:
    """All held-out text over the sizes, then each size while training, the largest first."""
    figures = [_over_sizes(decision, largest, styles, axis) for axis in _AXES]
    return figures + [
        _while_training(ranking, styles, axis) for ranking in reversed(decision.rankings) for axis in _AXES
    ]


def _over_sizes(decision: Decision, largest: Ranking, styles: dict[str, int], axis: Axis) -> str:
    lines = []
    for arm in (cell.arm for cell in largest.cells):
        cells = [cell for ranking in decision.rankings for cell in ranking.cells if cell.arm == arm]
        points = [(_known(cell.average(axis.key)), cell.mean) for cell in cells]
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


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _while_training(ranking: Ranking, styles: dict[str, int], axis: Axis) -> str:
    lines = [Line(label=cell.arm, style=styles[cell.arm], points=_mean_curve(cell, axis)) for cell in ranking.cells]
    return chart.figure(f"Size {ranking.size} while training, against {axis.name}", lines, axis)


def _mean_curve(cell: ArmAtSize, axis: Axis) -> list[tuple[float, float]]:
    """Means over seeds at the steps that all of them were evaluated at."""
    by_step = [
        {point["step"]: point for point in run.curve if None not in (point[axis.key], point["bits_per_byte"])}
        for run in cell.runs.values()
    ]
    steps = sorted(set.intersection(*map(set, by_step)))
    mean = lambda step, key: fmean(points[step][key] for points in by_step)
    return [(mean(step, axis.key), mean(step, "bits_per_byte")) for step in steps]
