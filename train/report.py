"""Many runs in, one report out: `toklab report RUN... --out DIR`.

`index.html` is one page that needs no network and no other file; `report.csv` and `report.json` hold the same rows. The
same runs give the same bytes. What a run folder holds is text from a stranger: its form is checked where it is read.
"""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.table
import rich.text
import tyro
from etils import epath

from tokenizer_lab import files
from tokenizer_lab.errors import UserError
from train import report_page
from train.decision import Decision, Design, as_json, decide, rows as decision_rows
from train.document_hashes import Hashes, common_documents, read_hashes
from train.intervals import Interval, middle_95, resampled_bits_per_byte
from train.page import csv_text, fixed, printable as _printable, short, si

# The form of a run's files: `float` is a finite number or null, `...` any other key, a tuple that many items or null.
_SUMMARY = {
    "name": str, "state": str, "device": str, "versions": {...: str}, "corpora": [{"path": str, "content_hash": str}],
    "representation": {
        "kind": str, "vocab_size": float, "fingerprint": str, "bytes_per_token": float,
        "costs": {...: float}, "statistics": {...: float},
    },
    "parameters": {"total": float, ...: float}, "flops_per_token": {"total": float, ...: float},
    "steps": float, "bytes_seen": float, "tokens_seen": float, "flops": float, "seconds": float, "skipped_steps": float,
    "flops_per_byte": float, "bytes_per_second": float, "tokens_per_second": float, "outside_step_share": float,
    "goodput": {"seconds": float, "share": float, "starts": float, "seconds_by_part": {...: float}}, "save_memory_growth_bytes": float,
}
_POINT = {"step": float, "bytes_seen": float, "flops": float, "bits_per_byte": float}
_SCORE = {"bits_per_byte": float, "interval_95": (float, float), "num_bytes": float, "num_documents": float}
_CURVE_POINT = _POINT | {"num_bytes": float}
_TEXT = {"bytes_per_id": float, "uniform_bits_per_byte": float, "unigram_bits_per_byte": float}
_EVALUATION = _POINT | _SCORE | {"corpus_content_hash": str, "by_domain": {...: _SCORE}, "text": _TEXT, "encoder": {...: float},
                                 "costs": {...: float}, "num_documents_in_training": float}
_DOCUMENTS = {"step": float, "corpus_content_hash": str, "nats": [float], "num_bytes": [float], "domains": [str], "scripts": [str]}
_NOISE = {"step": float, "corpus_content_hash": str, "levels": [{"rate": float, "bits_per_byte": float, "accuracy": float}]}
_FINETUNED = {"task": str, "num_train": float, "num_dev": float, "finetune_flops": float,
              "metrics": {...: {"median": float, "low": float, "high": float, "values": [float]}}}
_MINIMAL_PAIRS = {"accuracy": float, "num_pairs": float, "score": str}
_MAY_LACK = {  # what encoders or decoders do not have, or runs of before it was written down
    "bits_per_byte": None, "encoder": {}, "save_memory_growth_bytes": None, "costs": {}, "num_documents_in_training": None,
    "goodput": {"seconds": None, "share": None, "starts": None, "seconds_by_part": {}},
}
_SETTINGS = {"temperature": float, "top_k": float, "top_p": float, "seed": float, "step": float}
_SAMPLES = [{"prompt": str, "text": str} | _SETTINGS]
_FORM_NAMES = {
    float: "a finite number or null", str: "a text", dict: "an object", list: "a list", tuple: "two numbers or null",
}

ENCODER_FIGURES = ("detection_nats", "always_real_nats", "auc", "predicted_nats", "predicted_right")

