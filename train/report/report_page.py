"""The page of a report: what its template is filled with. Every text of a run is escaped there."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from train.report import chart, page
from train.report.chart import Axis, Line
from train.report.findings import Group, Report
from train.report.page import (
    NOTHING as _NOTHING,
    Cell,
    Column as _Column,
    Table,
    fixed,
    percent,
    row_head,
    short,
    si,
    some as _some,
    text_cell,
)
from train.report.runs import RunRead

_BYTES, _FLOPS = Axis("bytes_seen", "bytes seen", "B"), Axis("flops", "FLOPs spent", "")
_ARM = _Column("Arm", number=False)


def render(report: Report) -> str:
    """The whole page as HTML that loads nothing."""
    styles = {arm.label: index for index, arm in enumerate(report.arms)}
    parts = {
        "title": report.opening.title if report.opening else f"Bits per byte of {_some(len(report.arms), 'arm')}",
        "report": report,
        "groups": [_group(group, styles, len(report.groups) > 1) for group in report.groups],
        "settings": _settings,
        "runs": [(arm, _facts(arm), _components_table(arm.summary)) for arm in report.arms],
    }
    return page.render("report/report.html", parts)


def _group(group: Group, styles: dict[str, int], several: bool) -> dict[str, Any]:
    """The tables and charts of arms that may be compared."""
    domains = sorted({domain for arm in group.arms for domain in arm.domains})
    judged = [arm for arm in group.arms if arm.is_encoder or arm.finetuned or arm.minimal_pairs]
    return {
        "name": f": {group.name}" if several else "",
        "budget": group.budget,
        "arms": _arms_table(group, styles, domains),
        "tasks": _tasks_table(judged, styles) if judged else None,
        "legend": [
            (styles[arm.label], arm.label + ("" if arm.evaluation else " (not evaluated)")) for arm in group.arms
        ],
        "held_out_charts": [_held_out_chart(group, styles, axis) for axis in (_BYTES, _FLOPS)],
        "training_chart": _training_chart(group, styles),
        "points": _points_table(group),
        "domains": _domains_table(group, domains) if domains else None,
    }


# ---- Tables --------------------------------------------------------------------------------------


# How numbers of rows, evaluations and scores read, by key.
_SHOW: dict[str, Callable[[Any], str]] = {
    "representation": str,
    "vocab_size": fixed,
    "bytes_per_token": lambda value: fixed(value, 2),
    "parameters": si,
    "parameters_without_embeddings": si,
    "flops_per_byte": si,
    "fit_flops_per_byte": si,
    "bytes_per_id": lambda value: fixed(value, 2),
    "uniform_bits_per_byte": lambda value: fixed(value, 3),
    "unigram_bits_per_byte": lambda value: fixed(value, 3),
    "stop_bits_per_byte": lambda value: fixed(value, 3),
    "closing_bits_per_byte": lambda value: fixed(value, 3),
    "bytes_seen": lambda value: si(value, "B"),
    "flops": si,
    "bytes_per_second": lambda value: si(value, "B/s"),
    "outside_step_share": percent,
    "objective": lambda value: value.replace("_", " "),
    "blimp": lambda value: fixed(value, 3),
    **dict.fromkeys(
        ("detection_nats", "always_real_nats", "auc", "predicted_nats", "predicted_right"),
        lambda value: fixed(value, 4),
    ),
    "step": fixed,
    "bits_per_byte": lambda value: fixed(value, 3),
    "num_documents": fixed,
    "num_bytes": lambda value: si(value, "B"),
}
# What the table of arms shows of a row, between the result and the domains.
_ARM_COLUMNS = {
    "representation": _Column("Representation", number=False),
    "vocab_size": _Column("Vocab", "ids"),
    "bytes_per_id": _Column("Bytes", "per id, held out"),
    "uniform_bits_per_byte": _Column("Uniform", "bits per byte"),
    "unigram_bits_per_byte": _Column("Unigram", "bits per byte"),
    "stop_bits_per_byte": _Column("Lost", "to STOP, bits per byte"),
    "closing_bits_per_byte": _Column("Lost", "to closing, bits per byte"),
    "parameters": _Column("Params", "all"),
    "parameters_without_embeddings": _Column("Params", "no embedding, softmax"),
    "flops_per_byte": _Column("FLOPs", "per byte"),
    "fit_flops_per_byte": _Column("FLOPs", "of the compressor's fit, per byte seen"),
    "bytes_seen": _Column("Bytes", "seen"),
    "flops": _Column("FLOPs", "spent"),
    "bytes_per_second": _Column("Speed", "bytes per second"),
    "outside_step_share": _Column("Outside", "step, of time"),
}


def _arms_table(group: Group, styles: dict[str, int], domains: list[str]) -> Table:
    columns = [_ARM, _Column("Bits per byte", "with 95 % interval", sorted=True)]
    columns += [*_ARM_COLUMNS.values(), *(_Column(domain, "bits per byte") for domain in domains)]
    ends = [end for arm in group.arms for evaluation in arm.evaluations for end in evaluation["interval_95"] or ()]
    whisker_x = chart.scale(min(ends), max(ends), 5, 95) if ends else None
    rows = []
    for arm in group.arms:
        row = arm.row
        head = row_head(arm.label, styles[arm.label], "" if arm.finished else row["state"])
        cells = [head, _result(row, whisker_x), *_cells(row, *_ARM_COLUMNS)]
        for domain in domains:
            cells += _cells(arm.domains.get(domain, {"bits_per_byte": None}), "bits_per_byte")
        rows.append(cells)
    return Table("Arms, best first. A heading sorts by its column.", columns, rows)


# What the table of encoders and tasks shows of a row, before the tasks.
_TASK_COLUMNS = {
    "objective": _Column("Objective", number=False),
    "parameters": _Column("Params", "all"),
    "flops": _Column("FLOPs", "of pretraining, generator included"),
    "detection_nats": _Column("Detection", "nats a position"),
    "always_real_nats": _Column("Always real", "nats a position"),
    "auc": _Column("AUC", "of detection"),
    "predicted_nats": _Column("Prediction", "nats a chosen position"),
    "predicted_right": _Column("Prediction", "share right"),
    "blimp": _Column("BLiMP", "share of pairs"),
}


def _tasks_table(arms: Sequence[RunRead], styles: dict[str, int]) -> Table:
    """What encoders are judged by, and what any arm came to when it was fine-tuned."""
    tasks = sorted({task for arm in arms for task in arm.task_scores})
    columns = [
        _ARM,
        *_TASK_COLUMNS.values(),
        *(_Column(task, f"{metric}, median over seeds") for task, metric in tasks),
    ]
    rows = []
    for arm in arms:
        cells = [row_head(arm.label, styles[arm.label]), *_cells(arm.row, *_TASK_COLUMNS)]
        for task in tasks:
            score = arm.task_scores.get(task, dict.fromkeys(("median", "low", "high")))
            spread = [] if score["low"] is None else [f"{score['low']:.3f} to {score['high']:.3f}"]
            cells.append(Cell(score["median"], fixed(score["median"], 3), spread))
        rows.append(cells)
    return Table(
        "What encoders detect and predict, and fine-tuned scores. A heading sorts by its column.", columns, rows
    )


def _result(row: dict[str, Any], whisker_x: Callable[[float], float] | None) -> Cell:
    """Bits per byte with the interval, drawn on a scale that all arms of a table share."""
    number, low, high = row["bits_per_byte"], row["bits_per_byte_low"], row["bits_per_byte_high"]
    seen = row["while_training_bits_per_byte"]
    if number is None and seen is None and row["objective"] != "causal":
        return Cell(None, "none", [row["objective"]])
    if number is None:
        return Cell(None, "not evaluated", [] if seen is None else [f"{seen:.3f} on a subset while training"])
    if low is None:
        return Cell(number, f"{number:.3f}", strong=True)
    assert whisker_x is not None, "the scale is of all intervals"
    whisker = tuple(f"{whisker_x(value):.1f}" for value in (low, number, high))
    return Cell(number, f"{number:.3f}", [f"{low:.3f} to {high:.3f}"], strong=True, whisker=whisker)


def _domains_table(group: Group, domains: list[str]) -> Table:
    columns = [_Column("Domain", number=False, sorted=True), _ARM, _Column("Bits per byte")]
    columns += [_Column("Interval", "from"), _Column("Interval", "to")]
    columns += [_Column("Documents", "held out"), _Column("Bytes", "held out")]
    rows = []
    for domain, arm in ((domain, arm) for domain in domains for arm in group.arms if domain in arm.domains):
        score = arm.domains[domain]
        interval = [Cell(end, fixed(end, 3)) for end in score["interval_95"] or (None, None)]
        heads = [row_head(domain), text_cell(arm.label)]
        rows.append([*heads, *_cells(score, "bits_per_byte"), *interval, *_cells(score, "num_documents", "num_bytes")])
    return Table("Bits per byte by domain", columns, rows)


def _points_table(group: Group) -> Table:
    columns = [_ARM, _Column("Step"), _Column("Bytes", "seen"), _Column("FLOPs", "spent")]
    columns += [_Column("Bits per byte"), _Column("Documents", "held out", number=False)]
    rows = []
    for arm in group.arms:
        subset = "a subset" if arm.on_its_own_text else "a subset of another text"
        for points, documents in ((arm.curve, f"{subset}, while training"), (arm.evaluations, "all")):
            for point in points:
                numbers = _cells(point, "step", "bytes_seen", "flops", "bits_per_byte")
                rows.append([row_head(arm.label), *numbers, text_cell(documents)])
    return Table("The points of the charts", columns, rows)


def _components_table(summary: dict[str, Any]) -> Table:
    columns = [_Column("Component", number=False), _Column("Parameters"), _Column("FLOPs", "per token")]
    parameters, flops = summary["parameters"], summary["flops_per_token"]
    names = sorted(parameters | flops, key=lambda name: name == "total")  # the total last
    counts = ((name, parameters.get(name), flops.get(name)) for name in names)
    rows = [[row_head(name), Cell(count, fixed(count)), Cell(spent, si(spent))] for name, count, spent in counts]
    return Table("Components", columns, rows)


def _cells(record: dict[str, Any], *keys: str) -> list[Cell]:
    return [Cell(record[key], _SHOW[key](record[key])) for key in keys]


# ---- Charts --------------------------------------------------------------------------------------


def _held_out_chart(group: Group, styles: dict[str, int], axis: Axis) -> str:
    lines = []
    for arm in group.arms:
        curve, final = _points(arm.curve if arm.on_its_own_text else [], axis), _points(arm.evaluations, axis)
        intervals = [evaluation["interval_95"] or () for evaluation in arm.evaluations] if final else ()
        lines.append(Line(label=arm.label, style=styles[arm.label], points=curve, final=final, intervals=intervals))
    return chart.figure(f"Held-out bits per byte against {axis.name}", lines, axis)


def _training_chart(group: Group, styles: dict[str, int]) -> str:
    lines = [
        Line(label=arm.label, style=styles[arm.label], points=_thinned(_points(arm.training, _BYTES)))
        for arm in group.arms
    ]
    return chart.figure("Training bits per byte against bytes seen", lines, _BYTES)


def _points(records: list[dict[str, Any]], axis: Axis) -> list[tuple[float, float]]:
    points = [(record[axis.key], record["bits_per_byte"]) for record in records]
    return [point for point in points if None not in point]


def _thinned(points: list[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of neighbours."""
    size = max(1, math.ceil(len(points) / most))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


