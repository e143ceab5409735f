"""The page of a report: its tables, and the template around them and the charts.

Every text of a run goes through `_e`, and the page's own policy lets no script run but `report.js`.
"""

import math
import pathlib
import typing
from collections.abc import Callable, Sequence

from train.report import chart, page
from train.report.chart import Axis, Line
from train.report.findings import Group, Report
from train.report.page import (
    NOTHING as _NOTHING,
    Column as _Column,
    cell as _td,
    escape as _e,
    fixed,
    percent,
    row_head as _row_head,
    short,
    si,
    some as _some,
    table as _table,
    with_code,
)
from train.report.runs import Arm

_BYTES, _FLOPS = Axis("bytes_seen", "bytes seen", "B"), Axis("flops", "FLOPs spent", "")


def render(report: Report) -> str:
    """The whole page as HTML that loads nothing."""
    styles = {arm.label: index for index, arm in enumerate(report.arms)}
    several = len(report.groups) > 1
    order = "".join(f"<p>{_e(line)}</p>" for line in report.order)
    groups = "".join(_group(group, f": {_e(group.name)}" if several else "", styles) for group in report.groups)
    no_samples = "<p>None. <code>toklab sample RUN --prompt TEXT</code> draws some.</p>"
    parts = {
        "title": _e(report.opening.title if report.opening else f"Bits per byte of {_some(len(report.arms), 'arm')}"),
        "findings": (
            ""
            if report.opening
            else "".join(f'<p class="finding">{_e(finding)}</p>' for finding in report.findings) + order
        ),
        "warnings": _warnings(report.warnings),
        "opening": (
            f"{report.opening.html}<section><h2>The same documents</h2>{order}</section>" if report.opening else ""
        ),
        "groups": f"<details><summary>Every run by itself</summary>{groups}</details>" if report.opening else groups,
        "samples": "".join(map(_samples, report.arms)) or no_samples,
        "runs": "".join(map(_run, report.arms)),
    }
    return page.render(pathlib.Path(__file__).with_name("report.html"), parts)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{with_code(warning)}</li>" for warning in warnings)
    return f'<section class="warnings"><h2>Before you compare</h2><ul>{items}</ul></section>'


def _group(group: Group, name: str, styles: dict[str, int]) -> str:
    """The table, the charts and the domains of arms that may be compared."""
    domains = sorted({domain for arm in group.arms for domain in arm.domains})
    budget = f"<p>{_e(group.budget)}</p>" if group.budget else ""
    judged = [arm for arm in group.arms if arm.is_encoder or arm.finetuned or arm.minimal_pairs]
    by_task = f"<section><h2>Encoders and tasks{name}</h2>{_tasks_table(judged, styles)}</section>" if judged else ""
    by_domain = f"<section><h2>Domains{name}</h2>{_domains_table(group, domains)}</section>" if domains else ""
    return (
        f"<section><h2>Arms{name}</h2>{budget}{_arms_table(group, styles, domains)}</section>"
        f"{by_task}<section><h2>Charts{name}</h2>{_charts(group, styles)}</section>{by_domain}"
    )


# ---- Tables --------------------------------------------------------------------------------------