_EMBEDDINGS = ("embedding", "softmax")


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write one page that compares runs, and the same numbers as CSV and JSON."""

    runs: tyro.conf.Positional[tuple[epath.Path, ...]]
    """Folders of runs, as `toklab train` makes them."""
    out: epath.Path = epath.Path("report")
    """Folder for index.html, report.csv and report.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """What one run folder holds.

    Attributes:
      label: the run's name, with its folder where another run has the same name.
      config: the resolved recipe, as JSON.
      objective: the kind of it.
      curve: evaluations while training, on a fixed part of the held-out documents.
      training: the same of the training batches themselves.
      evaluation: that of all held-out documents, where there was one.
      finetuned: what it came to on each task it was fine-tuned on.
      minimal_pairs: how often it preferred the better sentence, where that was asked.
      order: what decides which documents its rows read, besides the text: seed, rows of a batch and weights of the corpora.
      documents: running hashes of what its rows have read.
      documents_scored: what each document cost in `evaluation`.
      noise: what it came to on text with wrong characters.
    """

    label: str
    folder: str
    config: str
    objective: str
    summary: dict
    curve: list[dict]
    training: list[dict]
    evaluation: dict | None
    samples: list[dict]
    finetuned: list[dict]
    minimal_pairs: dict | None
    order: tuple[str, ...]
    documents: Hashes
    documents_scored: dict | None
    noise: dict | None

    @property
    def finished(self) -> bool:
        return self.summary["state"] == "finished"

    @property
    def evaluations(self) -> list[dict]:
        return [self.evaluation] if self.evaluation else []

    @property
    def trained_text(self) -> str:
        """Content hash of the corpora it was trained on, whose held-out documents the curve is on."""
        return "+".join(corpus["content_hash"] for corpus in self.summary["corpora"])

    @property
    def held_out_text(self) -> str:
        """Content hash of what it was, or by default would be, evaluated on."""
        return self.evaluation["corpus_content_hash"] if self.evaluation else self.trained_text

    @property
    def on_its_own_text(self) -> bool:
        """Whether the curve is on a part of the text that the evaluation is on."""
        return self.trained_text == self.held_out_text

    @property
    def domains(self) -> dict[str, dict]:
        """Domain -> its score."""
        return self.evaluation["by_domain"] if self.evaluation else {}

    @property
    def task_scores(self) -> dict[tuple[str, str], dict]:
        """(task, metric) -> median, low and high over seeds."""
        return {(result["task"], metric): values for result in self.finetuned for metric, values in result["metrics"].items()}

    @property
    def costs(self) -> dict[str, float | None]:
        """What a byte of held-out text costs."""
        return self.evaluation["costs"] if self.evaluation else {}

    @property
    def is_encoder(self) -> bool:
        return bool(self.evaluation and self.evaluation["encoder"])

    @property
    def row(self) -> dict[str, Any]:
        """What the tables, the CSV and the JSON say of the arm, domains apart. None where there is no such number."""
        summary, parameters = self.summary, self.summary["parameters"]
        evaluation = self.evaluation or dict.fromkeys(_EVALUATION)
        low, high = evaluation["interval_95"] or (None, None)
        reached = self.evaluation or summary  # bits per byte stand beside the bytes and FLOPs that they took
        last = self.curve[-1] if self.curve else dict.fromkeys(_POINT)
        costs, statistics = (summary["representation"][name] for name in ("costs", "statistics"))
        text, fit_flops, bytes_seen = evaluation["text"] or {}, costs.get("fit_flops"), reached["bytes_seen"]
        embeddings = sum(parameters.get(name) or 0 for name in _EMBEDDINGS)
        return {
            "arm": self.label,
            "folder": self.folder,
            "state": summary["state"],
            "representation": summary["representation"]["kind"],
            "fingerprint": summary["representation"]["fingerprint"],
            "vocab_size": summary["representation"]["vocab_size"],
            "bytes_per_token": summary["representation"]["bytes_per_token"],
            "parameters": parameters["total"],
            "parameters_without_embeddings": None if parameters["total"] is None else parameters["total"] - embeddings,
            "flops_per_byte": summary["flops_per_byte"],
            "fit_flops": fit_flops,
            "fit_flops_per_byte": fit_flops / bytes_seen if fit_flops and bytes_seen else None,
            "bytes_per_id": text.get("bytes_per_id"),
            "uniform_bits_per_byte": text.get("uniform_bits_per_byte"),
            "unigram_bits_per_byte": text.get("unigram_bits_per_byte"),
            "stop_bits_per_byte": statistics.get("stop_bits_per_byte"),
            "closing_bits_per_byte": statistics.get("closing_bits_per_byte"),
            "steps": summary["steps"],
            "evaluated_step": evaluation["step"],
            "bytes_seen": bytes_seen,
            "flops": reached["flops"],
            "bits_per_byte": evaluation["bits_per_byte"],
            "bits_per_byte_low": low,
            "bits_per_byte_high": high,
            "held_out_bytes": evaluation["num_bytes"],
            "held_out_documents": evaluation["num_documents"],
            "held_out_corpus": evaluation["corpus_content_hash"],
            "while_training_step": last["step"],
            "while_training_bits_per_byte": last["bits_per_byte"],
            "bytes_per_second": summary["bytes_per_second"],
            "tokens_per_second": summary["tokens_per_second"],
            "seconds": summary["seconds"],
            "outside_step_share": summary["outside_step_share"],
            "goodput": summary["goodput"]["share"],
            "life_seconds": summary["goodput"]["seconds"],
            "starts": summary["goodput"]["starts"],
            "save_memory_growth_bytes": summary["save_memory_growth_bytes"],
            "skipped_steps": summary["skipped_steps"],
            "device": summary["device"],
            "objective": self.objective,
            **{name: (evaluation["encoder"] or {}).get(name) for name in ENCODER_FIGURES},
            "blimp": self.minimal_pairs["accuracy"] if self.minimal_pairs else None,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Arms that one ranking may hold: they have the same held-out text.

    Attributes:
      text: content hash of that text.
      arms: best first; those without an evaluation last.
    """

    text: str
    arms: list[Arm]

    @property
    def name(self) -> str:
        return f"held-out text {short(self.text)}"

    @functools.cached_property  # the page, the JSON and the terminal have it, and a bootstrap is in it
    def finding(self) -> str:
        """The result in a sentence or two."""
        ranked = [arm.row for arm in self.arms if arm.row["bits_per_byte"] is not None]
        if not ranked and all(arm.is_encoder for arm in self.arms):
            return "Encoders have no bits per byte to rank them by; what they detect, predict and come to on tasks is below."
        if not ranked:
            return "Nothing to rank: no arm has been evaluated."
        best, score = ranked[0]["arm"], _score(ranked[0])
        if len(ranked) == 1:
            return f"Bits per byte of {best}: {score}. No other arm has been evaluated on this text: nothing to rank."
        found = f"{best} has the lowest bits per byte, {score}; next is {ranked[1]['arm']}, {_score(ranked[1])}."
        first, second = [arm for arm in self.arms if arm.row["bits_per_byte"] is not None][:2]
        if first.documents_scored and second.documents_scored:
            low, high = _paired_difference(first.documents_scored, second.documents_scored)
            settled = "" if low > 0 else ", so that this text does not settle which of the two is better"
            return (f"{found} On the same documents {second.label} is behind by {fixed(low, 3)} to {fixed(high, 3)} (95 %, a bootstrap over documents; other "
                    f"seeds may differ){settled}.")
        high, low = ranked[0]["bits_per_byte_high"], ranked[1]["bits_per_byte_low"]
        if high is None or low is None:
            return found
        if high < low:
            return f"{found} The intervals do not overlap."
        return f"{found} The intervals overlap: this evaluation alone does not settle which of the two is better."

    @property
    def budget(self) -> str:
        """Whether the arms spent the same; empty for a single arm."""
        if len(self.arms) < 2:
            return ""
        rows = [arm.row for arm in self.arms]
        spent = _spread(rows, "bytes_seen", "bytes seen", "B"), _spread(rows, "flops", "FLOPs spent", "FLOP")
        advice = " The table does not compare like with like: read the charts at one point of their x axis."
        return f"Budgets: {'; '.join(spent)}." + ("" if any(text.startswith("the same") for text in spent) else advice)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `write_report` wrote.

    Attributes:
      arms: every run, in the order given.
      groups: the same arms, by what they may be compared with.
      warnings: what a reader must know before comparing, an entry each.
      order: which arms have read the same documents, an entry each that shows it.
      index: the page.
      decision: of an experiment.
    """

    arms: list[Arm]
    groups: list[Group]
    warnings: list[str]
    order: list[str]
    index: epath.Path
    decision: Decision | None

    @property
    def ranked_arms(self) -> list[Arm]:
        """Group after group, best first in each."""
        return [arm for group in self.groups for arm in group.arms]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`Arm.row` of `ranked_arms`."""
        return [arm.row for arm in self.ranked_arms]

    @property
    def findings(self) -> list[str]:
        """The finding of each group, which is named where there are several."""
        if len(self.groups) == 1:
            return [self.groups[0].finding]
        return [f"{group.name.capitalize()}: {group.finding}" for group in self.groups]


def write_report(run_dirs: Sequence[epath.PathLike], out: epath.PathLike, design: Design | None = None) -> Report:
    """Reads runs and writes `index.html`, `report.csv` and `report.json` to the folder `out`, each whole or not at all.

    Args:
      run_dirs: the runs' folders.
      out: the folder of the report.
      design: what the runs are of an experiment; the page then begins with its decision, and `decision.csv` has that as numbers.

    Raises:
      UserError: no run was given, one twice, a folder is not a run, a file is damaged, or `out` cannot be written.
    """
    if not run_dirs:
        raise UserError("no runs were given; name one folder or more, e.g. `toklab report runs/byte runs/subword`")
    arms = _with_distinct_labels([read_arm(folder) for folder in run_dirs])
    out, groups = epath.Path(out), group_arms(arms)
    same, other = _orders(arms)
    report = Report(arms=arms, groups=groups, warnings=_warnings(arms, groups) + other, order=same, index=out / "index.html",
                    decision=design and decide(design, arms))
    if report.decision and (table := decision_rows(report.decision)):
        files.write_bytes(out / "decision.csv", csv_text(table).encode())
    files.write_bytes(out / "report.csv", _csv(report).encode())
    files.write_json(out / "report.json", _json(report))
    files.write_bytes(report.index, report_page.render(report).encode())
    return report


def console_table(report: Report) -> rich.table.Table:
    """The arms as a table that 80 columns have room for, the findings below it."""
    findings = rich.text.Text("\n".join(report.findings))
    look = {"box": rich.box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0)}
    table = rich.table.Table(**look, caption=findings, caption_justify="left")
    table.add_column("arm", overflow="fold")
    size_titles = ("vocab", "bytes/\ntoken", "params", "FLOPs/\nbyte", "bytes\nseen", "bytes/s")
    for title in ("bits/\nbyte", "95 %\ninterval", *size_titles):
        table.add_column(title, justify="right", no_wrap=True)
    for group in report.groups:
        for arm, row in ((arm, arm.row) for arm in group.arms):
            ends = [fixed(row[key], 3) for key in ("bits_per_byte_low", "bits_per_byte_high") if row[key] is not None]
            cells = (
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
            table.add_row(*map(rich.text.Text, cells))  # a Text, so that no name is taken for markup
        table.add_section()
    return table


# ---- Reading a run folder ------------------------------------------------------------------------


def read_arm(folder: epath.PathLike) -> Arm:
    """Reads one run folder. Raises UserError where it is not one or a file in it is damaged."""
    folder = epath.Path(folder)
    command = f"`toklab train RECIPE --run-dir {folder}`"
    with files.remote_errors(folder):
        is_run = (folder / "config.json").exists()
    if not is_run:
        what = "has no config.json" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} is not a run: it {what}; make one with {command}")
    if not (folder / "summary.json").exists():
        raise UserError(f"{folder} has no summary.json: it still trains or was cut off; wait, or go on with {command}")
    recipe = files.read_json(folder / "config.json", "run")
    config = json.dumps(recipe, indent=2, ensure_ascii=False)
    objective = recipe.get("objective") if isinstance(recipe, dict) else None
    kind = objective.get("kind", "causal") if isinstance(objective, dict) else "causal"
    summary = _read(folder / "summary.json", _SUMMARY)
    evaluation = _read(folder / "eval.json", _EVALUATION) if (folder / "eval.json").exists() else None
    unfinished = summary["state"] != "finished"
    return Arm(
        label=_one_line(summary["name"]) or folder.name,
        folder=_printable(str(folder)),
        config=_printable(config),
        objective=_one_line(_printable(str(kind))),
        summary=summary,
        curve=_by_step(_read_lines(folder / "eval.jsonl", _CURVE_POINT, unfinished)),
        training=_by_step(_read_lines(folder / "metrics.jsonl", _POINT, unfinished)),
        evaluation=evaluation,
        samples=_read(folder / "samples.json", _SAMPLES) if (folder / "samples.json").exists() else [],
        finetuned=[_read(path, _FINETUNED) for path in sorted((folder / "finetune").glob("*.json"))],
        minimal_pairs=_read(folder / "blimp.json", _MINIMAL_PAIRS) if (folder / "blimp.json").exists() else None,
        order=_order(recipe),
        documents=read_hashes(folder / "documents"),
        documents_scored=_of_evaluation(evaluation, folder / "eval_documents.json", _DOCUMENTS),
        noise=_of_evaluation(evaluation, folder / "noise.json", _NOISE),
    )


def _of_evaluation(evaluation: dict | None, path: epath.Path, form: Any) -> dict | None:
    """A file that goes with `eval.json`; None where there is none, or it is of another step or text."""
    value = _read(path, form) if evaluation and path.exists() else None
    if not value or any(value[key] != evaluation[key] for key in ("step", "corpus_content_hash")):
        return None
    columns = [column for key, column in value.items() if key in ("nats", "num_bytes", "domains", "scripts")]
    if any(len(column) != evaluation["num_documents"] or None in column for column in columns):
        raise UserError(f"{path} does not have an entry for each of the documents of eval.json; make it again with `toklab eval`")
    return value


def _order(recipe: Any) -> tuple[str, ...]:
    """As `Arm.order`, of a config that may lack any of it."""
    recipe = recipe if isinstance(recipe, dict) else {}
    data = recipe.get("data") if isinstance(recipe.get("data"), dict) else {}
    return str(recipe.get("seed")), str(data.get("batch_rows")), str(data.get("weights"))


def _read(path: epath.Path, form: Any) -> Any:
    return _checked(files.read_json(path, "run"), form, str(path))


def _read_lines(path: epath.Path, form: Any, unfinished: bool) -> Iterator[dict]:
    """The values in a jsonl file, none where there is none. The last line of an `unfinished` one may be half there."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if unfinished and not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number} is damaged: {error}; remove that line or train again") from error
            yield _checked(value, form, f"{path} line {number}")


