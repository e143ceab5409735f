"""Many runs in, one report out: `toklab report RUN... --out DIR`.

`index.html` is one page that needs no network and no other file; `report.csv` and `report.json` hold the same rows. The
same runs give the same bytes. What a run folder holds is text from a stranger: its form is checked where it is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tyro
from etils import epath

from tokenizer_lab import files
from train.console import NamedRows
from train.report import report_page
from train.report.findings import Opening, Report, comparing_warnings, group_arms, orders
from train.report.page import csv_text, fixed, si
from train.report.runs import RunRead, read_runs


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write one page that compares runs, and the same numbers as CSV and JSON."""

    runs: tyro.conf.Positional[tuple[epath.Path, ...]]
    """Folders of runs, as `toklab train` makes them."""
    out: epath.Path = epath.Path("report")
    """Folder for index.html, report.csv and report.json."""


def write_report(run_dirs: Sequence[epath.PathLike], out: epath.PathLike) -> Report:
    """Reads the runs in some folders and writes `index.html`, `report.csv` and `report.json` to the folder `out`.

    Raises:
      UserError: no run was given, one twice, a folder is not a run, a file is damaged, or `out` cannot be written.
    """
    return write_pages(read_runs(run_dirs), out)


def write_pages(arms: list[RunRead], out: epath.PathLike, opening: Opening | None = None) -> Report:
    """Writes the report on some runs, each file whole or not at all. Raises UserError where `out` cannot be written."""
    out, groups = epath.Path(out), group_arms(arms)
    same, other = orders(arms)
    report = Report(
        arms=arms,
        groups=groups,
        warnings=comparing_warnings(arms, groups) + other,
        order=same,
        index=out / "index.html",
        opening=opening,
    )
    files.write_bytes(out / "report.csv", _csv(report).encode())
    files.write_json(out / "report.json", _json(report))
    files.write_bytes(report.index, report_page.render(report).encode())
    return report


def console_table(report: Report) -> NamedRows:
    """The arms, with the findings below."""
    titles = (
        "bits/\nbyte",
        "95 %\ninterval",
        "vocab",
        "bytes/\ntoken",
        "params",
        "FLOPs/\nbyte",
        "bytes\nseen",
        "bytes/s",
    )
    table = NamedRows("arm", *titles, caption="\n".join(report.findings))
    for group in report.groups:
        for arm, row in ((arm, arm.row) for arm in group.arms):
            ends = [fixed(row[key], 3) for key in ("bits_per_byte_low", "bits_per_byte_high") if row[key] is not None]
            table.add_row(
                row["arm"],
                fixed(row["bits_per_byte"], 3),
                ("unevaluated" if arm.evaluation is None else "") if row["bits_per_byte"] is None else "–".join(ends),
                fixed(row["vocab_size"]),
                fixed(row["bytes_per_token"], 2),
                si(row["parameters"]),
                si(row["flops_per_byte"]),
                si(row["bytes_seen"], "B"),
                si(row["bytes_per_second"], "B"),
            )
        table.add_section()
    return table


# ---- Writing -------------------------------------------------------------------------------------


def _csv(report: Report) -> str:
    domains = sorted({domain for arm in report.arms for domain in arm.domains})
    tasks = sorted({task for arm in report.arms for task in arm.task_scores})
    rows = []
    for arm in report.ranked_arms:
        scores = {f"bits_per_byte:{domain}": arm.domains.get(domain, {}).get("bits_per_byte") for domain in domains}
        scores |= {f"{task}:{metric}": arm.task_scores.get((task, metric), {}).get("median") for task, metric in tasks}
        rows.append(arm.row | scores)
    return csv_text(rows)


def _json(report: Report) -> dict[str, Any]:
    return {
        "format": "tokenizer-lab report 1",
        "findings": report.findings,
        "budgets": [group.budget for group in report.groups],
        "warnings": report.warnings,
        "order": report.order,
        **({"decision": report.opening.data} if report.opening else {}),
        "arms": [
            arm.row
            | {
                "domains": arm.domains,
                "curve": arm.curve,
                "finetuned": arm.finetuned,
                "seconds_by_part": arm.summary["goodput"]["seconds_by_part"],
            }
            for arm in report.ranked_arms
        ],
    }
