"""Many runs in, one report out: `toklab report RUN... --out DIR`.

`index.html` is one page that needs no network and no other file; `report.csv` and `report.json` hold the same rows. The
same runs give the same bytes. What comes out of a run folder is text from a stranger: its form is checked when it is read.
"""

import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import rich.table
import rich.text
import tyro
from etils import epath

from tokenizer_lab import files
from tokenizer_lab.errors import UserError
from train import report_page

# What the files of a run must hold: `float` is a finite number or null, `...` any key, a tuple that many items or null.
_SUMMARY = {
    "name": str, "state": str, "device": str, "versions": {...: str}, "corpora": [{"path": str, "content_hash": str}],
    "representation": {"kind": str, "vocab_size": float, "fingerprint": str, "bytes_per_token": float},
    "parameters": {"total": float, ...: float}, "flops_per_token": {"total": float, ...: float}, "flops_per_byte": float,
    "steps": float, "bytes_seen": float, "tokens_seen": float, "flops": float, "seconds": float, "bytes_per_second": float,
    "tokens_per_second": float, "outside_step_share": float, "skipped_steps": float,
}
_POINT = {"step": float, "bytes_seen": float, "flops": float, "bits_per_byte": float}
_SCORE = {"bits_per_byte": float, "interval_95": (float, float), "num_bytes": float, "num_documents": float}
_EVALUATION = _POINT | _SCORE | {"corpus_content_hash": str, "by_domain": {...: _SCORE}}
_SAMPLES = [{"prompt": str, "text": str, "temperature": float, "top_k": float, "top_p": float, "seed": float, "step": float}]
_KINDS = {float: "a finite number or null", str: "a text", dict: "an object", list: "a list", tuple: "a pair or null"}