def _checked(value: Any, form: Any, where: str) -> Any:
    """A copy of `value` with what `form` names and no more, its texts printable. Raises UserError for another form."""
    kind = form if isinstance(form, type) else type(form)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = value is None or (number and -1e300 < value < 1e300)
    elif kind is tuple:
        good = value is None or (isinstance(value, list) and len(value) == len(form) and None not in value)
    else:
        good = isinstance(value, kind)
    remedy = "the file is damaged or of another version, make it again"
    if not good:
        raise UserError(f"{where}: {repr(value)[:60]} should be {_FORM_NAMES[kind]}; {remedy}")
    match value:
        case str():
            return _printable(value)
        case list():
            forms = form if kind is tuple else form * len(value)
            return [_checked(item, item_form, where) for item, item_form in zip(value, forms, strict=True)]
        case dict():
            value = {key: default for key, default in _MAY_LACK.items() if form.keys() & {"step", "steps"} and key in form} | value
            if missing := [key for key in form if key is not ... and key not in value]:
                raise UserError(f"{where} lacks {', '.join(missing)}; {remedy}")
            forms = {key: form.get(key, form.get(...)) for key in value if key in form or ... in form}
            names = {key: _one_line(_printable(key)) for key in forms}
            return {names[key]: _checked(value[key], forms[key], f"{where}: {names[key]}") for key in forms}
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _by_step(points: Iterator[dict]) -> list[dict]:
    """In order of steps. A resumed run may have taken a step again; what it wrote last counts."""
    latest = {point["step"] or 0: point for point in points}
    return [latest[step] for step in sorted(latest)]