# How numbers of rows, evaluations and scores read, by key.
_SHOW: dict[str, Callable[[typing.Any], str]] = {
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


def _arms_table(group: Group, styles: dict[str, int], domains: list[str]) -> str:
    columns = [_Column(Arm, number=False), _Column("Bits per byte", "with 95 % interval", sorted=True)]
    columns += [*_ARM_COLUMNS.values(), *(_Column(domain, "bits per byte") for domain in domains)]
    ends = [end for arm in group.arms for evaluation in arm.evaluations for end in evaluation["interval_95"] or ()]
    whisker_x = chart.scale(min(ends), max(ends), 5, 95) if ends else None
    rows = []
    for arm in group.arms:
        row = arm.row
        badge = "" if arm.finished else f' <span class="badge">{_e(row["state"])}</span>'
        cells = [_row_head(arm.label, chart.key(styles[arm.label]), badge)]
        cells += [_td(row["bits_per_byte"], _result(row, whisker_x)), *_cells(row, *_ARM_COLUMNS)]
        for domain in domains:
            cells += _cells(arm.domains.get(domain, {"bits_per_byte": None}), "bits_per_byte")
        rows.append(cells)
    return _table("Arms, best first. A heading sorts by its column.", columns, rows)


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


def _tasks_table(arms: Sequence[Arm], styles: dict[str, int]) -> str:
    """What encoders are judged by, and what any arm came to when it was fine-tuned."""
    tasks = sorted({task for arm in arms for task in arm.task_scores})
    columns = [
        _Column(Arm, number=False),
        *_TASK_COLUMNS.values(),
        *(_Column(task, f"{metric}, median over seeds") for task, metric in tasks),
    ]
    rows = []
    for arm in arms:
        cells = [_row_head(arm.label, chart.key(styles[arm.label])), *_cells(arm.row, *_TASK_COLUMNS)]
        for task in tasks:
            score = arm.task_scores.get(task, dict.fromkeys(("median", "low", "high")))
            spread = "" if score["low"] is None else f"<small>{score['low']:.3f} to {score['high']:.3f}</small>"
            cells.append(_td(score["median"], fixed(score["median"], 3) + spread))
        rows.append(cells)
    return _table(
        "What encoders detect and predict, and fine-tuned scores. A heading sorts by its column.", columns, rows
    )


def _result(row: dict, whisker_x: Callable[[float], float] | None) -> str:
    """Bits per byte with the interval, drawn on a scale that all arms of a table share."""
    number, low, high = row["bits_per_byte"], row["bits_per_byte_low"], row["bits_per_byte_high"]
    if number is None and row["objective"] != "causal":
        return f"none<small>{_e(row['objective'])}</small>"
    if number is None:
        seen = row["while_training_bits_per_byte"]
        return "not evaluated" + ("" if seen is None else f"<small>{seen:.3f} on a subset while training</small>")
    if low is None:
        return f"<strong>{number:.3f}</strong>"
    left, middle, right = (f"{whisker_x(value):.1f}" for value in (low, number, high))
    return (
        f'<strong>{number:.3f}</strong><svg class="whisker" viewBox="0 0 100 10" aria-hidden="true">'
        f'<path d="M{left} 5H{right}M{left} 2V8M{right} 2V8"/><circle cx="{middle}" cy="5" r="3"/></svg>'
        f"<small>{low:.3f} to {high:.3f}</small>"
    )


def _domains_table(group: Group, domains: list[str]) -> str:
    columns = [_Column("Domain", number=False, sorted=True), _Column(Arm, number=False), _Column("Bits per byte")]
    columns += [_Column("Interval", "from"), _Column("Interval", "to")]
    columns += [_Column("Documents", "held out"), _Column("Bytes", "held out")]
    rows = []
    for domain, arm in ((domain, arm) for domain in domains for arm in group.arms if domain in arm.domains):
        score = arm.domains[domain]
        interval = [_td(end, fixed(end, 3)) for end in score["interval_95"] or (None, None)]
        heads = [_row_head(domain), _td(arm.label, _e(arm.label))]
        rows.append([*heads, *_cells(score, "bits_per_byte"), *interval, *_cells(score, "num_documents", "num_bytes")])
    return _table("Bits per byte by domain", columns, rows)


def _points_table(group: Group) -> str:
    columns = [_Column(Arm, number=False), _Column("Step"), _Column("Bytes", "seen"), _Column("FLOPs", "spent")]
    columns += [_Column("Bits per byte"), _Column("Documents", "held out", number=False)]
    rows = []
    for arm in group.arms:
        subset = "a subset" if arm.on_its_own_text else "a subset of another text"
        for points, documents in ((arm.curve, f"{subset}, while training"), (arm.evaluations, "all")):
            for point in points:
                numbers = _cells(point, "step", "bytes_seen", "flops", "bits_per_byte")
                rows.append([_row_head(arm.label), *numbers, _td(documents, documents)])
    return _table("The points of the charts", columns, rows)


def _cells(record: dict, *keys: str) -> list[str]:
    return [_td(record[key], _e(_SHOW[key](record[key]))) for key in keys]


# ---- Charts --------------------------------------------------------------------------------------


def _charts(group: Group, styles: dict[str, int]) -> str:
    legend, held_out, training = "", {_BYTES: [], _FLOPS: []}, []
    for arm in group.arms:
        name = _e(arm.label) + ("" if arm.evaluation else " (not evaluated)")
        legend += f"<li>{chart.key(styles[arm.label])}{name}</li>"
        look = {"label": arm.label, "style": styles[arm.label]}
        intervals = [evaluation["interval_95"] or () for evaluation in arm.evaluations]
        for axis, lines in held_out.items():
            curve, final = _points(arm.curve if arm.on_its_own_text else [], axis), _points(arm.evaluations, axis)
            lines.append(Line(**look, points=curve, final=final, intervals=intervals if final else ()))
        training.append(Line(**look, points=_thinned(_points(arm.training, _BYTES))))
    held_out_figures = ""
    for axis, lines in held_out.items():
        held_out_figures += chart.figure(f"Held-out bits per byte against {axis.name}", lines, axis)
    training_figure = chart.figure("Training bits per byte against bytes seen", training, _BYTES)
    return f"""
<ul class="legend">{legend}</ul>
<label class="log"><input type="checkbox"> logarithmic x axis</label>
<div class="charts">{held_out_figures or "<p>No evaluation to draw.</p>"}</div>
<p class="caption">Lines: evaluations while training, on a fixed subset of the held-out documents. Large filled marks:
the evaluation on all held-out documents, with its 95&nbsp;% interval. The two are on different documents and need not
meet. Early values above the frame are cut off; the table has them.</p>
<details><summary>The points as a table</summary>{_points_table(group)}</details>
<details><summary>Bits per byte of the training batches</summary>
<div class="charts">{training_figure or "<p>No training step to draw.</p>"}</div>
<p class="caption">Means over neighbouring steps of the text being trained on. Not held out, so not comparable with the
charts above.</p>
</details>
"""


def _points(records: list[dict], axis: Axis) -> list[tuple[float, float]]:
    points = [(record[axis.key], record["bits_per_byte"]) for record in records]
    return [point for point in points if None not in point]


def _thinned(points: list[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of neighbours."""
    size = max(1, math.ceil(len(points) / most))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


# ---- Samples and runs ----------------------------------------------------------------------------


def _samples(arm: Arm) -> str:
    figures = ""
    for sample in arm.samples:
        settings = ("step", "temperature", "top_k", "top_p", "seed")
        how = ", ".join(f"{name.replace('_', ' ')} {sample[name]:g}" for name in settings if sample[name] is not None)
        text = f"<pre><b>{_e(sample['prompt'])}</b>{_e(sample['text'])}</pre>"
        figures += f'<figure class="sample">{text}<figcaption>{how}</figcaption></figure>'
    return f"<h3>{_e(arm.label)}</h3>{figures}" if figures else ""


def _goodput(summary: dict) -> str:
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


def _run(arm: Arm) -> str:
    summary, row = arm.summary, arm.row
    corpora = [f"{corpus['path']} ({short(corpus['content_hash'])})" for corpus in summary["corpora"]]
    held_out = [
        f"{fixed(evaluation['num_documents'])} documents, {si(evaluation['num_bytes'], 'B')} "
        f"({short(evaluation['corpus_content_hash'])})"
        for evaluation in arm.evaluations
    ]
    rate, outside = si(row["tokens_per_second"]), percent(row["outside_step_share"])
    facts = {
        "Folder": arm.folder,
        "State": f"{row['state']}, {fixed(row['steps'])} steps, {fixed(row['skipped_steps'])} skipped",
        "Trained on": ", ".join(corpora) or _NOTHING,
        "Evaluated on": "".join(held_out) or "nothing yet",
        "Representation": f"{row['representation']}, fingerprint {short(row['fingerprint'])}",
        "Device": row["device"],
        "Time": f"{fixed(row['seconds'])} s, {rate} tokens/s, {outside} outside the step",
        "Goodput": _goodput(summary),
        "Versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{_e(value)}</dd></div>" for name, value in facts.items())
    columns = [_Column("Component", number=False), _Column("Parameters"), _Column("FLOPs", "per token")]
    parameters, flops = summary["parameters"], summary["flops_per_token"]
    names = sorted(parameters | flops, key=lambda name: name == "total")  # the total last
    counts = ((name, parameters.get(name), flops.get(name)) for name in names)
    components = [[_row_head(name), _td(count, fixed(count)), _td(spent, si(spent))] for name, count, spent in counts]
    return (
        f"<details><summary>{_e(arm.label)}</summary><dl>{listed}</dl>{_table('Components', columns, components)}"
        f'<h3>Config</h3><pre class="config">{_e(arm.config)}</pre></details>'
    )