# ---- Samples and runs ----------------------------------------------------------------------------


def _settings(sample: dict[str, Any]) -> str:
    """How a sample was drawn."""
    names = ("step", "temperature", "top_k", "top_p", "seed")
    return ", ".join(f"{name.replace('_', ' ')} {sample[name]:g}" for name in names if sample[name] is not None)


def _goodput(summary: dict[str, Any]) -> str:
    """How much of the run's life went into steps that count, and where the rest went."""
    goodput = summary["goodput"]
    if goodput["seconds"] is None:
        return _NOTHING
    parts = sorted(((seconds or 0, part) for part, seconds in goodput["seconds_by_part"].items()), reverse=True)
    listed = ", ".join(f"{part} {seconds:,.1f} s" for seconds, part in parts if seconds)
    grown = summary["save_memory_growth_bytes"]
    memory = "" if grown is None else f"; saves took up to {si(grown, 'B')} of memory"
    return (
        f"{percent(goodput['share'])} of {goodput['seconds']:,.1f} s over"
        f" {_some(int(goodput['starts'] or 0), 'start')}: {listed}{memory}"
    )


def _by_window(arm: RunRead) -> dict[str, str]:
    """What the run came to by a sliding window, a figure beside which no other one is put."""
    if not arm.by_window:
        return {}
    bits, stride = fixed(arm.by_window["bits_per_byte"], 4), fixed(arm.by_window["stride"])
    return {"By a sliding window": f"{bits} bits per byte, stride {stride}"}


def _facts(arm: RunRead) -> dict[str, str]:
    summary, row = arm.summary, arm.row
    corpora = [f"{corpus['path']} ({short(corpus['content_hash'])})" for corpus in summary["corpora"]]
    held_out = [
        f"{fixed(evaluation['num_documents'])} documents, {si(evaluation['num_bytes'], 'B')} "
        f"({short(evaluation['corpus_content_hash'])})"
        for evaluation in arm.evaluations
    ]
    rate, outside = si(row["tokens_per_second"]), percent(row["outside_step_share"])
    return {
        "Folder": arm.folder,
        "State": f"{row['state']}, {fixed(row['steps'])} steps, {fixed(row['skipped_steps'])} skipped",
        "Trained on": ", ".join(corpora) or _NOTHING,
        "Evaluated on": "".join(held_out) or "nothing yet",
        **_by_window(arm),
        "Representation": f"{row['representation']}, fingerprint {short(row['fingerprint'])}",
        "Device": row["device"],
        "Time": f"{fixed(row['seconds'])} s, {rate} tokens/s, {outside} outside the step",
        "Goodput": _goodput(summary),
        "Versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