def _with_distinct_labels(arms: list[Arm]) -> list[Arm]:
    folders = collections.Counter(arm.folder if files.is_remote(arm.folder) else str(epath.Path(arm.folder).resolve()) for arm in arms)
    labels = collections.Counter(arm.label for arm in arms)
    for folder, times in folders.items():
        if times > 1:
            raise UserError(f"{folder} was given {times} times; name each run once")
    longer = [f"{arm.label} ({arm.folder})" if labels[arm.label] > 1 else arm.label for arm in arms]
    return [dataclasses.replace(arm, label=label) for arm, label in zip(arms, longer, strict=True)]


# ---- Comparing -----------------------------------------------------------------------------------


def group_arms(arms: list[Arm]) -> list[Group]:
    """Puts arms with the same held-out text together."""
    by_text = collections.defaultdict(list)
    for arm in sorted(arms, key=_bits_per_byte):
        by_text[arm.held_out_text].append(arm)
    return [Group(text=text, arms=members) for text, members in by_text.items()]


def _bits_per_byte(arm: Arm) -> float:
    number = arm.row["bits_per_byte"]
    return math.inf if number is None else number


def _warnings(arms: list[Arm], groups: list[Group]) -> list[str]:
    warnings = []
    if len(groups) > 1:
        named = "; ".join(f"{', '.join(arm.label for arm in group.arms)}: {short(group.text)}" for group in groups)
        warnings.append(
            f"The arms have different held-out texts ({named}). Bits per byte of different texts cannot be ranked, so "
            "each text has its own table and charts. `toklab eval RUN --corpus CORPUS` puts them on one."
        )
    for arm in arms:
        state, steps, evaluated_step = (arm.row[key] for key in ("state", "steps", "evaluated_step"))
        if not arm.finished:
            warnings.append(f"{arm.label} has not finished: {state} at step {fixed(steps)}.")
        if not arm.evaluation:
            warnings.append(f"{arm.label} has not been evaluated, so it has no rank; run `toklab eval {arm.folder}`.")
        elif evaluated_step != steps:
            warnings.append(
                f"{arm.label} was evaluated at step {fixed(evaluated_step)} and has trained to step {fixed(steps)}; "
                f"`toklab eval {arm.folder}` renews that."
            )
        if seen := (arm.evaluation or {}).get("num_documents_in_training"):
            warnings.append(f"{fixed(seen)} of the held-out documents of {arm.label} are also among those it was trained on, byte for byte.")
        if arm.curve and not arm.on_its_own_text:
            warnings.append(
                f"{arm.label} was evaluated on another text than its curve, which is therefore not drawn; `toklab eval "
                f"{arm.folder}` evaluates it on its own."
            )
    for group in groups:
        sizes = {point["num_bytes"] for arm in group.arms if arm.on_its_own_text for point in arm.curve}
        if len(sizes) > 1:
            listed = " and ".join(sorted(si(size, "B") for size in sizes))
            warnings.append(f"Do not compare the curves on {group.name}: they are on different subsets ({listed}).")
    if len({arm.trained_text for arm in arms}) > 1:
        warnings.append("The arms were trained on different corpora, which the runs below name.")
    if len({arm.summary["device"] for arm in arms}) > 1:
        warnings.append("The arms ran on different devices, so their bytes per second cannot be compared.")
    return warnings