# Control characters, text-direction overrides and halves of surrogate pairs: nothing that belongs on a page or a terminal.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_EMBEDDINGS = ("embedding", "unembedding", "softmax")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write one page that compares runs, and the same numbers as CSV and JSON."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Folders of runs, as `toklab train` makes them."""
    out: pathlib.Path = pathlib.Path("report")
    """Folder for index.html, report.csv and report.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """What one run folder holds.

    Attributes:
      label: the run's name, with its folder where another run has the same name.
      curve: evaluations while training, on a fixed part of the held-out documents.
      training: the loss of the training batches themselves.
      evaluation: the evaluation on all held-out documents, where there was one.
    """

    label: str
    folder: str
    config: str
    summary: dict
    curve: list[dict]
    training: list[dict]
    evaluation: dict | None
    samples: list[dict]

    @property
    def finished(self) -> bool:
        return self.summary["state"] == "finished"

    @property
    def row(self) -> dict[str, Any]:
        """The arm as one row of numbers and names; None where it has no such number. Domains are in `scores`."""
        summary, representation, parameters = self.summary, self.summary["representation"], self.summary["parameters"]
        evaluation = self.evaluation or dict.fromkeys(_EVALUATION)
        low, high = evaluation["interval_95"] or (None, None)
        at = self.evaluation or summary  # bits per byte stand beside the bytes and FLOPs that they took
        last = self.curve[-1] if self.curve else dict.fromkeys(_POINT)
        embeddings = sum(parameters.get(name) or 0 for name in _EMBEDDINGS)
        return {
            "arm": self.label, "folder": self.folder, "state": summary["state"], "representation": representation["kind"],
            "fingerprint": representation["fingerprint"], "vocab_size": representation["vocab_size"],
            "bytes_per_token": representation["bytes_per_token"], "parameters": parameters["total"],
            "parameters_without_embeddings": None if parameters["total"] is None else parameters["total"] - embeddings,
            "flops_per_byte": summary["flops_per_byte"], "steps": summary["steps"], "evaluated_step": evaluation["step"],
            "bytes_seen": at["bytes_seen"], "flops": at["flops"], "bits_per_byte": evaluation["bits_per_byte"],
            "bits_per_byte_low": low, "bits_per_byte_high": high, "held_out_bytes": evaluation["num_bytes"],
            "held_out_documents": evaluation["num_documents"], "held_out_corpus": evaluation["corpus_content_hash"],
            "while_training_step": last["step"], "while_training_bits_per_byte": last["bits_per_byte"],
            "bytes_per_second": summary["bytes_per_second"], "tokens_per_second": summary["tokens_per_second"],
            "seconds": summary["seconds"], "outside_step_share": summary["outside_step_share"],
            "skipped_steps": summary["skipped_steps"], "device": summary["device"],
        }

    @property
    def domains(self) -> dict[str, dict]:
        return self.evaluation["by_domain"] if self.evaluation else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Arms that one ranking may hold, best first: they were evaluated on the same text.

    Attributes:
      corpus: content hash of that text; None where no arm of the group has been evaluated.
      arms: those without an evaluation come last.
    """

    corpus: str | None
    arms: list[Arm]

    @property
    def finding(self) -> str:
        """The result in one sentence."""
        rows = [row for row in (arm.row for arm in self.arms) if row["bits_per_byte"] is not None]
        if not rows:
            return "No arm has been evaluated yet, so there is nothing to rank."
        best, score = rows[0]["arm"], _score(rows[0])
        if len(rows) == 1:
            return f"Only {best} has been evaluated: {score}. One arm is no comparison."
        found = f"{best} has the lowest bits per byte, {score}; next is {rows[1]['arm']}, {_score(rows[1])}."
        high, low = rows[0]["bits_per_byte_high"], rows[1]["bits_per_byte_low"]
        if high is None or low is None:
            return found
        return found + (" The intervals overlap: this evaluation alone does not settle which of the two is better."
                        if high >= low else " The intervals do not overlap.")

    @property
    def budget(self) -> str:
        """Whether the arms spent the same, in one sentence; empty for a single arm."""
        rows = [arm.row for arm in self.arms]
        spent = [_spread(rows, "bytes_seen", "bytes seen", "B"), _spread(rows, "flops", "FLOPs spent", "FLOP")]
        if len(rows) < 2:
            return ""
        unequal = all(text.startswith("different") for text in spent)
        return f"Budgets: {'; '.join(spent)}." + (
            " Neither is equal, so the table does not compare like with like; read the charts at one point of their x axis." if unequal else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `write_report` wrote.

    Attributes:
      arms: every run, in the order given.
      groups: the same arms, by what they may be compared with.
      warnings: what a reader must know before comparing, a sentence each.
      index: the page.
    """

    arms: list[Arm]
    groups: list[Group]
    warnings: list[str]
    index: epath.Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The arms as rows, best first within each group."""
        return [arm.row for group in self.groups for arm in group.arms]


def write_report(run_dirs: Sequence[epath.PathLike], out: epath.PathLike) -> Report:
    """Reads runs and writes `index.html`, `report.csv` and `report.json` to the folder `out`, each whole or not at all.

    Raises:
      UserError: no run was given, one twice, a folder is not a run, a file is damaged, or `out` cannot be written.
    """
    if not run_dirs:
        raise UserError("no runs were given; name the folders of one or more, e.g. `toklab report runs/byte runs/subword`")
    arms = _with_distinct_labels([read_arm(folder) for folder in run_dirs])
    out, groups = epath.Path(out), group_arms(arms)
    report = Report(arms=arms, groups=groups, warnings=_warnings(arms, groups), index=out / "index.html")
    files.write_bytes(out / "report.csv", _csv(report).encode())
    files.write_json(out / "report.json", _json(report))
    files.write_bytes(report.index, report_page.render(report).encode())
    return report


def console_table(report: Report) -> rich.table.Table:
    """The arms as a table for the terminal, with the findings below it."""
    table = rich.table.Table(caption=rich.text.Text("\n".join(group.finding for group in report.groups)), caption_justify="left")
    table.add_column("arm")
    table.add_column("representation")
    for title in ("vocab", "bytes/token", "parameters", "FLOP/byte", "bytes seen", "bits/byte (95 %)", "bytes/s", "outside step"):
        table.add_column(title, justify="right")
    si, fixed = report_page.si, report_page.fixed
    for group in report.groups:
        for row in (arm.row for arm in group.arms):
            score = "not evaluated" if row["bits_per_byte"] is None else _score(row, short=True)
            cells = (row["arm"], row["representation"], fixed(row["vocab_size"], 0), fixed(row["bytes_per_token"], 2), si(row["parameters"]),
                     si(row["flops_per_byte"]), si(row["bytes_seen"], "B"), score, si(row["bytes_per_second"], "B"), report_page.percent(row["outside_step_share"]))
            table.add_row(*map(rich.text.Text, cells))  # a Text, so that no name is taken for markup
        table.add_section()
    return table


# ---- Reading a run folder ---------------------------------------------------------------------------------------------


def read_arm(folder: epath.PathLike) -> Arm:
    """Reads one run folder. Raises UserError where it is not one or a file in it is damaged."""
    folder = epath.Path(folder)
    missing = [name for name in ("config.json", "summary.json") if not (folder / name).exists()]
    if missing:
        what = f"has no {' and no '.join(missing)}" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} is not a run: it {what}; make one with `toklab train RECIPE --run-dir {folder}`")
    config = json.dumps(files.read_json(folder / "config.json", "run's config"), indent=2, ensure_ascii=False)
    summary = _read(folder / "summary.json", _SUMMARY)
    partial = summary["state"] == "running"
    return Arm(
        label=" ".join(summary["name"].split()) or folder.name,
        folder=_printable(str(folder)),
        config=_printable(config),
        summary=summary,
        curve=_by_step(_read_lines(folder / "eval.jsonl", _POINT, partial)),
        training=_by_step(_read_lines(folder / "metrics.jsonl", _POINT, partial)),
        evaluation=_read(folder / "eval.json", _EVALUATION) if (folder / "eval.json").exists() else None,
        samples=_read(folder / "samples.json", _SAMPLES) if (folder / "samples.json").exists() else [],
    )


