"""The page of a report: tables, charts as SVG, and the template around them. Every text of a run goes through `_e`."""

import base64
import dataclasses
import hashlib
import html
import math
import pathlib
import re
import string
import typing
from collections.abc import Callable, Sequence

if typing.TYPE_CHECKING:
    from train.report import Arm, Group, Report

_THIN = "\N{NARROW NO-BREAK SPACE}"
_NOTHING = "–"
_FOLDER = pathlib.Path(__file__).parent

# Series differ by colour (6), marker (5) and dash (4) at once, so that no two of 60 look the same and colour is never needed.
_MARKS = ("M-4 0A4 4 0 1 0 4 0 4 4 0 1 0-4 0Z", "M-3.6-3.6H3.6V3.6H-3.6Z", "M0-4.6 4.4 3.4H-4.4Z", "M0-5 5 0 0 5-5 0Z", "M0 4.6 4.4-3.4H-4.4Z")
_COLORS, _DASHES = 6, 4
_MARKERS_A_LINE = 12


def render(report: "Report") -> str:
    """The whole page as HTML that loads nothing."""
    read = lambda name: (_FOLDER / name).read_text(encoding="utf-8")  # noqa: E731
    script = read("report.js")
    samples = "".join(_samples(arm) for arm in report.arms if arm.samples)
    styles = {arm.label: index for index, arm in enumerate(report.arms)}
    return string.Template(read("report.html")).substitute(
        css=read("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=_e("Bits per byte of " + _some(len(report.arms), "arm")),
        findings="".join(f'<p class="finding">{_e(group.finding)}</p>' for group in report.groups),
        warnings=_warnings(report.warnings),
        groups="".join(_group(group, styles, several=len(report.groups) > 1) for group in report.groups),
        samples=samples or "<p>No run has samples; <code>toklab sample RUN --prompt TEXT</code> writes some.</p>",
        runs="".join(map(_run, report.arms)),
    )


def fixed(value: float | None, decimals: int) -> str:
    """`1234.5 -> "1,234.50"`; a dash for None."""
    return _NOTHING if value is None else f"{value:,.{decimals}f}"


def si(value: float | None, unit: str = "", form: str = "#.3g") -> str:
    """`12_000_000, "B" -> "12.0 MB"`; a dash for None."""
    if value is None:
        return _NOTHING
    power = min(max(int(math.log10(abs(value)) // 3), 0), 8) if value else 0
    if abs(value) / 1000**power >= 999.5 and power < 8:  # would round to 1000
        power += 1
    scaled = value / 1000**power
    digits = format(scaled, form).rstrip(".") if abs(scaled) < 999.5 else f"{scaled:.0f}"
    return f"{digits}{_THIN}{' kMGTPEZY'[power].strip()}{unit}".rstrip()


def percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.1f}{_THIN}%"


def _e(value: object) -> str:
    return html.escape(str(value))


def _with_code(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", _e(text))


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _warnings(warnings: Sequence[str]) -> str:
    items = "".join(f"<li>{_with_code(warning)}</li>" for warning in warnings)
    return f'<section class="warnings" aria-label="Before you compare"><h2>Before you compare</h2><ul>{items}</ul></section>' if items else ""


# ---- Tables -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Column:
    """The head of a column; `note` is its small print, `sorted` says that the rows are in its order at first."""

    title: str
    note: str = ""
    number: bool = True
    sorted: bool = False


_ARM_COLUMNS: tuple[tuple[_Column, str, Callable[[typing.Any], str]], ...] = (
    (_Column("Representation", number=False), "representation", str),
    (_Column("Vocab", "ids"), "vocab_size", lambda v: fixed(v, 0)),
    (_Column("Bytes", "per token"), "bytes_per_token", lambda v: fixed(v, 2)),
    (_Column("Params", "all"), "parameters", lambda v: si(v)),
    (_Column("Params", "no embedding, softmax"), "parameters_without_embeddings", lambda v: si(v)),
    (_Column("FLOPs", "per byte"), "flops_per_byte", lambda v: si(v)),
    (_Column("Bytes", "seen"), "bytes_seen", lambda v: si(v, "B")),
    (_Column("FLOPs", "spent"), "flops", lambda v: si(v)),
    (_Column("Speed", "bytes per second"), "bytes_per_second", lambda v: si(v, "B/s")),
    (_Column("Outside", "step, of time"), "outside_step_share", lambda v: percent(v)),
)


def _group(group: "Group", styles: dict[str, int], several: bool) -> str:
    """The table, the charts and the domains of arms that may be compared."""
    on = "not evaluated" if group.corpus is None else f"held-out text {group.corpus[:12]}"
    name = f": {_e(on)}" if several else ""
    domains = sorted({domain for arm in group.arms for domain in arm.domains})
    budget = f"<p>{_e(group.budget)}</p>" if group.budget else ""
    return (f"<section><h2>Arms{name}</h2>{budget}{_arms_table(group, styles, domains)}</section>"
            f"<section><h2>Charts{name}</h2>{_charts(group, styles)}</section>"
            + (f"<section><h2>Domains{name}</h2>{_domains_table(group, domains)}</section>" if domains else ""))


def _arms_table(group: "Group", styles: dict[str, int], domains: list[str]) -> str:
    columns = [_Column("Arm", number=False), _Column("Bits per byte", "with 95 % interval", sorted=True), *(column for column, _, _ in _ARM_COLUMNS),
               *(_Column(domain, "bits per byte") for domain in domains)]
    whiskers = _whiskers(group)
    rows = []
    for arm in group.arms:
        row = arm.row
        badge = "" if arm.finished else f' <span class="badge">{_e(row["state"])}</span>'
        scores = [arm.domains.get(domain, {}).get("bits_per_byte") for domain in domains]
        rows.append([_row_head(arm.label, _key(styles[arm.label]), badge), _td(row["bits_per_byte"], _bits_per_byte_cell(row, whiskers)),
                     *(_td(row[key], _e(show(row[key]))) for _, key, show in _ARM_COLUMNS), *(_td(score, fixed(score, 3)) for score in scores)])
    return _table("Arms, best first. A heading sorts by its column.", columns, rows)


def _bits_per_byte_cell(row: dict, whisker: Callable[[dict], str]) -> str:
    if row["bits_per_byte"] is None:
        seen = row["while_training_bits_per_byte"]
        return "not evaluated" + ("" if seen is None else f"<small>{seen:.3f} on a subset while training</small>")
    low, high = fixed(row["bits_per_byte_low"], 3), fixed(row["bits_per_byte_high"], 3)
    interval = f"<small>{low} to {high}</small>" if row["bits_per_byte_low"] is not None else ""
    return f"<strong>{row['bits_per_byte']:.3f}</strong>{whisker(row)}{interval}"


def _whiskers(group: "Group") -> Callable[[dict], str]:
    """Draws an arm's interval on a scale that all arms of the group share."""
    rows = [row for row in (arm.row for arm in group.arms) if row["bits_per_byte_low"] is not None and row["bits_per_byte_high"] is not None]
    ends = [row[key] for row in rows for key in ("bits_per_byte_low", "bits_per_byte", "bits_per_byte_high") if row[key] is not None]

    def draw(row: dict) -> str:
        if row not in rows:
            return ""
        x = _scale(min(ends), max(ends), 5, 95)
        low, mid, high = (f"{x(row[key]):.1f}" for key in ("bits_per_byte_low", "bits_per_byte", "bits_per_byte_high"))
        return (f'<svg class="whisker" viewBox="0 0 100 10" aria-hidden="true"><path d="M{low} 5H{high}M{low} 2V8M{high} 2V8"/>'
                f'<circle cx="{mid}" cy="5" r="3"/></svg>')

    return draw


def _domains_table(group: "Group", domains: list[str]) -> str:
    columns = [_Column("Domain", number=False, sorted=True), _Column("Arm", number=False), _Column("Bits per byte"), _Column("Interval", "from"),
               _Column("Interval", "to"), _Column("Documents", "held out"), _Column("Bytes", "held out")]
    rows = []
    for domain, arm in ((domain, arm) for domain in domains for arm in group.arms if domain in arm.domains):
        score = arm.domains[domain]
        low, high = score["interval_95"] or (None, None)
        rows.append([_row_head(domain), _td(arm.label, _e(arm.label)), *(_td(value, fixed(value, 3)) for value in (score["bits_per_byte"], low, high)),
                     _td(score["num_documents"], fixed(score["num_documents"], 0)), _td(score["num_bytes"], si(score["num_bytes"], "B"))])
    return _table("Bits per byte by domain", columns, rows)


def _table(caption: str, columns: Sequence[_Column], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls in its own frame and whose headings sort; `rows` hold finished cells."""
    heads = "".join(
        f'<th scope="col"{" class=number" if column.number else ""}{" aria-sort=ascending" if column.sorted else ""}><button type="button">'
        f"<span>{_e(column.title)}</span>{f'<small>{_e(column.note)}</small>' if column.note else ''}</button></th>" for column in columns)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{_e(caption)}"><table><caption>{_e(caption)}</caption>'
            f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>")


def _row_head(label: str, before: str = "", after: str = "") -> str:
    return f'<th scope="row" data-value="{_e(label)}">{before}{_e(label)}{after}</th>'


def _td(value: float | str | None, shown: str) -> str:
    """A cell that shows some HTML; `data-value`, absent for None, is what it sorts by."""
    sort = "" if value is None else f' data-value="{_e(value)}"'
    return f"<td{'' if isinstance(value, str) else ' class=number'}{sort}>{shown}</td>"


# ---- Charts -----------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 320, 46, 14, 26, 42


@dataclasses.dataclass(frozen=True)
class _Line:
    """One arm in a chart: points of its curve and, apart from it, its final evaluation with an interval."""

    label: str
    style: int
    points: list[tuple[float, float]]
    final: tuple[float, float] | None = None
    interval: list[float] | None = None


def _charts(group: "Group", styles: dict[str, int]) -> str:
    legend = "".join(f"<li>{_key(styles[arm.label])}{_e(arm.label)}{'' if arm.evaluation else ' (not evaluated)'}</li>" for arm in group.arms)
    axes = (("bytes_seen", "bytes seen", "B"), ("flops", "FLOPs spent", ""))
    held_out = [(f"Held-out bits per byte against {name}", [_held_out(arm, styles[arm.label], key) for arm in group.arms], name, unit) for key, name, unit in axes]
    training = [_Line(arm.label, styles[arm.label], _thinned(_points(arm.training, "bytes_seen"))) for arm in group.arms]
    figures = "".join(_figure(title, lines, name, unit) for title, lines, name, unit in held_out)
    if not figures:
        return "<p>No run has an evaluation to draw.</p>"
    return (
        f'<ul class="legend">{legend}</ul><label class="log"><input type="checkbox"> logarithmic x axis</label><div class="charts">{figures}</div>'
        "<p class=\"caption\">Lines: evaluations while training, on a fixed subset of the held-out documents. Large filled marks: the evaluation on all "
        "held-out documents, with its 95&nbsp;% interval. The two are on different documents and need not meet. Early values above the frame are cut "
        "off; the table has them.</p>"
        f"<details><summary>The points as a table</summary>{_points_table(group)}</details>"
        f"<details><summary>Bits per byte of the training batches</summary><div class=\"charts\">{_figure('Training bits per byte against bytes seen', training, 'bytes seen', 'B')}"
        "</div><p class=\"caption\">Means over neighbouring steps of the text being trained on. Not held out, and so not comparable with the charts above.</p></details>")


def _held_out(arm: "Arm", style: int, key: str) -> _Line:
    final = _points([arm.evaluation], key) if arm.evaluation else []
    return _Line(arm.label, style, _points(arm.curve, key), final[0] if final else None, arm.evaluation["interval_95"] if final else None)


def _points(records: list[dict], key: str) -> list[tuple[float, float]]:
    return [(record[key], record["bits_per_byte"]) for record in records if record[key] is not None and record["bits_per_byte"] is not None]


def _thinned(points: list[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of neighbours."""
    size = math.ceil(len(points) / most)
    parts = [points[i:i + size] for i in range(0, len(points), size or 1)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _points_table(group: "Group") -> str:
    columns = [_Column("Arm", number=False), _Column("Step"), _Column("Bytes", "seen"), _Column("FLOPs", "spent"), _Column("Bits per byte"),
               _Column("Documents", "held out", number=False)]
    rows = [[_row_head(arm.label), _td(record["step"], fixed(record["step"], 0)), _td(record["bytes_seen"], si(record["bytes_seen"], "B")),
             _td(record["flops"], si(record["flops"])), _td(record["bits_per_byte"], fixed(record["bits_per_byte"], 4)), _td(documents, documents)]
            for arm in group.arms
            for records, documents in ((arm.curve, "a subset, while training"), ([arm.evaluation] if arm.evaluation else [], "all"))
            for record in records]
    return _table("The points of the charts", columns, rows)


def _figure(title: str, lines: list[_Line], x_name: str, unit: str) -> str:
    """A chart with its heading, once with a linear x axis and, where x spans a decade, once with a logarithmic one."""
    xs = [x for line in lines for x, _ in [*line.points, *([line.final] if line.final else [])]]
    if not xs:
        return ""
    positive = [x for x in xs if x > 0]
    log = _chart(title, lines, x_name, unit, log=True) if positive and max(positive) >= 10 * min(positive) else ""
    linear = _chart(title, lines, x_name, unit)
    return f'<figure{" class=both" if log else ""}><figcaption>{_e(title)}</figcaption>{linear}{log}</figure>'


def _chart(title: str, lines: list[_Line], x_name: str, unit: str, log: bool = False) -> str:
    """One SVG. Its frame leaves out what lies above every arm's values after a fifth of its run."""
    shown = [(x, y) for line in lines for x, y in [*line.points, *([line.final] if line.final else [])] if x > 0 or not log]
    late = [y for line in lines for x, y in line.points if x >= 0.2 * max(x for x, _ in line.points)]
    ys = (late or []) + [y for line in lines if line.final for y in (line.final[1], *(line.interval or ()))]
    pad = 0.06 * (max(ys) - min(ys)) or 0.05
    low_x, high_x, low_y, high_y = min(x for x, _ in shown) if log else 0, max(x for x, _ in shown), min(ys) - pad, max(ys) + pad
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x, y = _scale(low_x, high_x, _LEFT, right, log), _scale(low_y, high_y, bottom, _TOP)
    grid = "".join(f'<path d="M{_LEFT} {y(v):.1f}H{right}"/><text x="{_LEFT - 7}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.{places}f}</text>'
                   for ticks in [_ticks(low_y, high_y)] for places in [_places(ticks)] for v in ticks)
    grid += "".join(f'<path d="M{x(v):.1f} {bottom}v5"/><text x="{x(v):.1f}" y="{bottom + 18}" text-anchor="middle">{_e(si(v, unit, "g"))}</text>'
                    for v in (_log_ticks if log else _ticks)(low_x, high_x))
    names = f'<text class="name" x="{_LEFT}" y="14">bits per byte</text><text class="name" x="{right}" y="{_HEIGHT - 6}" text-anchor="end">{_e(x_name)}</text>'
    curves, marks = "", ""
    for line in lines:
        inside = [(px, py) for px, py in line.points if px > 0 or not log]
        path = "L".join(f"{x(px):.1f} {y(py):.1f}" for px, py in inside)
        curves += f'<path class="line {_style(line.style)}" d="M{path}"/>' if len(inside) > 1 else ""
        every = math.ceil(len(inside) / _MARKERS_A_LINE)
        marks += "".join(_mark(line, x(px), y(py), f"{si(px, unit)} {x_name}, {py:.3f} bits per byte", "" if (len(inside) - 1 - i) % every == 0 else "quiet")
                         for i, (px, py) in enumerate(inside) if low_y <= py <= high_y)
        if line.final and (line.final[0] > 0 or not log):
            marks += _final_mark(line, x, y, f"{si(line.final[0], unit)} {x_name}, {line.final[1]:.3f} bits per byte on all held-out documents")
    # A nested svg cuts its content off at its border.
    frame = f'<svg x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" viewBox="{_LEFT} {_TOP} {right - _LEFT} {bottom - _TOP}">{curves}</svg>'
    return (f'<svg class="chart {"logarithmic" if log else "linear"}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{_e(title)}, a line for each arm; the points are in the table below"><g class="grid">{grid}</g>{names}{frame}{marks}</svg>')


def _mark(line: _Line, x: float, y: float, tip: str, kind: str = "", size: float = 1) -> str:
    return (f'<path class="mark {kind} {_style(line.style)}" transform="translate({x:.1f} {y:.1f}) scale({size})" d="{_MARKS[line.style % len(_MARKS)]}">'
            f"<title>{_e(line.label)}: {_e(tip)}</title></path>")


def _final_mark(line: _Line, x: Callable, y: Callable, tip: str) -> str:
    px, py = x(line.final[0]), y(line.final[1])
    whisker, interval = "", ""
    if line.interval and None not in line.interval:
        low, high = (y(end) for end in line.interval)
        whisker = f'<path class="error {_style(line.style)}" d="M{px:.1f} {low:.1f}V{high:.1f}M{px - 4:.1f} {low:.1f}h8M{px - 4:.1f} {high:.1f}h8"/>'
        interval = f", 95 % interval {line.interval[0]:.3f} to {line.interval[1]:.3f}"
    return whisker + _mark(line, px, py, tip + interval, "final", size=1.5)


def _key(style: int) -> str:
    return (f'<svg class="key" viewBox="0 0 36 12" aria-hidden="true"><path class="line {_style(style)}" d="M1 6H35"/>'
            f'<path class="mark {_style(style)}" transform="translate(18 6)" d="{_MARKS[style % len(_MARKS)]}"/></svg>')


def _style(index: int) -> str:
    return f"color-{index % _COLORS} dash-{index % _DASHES}"


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    f = math.log10 if log else float
    span = f(high) - f(low) or 1.0
    return lambda value: start + (f(value) - f(low)) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two."""
    raw = ((high - low) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers, or some of them, where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = math.ceil(len(powers) / 6)
    return [v for p in powers[::every] for k in ((1, 2, 5) if len(powers) <= 3 else (1,)) if low <= (v := k * 10.0**p) <= high]


def _places(ticks: list[float]) -> int:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.1
    return min(max(0, -math.floor(math.log10(step) + 1e-9)), 9)


# ---- Samples and runs -------------------------------------------------------------------------------------------------


def _samples(arm: "Arm") -> str:
    def sample(drawn: dict) -> str:
        how = ", ".join(f"{key.replace('_', ' ')} {drawn[key]:g}" for key in ("step", "temperature", "top_k", "top_p", "seed") if drawn[key] is not None)
        return f"<figure class=\"sample\"><pre><b>{_e(drawn['prompt'])}</b>{_e(drawn['text'])}</pre><figcaption>{_e(how)}</figcaption></figure>"

    return f"<h3>{_e(arm.label)}</h3>{''.join(map(sample, arm.samples))}"


def _run(arm: "Arm") -> str:
    summary, row = arm.summary, arm.row
    facts = {
        "Folder": arm.folder,
        "State": f"{row['state']}, {fixed(row['steps'], 0)} steps, {fixed(row['skipped_steps'], 0)} skipped",
        "Trained on": ", ".join(f"{corpus['path']} ({corpus['content_hash'][:12]})" for corpus in summary["corpora"]) or _NOTHING,
        "Evaluated on": f"{_some(int(row['held_out_documents'] or 0), 'document')}, {si(row['held_out_bytes'], 'B')} ({row['held_out_corpus'][:12]})" if arm.evaluation else "nothing yet",
        "Representation": f"{row['representation']}, fingerprint {row['fingerprint'][:12]}",
        "Device": row["device"],
        "Time": f"{fixed(row['seconds'], 0)} s, {si(row['tokens_per_second'])} tokens/s, {percent(row['outside_step_share'])} outside the step",
        "Versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    }
    names = list(dict.fromkeys([*(k for k in (summary["parameters"] | summary["flops_per_token"]) if k != "total"), "total"]))
    parts = [(name, summary["parameters"].get(name), summary["flops_per_token"].get(name)) for name in names]
    columns = [_Column("Component", number=False), _Column("Parameters"), _Column("FLOPs", "per token")]
    rows = [[_row_head(name), _td(count, fixed(count, 0)), _td(flops, si(flops))] for name, count, flops in parts]
    return (f"<details><summary>{_e(arm.label)}</summary><dl>{''.join(f'<div><dt>{key}</dt><dd>{_e(value)}</dd></div>' for key, value in facts.items())}</dl>"
            + _table("Components", columns, rows)
            + f'<h3>Config</h3><pre class="config">{_e(arm.config)}</pre></details>')