def _orders(arms: list[Arm]) -> tuple[list[str], list[str]]:
    """Of arms that should have read the same documents: a line for those that have, and one for each that has not."""
    same, other, alike = [], [], collections.defaultdict(list)
    for arm in arms:
        if arm.documents:
            alike[arm.trained_text, arm.order].append(arm)
    for first, *rest in alike.values():
        through = {arm.label: common_documents(first.documents, arm.documents) for arm in rest}
        agreeing = {label: number for label, number in through.items() if number is not None}
        if agreeing:
            least = min(agreeing.values(), key=lambda by_row: sum(by_row.values()))
            same.append(f"{', '.join([first.label, *agreeing])} have read the same documents in the same order, by the running hashes of their "
                        f"{len(least):,} rows: {sum(least.values()):,} documents at least, {min(least.values()):,} to {max(least.values()):,} of each row.")
        other += [f"{label} and {first.label} have not read the same documents in the same order, though seed, rows and text are the same."
                  for label, number in through.items() if number is None]
    return same, other


def _paired_difference(first: dict, second: dict) -> Interval:
    """95 % interval of what the second takes more than the first, in bits per byte, over documents."""
    nats_an = np.array([first["nats"], second["nats"]])
    resampled_ra = resampled_bits_per_byte(nats_an, np.array(first["num_bytes"]))
    return middle_95(resampled_ra[:, 1] - resampled_ra[:, 0])