def _read(path: epath.Path, form: Any) -> Any:
    return _checked(files.read_json(path, "file of a run"), form, str(path))


def _read_lines(path: epath.Path, form: Any, partial: bool) -> Iterator[dict]:
    """The lines of a jsonl file, none where there is no file. While a run is being written its last line may be `partial`."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if partial and not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number} is damaged: {error}; remove the line or train the run again") from error
            yield _checked(record, form, f"{path} line {number}")


def _checked(value: Any, form: Any, where: str) -> Any:
    """A copy of `value` with exactly what `form` names, its texts printable. Raises UserError where it is not of that form."""
    kind = form if isinstance(form, type) else type(form)
    if kind is float:
        good = value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300)
    elif kind is tuple:
        good = value is None or (isinstance(value, list) and len(value) == len(form))
    else:
        good = isinstance(value, kind)
    if not good:
        raise UserError(f"{where}: {repr(value)[:60]} should be {_KINDS[kind]}; the file is damaged or of another version, make it again")
    if kind is dict:
        if missing := [key for key in form if key is not ... and key not in value]:
            raise UserError(f"{where} lacks {', '.join(missing)}; the file is damaged or of another version, make it again")
        keys = value if ... in form else form
        return {_printable(key): _checked(value[key], form.get(key, form.get(...)), f"{where}: {_printable(key)}") for key in keys}
    if kind in (list, tuple) and value is not None:
        forms = form * len(value) if kind is list else form
        return [_checked(item, item_form, where) for item, item_form in zip(value, forms, strict=True)]
    return _printable(value) if kind is str else value


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _by_step(records: Iterator[dict]) -> list[dict]:
    """In order of steps. A resumed run may have taken a step again; what it wrote last counts."""
    return sorted({record["step"] or 0: record for record in records}.values(), key=lambda record: record["step"] or 0)


def _with_distinct_labels(arms: list[Arm]) -> list[Arm]:
    folders, labels = [str(epath.Path(arm.folder).resolve()) for arm in arms], [arm.label for arm in arms]
    if repeated := [arm.folder for arm, folder in zip(arms, folders, strict=True) if folders.count(folder) > 1]:
        raise UserError(f"{repeated[0]} was given {len(repeated)} times ({', '.join(repeated)}); name each run once")
    return [dataclasses.replace(arm, label=f"{arm.label} ({arm.folder})") if labels.count(arm.label) > 1 else arm for arm in arms]


# ---- Comparing --------------------------------------------------------------------------------------------------------


def group_arms(arms: list[Arm]) -> list[Group]:
    """Arms that were evaluated on the same text together. Those without an evaluation join them where there is only one text."""
    corpora = list(dict.fromkeys(arm.evaluation["corpus_content_hash"] for arm in arms if arm.evaluation))
    evaluated = {corpus: [arm for arm in arms if arm.evaluation and arm.evaluation["corpus_content_hash"] == corpus] for corpus in corpora}
    groups = {corpus: sorted(members, key=_bits_per_byte) for corpus, members in evaluated.items()}
    if rest := [arm for arm in arms if not arm.evaluation]:
        groups.setdefault(corpora[0] if len(corpora) == 1 else None, []).extend(rest)
    return [Group(corpus=corpus, arms=members) for corpus, members in groups.items()]


def _bits_per_byte(arm: Arm) -> float:
    score = arm.evaluation["bits_per_byte"]
    return float("inf") if score is None else score


def _warnings(arms: list[Arm], groups: list[Group]) -> list[str]:
    warnings = []
    corpora = {group.corpus: ", ".join(arm.label for arm in group.arms) for group in groups if group.corpus is not None}
    if len(corpora) > 1:
        on = "; ".join(f"{labels} on {corpus[:12]}" for corpus, labels in corpora.items())
        warnings.append(f"The arms were evaluated on different held-out texts ({on}). Bits per byte of different texts cannot be "
                        "ranked, so each text has its own table and charts. `toklab eval RUN --corpus CORPUS` puts them on one text.")
    for arm in arms:
        row = arm.row
        if not arm.finished:
            warnings.append(f"{arm.label} has not finished: it is {row['state']} at step {report_page.fixed(row['steps'], 0)}.")
        if not arm.evaluation:
            warnings.append(f"{arm.label} has not been evaluated, so it has no rank; run `toklab eval {arm.folder}`.")
        elif row["evaluated_step"] != row["steps"]:
            warnings.append(f"{arm.label} was evaluated at step {report_page.fixed(row['evaluated_step'], 0)} of the "
                            f"{report_page.fixed(row['steps'], 0)} it has trained; `toklab eval {arm.folder}` renews that.")
    if len({frozenset(corpus["content_hash"] for corpus in arm.summary["corpora"]) for arm in arms}) > 1:
        warnings.append("The arms were trained on different corpora; the runs below name them.")
    if len({arm.summary["device"] for arm in arms}) > 1:
        warnings.append("The arms ran on different devices, so their bytes per second cannot be compared.")
    return warnings


def _score(row: dict, short: bool = False) -> str:
    low, high = (report_page.fixed(row[f"bits_per_byte_{end}"], 3) for end in ("low", "high"))
    if row["bits_per_byte_low"] is None:
        return f"{row['bits_per_byte']:.3f}"
    return f"{row['bits_per_byte']:.3f} " + (f"({low}–{high})" if short else f"(95 % interval {low} to {high})")


def _spread(rows: list[dict], key: str, name: str, unit: str) -> str:
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key])
    if len(known) < len(rows):
        return f"{name} unknown for some"
    least, most = known[0], known[-1]
    if most[key] <= 1.01 * least[key]:  # a budget ends at a whole step
        return f"the same {name}, {report_page.si(most[key], unit)}"
    return f"different {name}, {report_page.si(least[key], unit)} ({least['arm']}) to {report_page.si(most[key], unit)} ({most['arm']})"


# ---- Writing ----------------------------------------------------------------------------------------------------------


def _csv(report: Report) -> str:
    domains = sorted({domain for arm in report.arms for domain in arm.domains})
    rows = []
    for arm in (arm for group in report.groups for arm in group.arms):
        scores = {f"bits_per_byte:{domain}": arm.domains[domain]["bits_per_byte"] if domain in arm.domains else None for domain in domains}
        rows.append({key: _cell(value) for key, value in (arm.row | scores).items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A spreadsheet would run a text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _json(report: Report) -> dict:
    arms = [arm.row | {"domains": arm.domains, "curve": arm.curve} for group in report.groups for arm in group.arms]
    return {"format": "tokenizer-lab report 1", "findings": [group.finding for group in report.groups],
            "budgets": [group.budget for group in report.groups], "warnings": report.warnings, "arms": arms}