def _score(row: dict) -> str:
    interval = f" (95 % interval {fixed(row['bits_per_byte_low'], 3)} to {fixed(row['bits_per_byte_high'], 3)})"
    return fixed(row["bits_per_byte"], 3) + ("" if row["bits_per_byte_low"] is None else interval)


def _spread(rows: list[dict], key: str, name: str, unit: str) -> str:
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key])
    if len(known) < len(rows):
        return f"{name} unknown for some"
    least, most = known[0], known[-1]
    if most[key] <= 1.01 * least[key]:  # a budget ends at a whole step
        return f"the same {name}, {si(most[key], unit)}"
    return f"different {name}, {si(least[key], unit)} ({least['arm']}) to {si(most[key], unit)} ({most['arm']})"


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


def _json(report: Report) -> dict:
    return {
        "format": "tokenizer-lab report 1",
        "findings": report.findings,
        "budgets": [group.budget for group in report.groups],
        "warnings": report.warnings,
        "order": report.order,
        **({"decision": as_json(report.decision)} if report.decision else {}),
        "arms": [arm.row | {"domains": arm.domains, "curve": arm.curve, "finetuned": arm.finetuned, "seconds_by_part": arm.summary["goodput"]["seconds_by_part"]}
                 for arm in report.ranked_arms],
    }
