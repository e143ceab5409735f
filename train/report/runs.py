"""What a run's folder holds, read for reports: text from a stranger, whose form is checked."""

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from tokenizer_lab import files
from tokenizer_lab.errors import UserError
from train.report.page import printable as _printable
from train.run.document_hashes import Hashes, read_hashes

# The form of a run's files: `float` is a finite number or null, `...` any other key, a tuple that many items or null.
_SUMMARY = {
    "name": str,
    "state": str,
    "device": str,
    "versions": {...: str},
    "corpora": [{"path": str, "content_hash": str}],
    "representation": {
        "kind": str,
        "vocab_size": float,
        "fingerprint": str,
        "bytes_per_token": float,
        "costs": {...: float},
        "statistics": {...: float},
    },
    "parameters": {"total": float, ...: float},
    "flops_per_token": {"total": float, ...: float},
    "steps": float,
    "bytes_seen": float,
    "tokens_seen": float,
    "flops": float,
    "seconds": float,
    "skipped_steps": float,
    "flops_per_byte": float,
    "bytes_per_second": float,
    "tokens_per_second": float,
    "outside_step_share": float,
    "goodput": {"seconds": float, "share": float, "starts": float, "seconds_by_part": {...: float}},
    "save_memory_growth_bytes": float,
}
_POINT = {"step": float, "bytes_seen": float, "flops": float, "bits_per_byte": float}
_SCORE = {"bits_per_byte": float, "interval_95": (float, float), "num_bytes": float, "num_documents": float}
_CURVE_POINT = _POINT | {"num_bytes": float}
_TEXT = {"bytes_per_id": float, "uniform_bits_per_byte": float, "unigram_bits_per_byte": float}
_EVALUATION = (
    _POINT
    | _SCORE
    | {
        "corpus_content_hash": str,
        "by_domain": {...: _SCORE},
        "text": _TEXT,
        "encoder": {...: float},
        "costs": {...: float},
        "num_documents_in_training": float,
    }
)
_DOCUMENTS = {
    "step": float,
    "corpus_content_hash": str,
    "nats": [float],
    "num_bytes": [float],
    "domains": [str],
    "scripts": [str],
}
_BY_WINDOW = {"step": float, "corpus_content_hash": str, "stride": float, "bits_per_byte": float}
_NOISE = {
    "step": float,
    "corpus_content_hash": str,
    "levels": [{"rate": float, "bits_per_byte": float, "accuracy": float}],
}
_FINETUNED = {
    "task": str,
    "num_train": float,
    "num_dev": float,
    "finetune_flops": float,
    "metrics": {...: {"median": float, "low": float, "high": float, "values": [float]}},
}
_MINIMAL_PAIRS = {"accuracy": float, "num_pairs": float, "score": str}
_MAY_LACK: dict[str, Any] = {  # what encoders or decoders do not have, or runs of before it was written down
    "bits_per_byte": None,
    "encoder": {},
    "save_memory_growth_bytes": None,
    "costs": {},
    "num_documents_in_training": None,
    "goodput": {"seconds": None, "share": None, "starts": None, "seconds_by_part": {}},
}
_SETTINGS = {"temperature": float, "top_k": float, "top_p": float, "seed": float, "step": float}
_SAMPLES = [{"prompt": str, "text": str} | _SETTINGS]
_FORM_NAMES = {
    float: "a finite number or null",
    str: "a text",
    dict: "an object",
    list: "a list",
    tuple: "two numbers or null",
}

ENCODER_FIGURES = ("detection_nats", "always_real_nats", "auc", "predicted_nats", "predicted_right")
_EMBEDDINGS = ("embedding", "softmax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRead:
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
      order: what decides which documents its rows read, besides the text: seed, rows of a batch and weights of the
        corpora.
      documents: running hashes of what its rows have read.
      documents_scored: what each document cost in `evaluation`.
      by_window: bits per byte of the same text by a sliding window, which nothing else here is compared with.
      noise: what it came to on text with wrong characters.
    """

    label: str
    folder: str
    config: str
    objective: str
    summary: dict[str, Any]
    curve: list[dict[str, Any]]
    training: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    samples: list[dict[str, Any]]
    finetuned: list[dict[str, Any]]
    minimal_pairs: dict[str, Any] | None
    order: tuple[str, ...]
    documents: Hashes
    documents_scored: dict[str, Any] | None
    by_window: dict[str, Any] | None
    noise: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        return self.summary["state"] == "finished"

    @property
    def evaluations(self) -> list[dict[str, Any]]:
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
    def domains(self) -> dict[str, dict[str, Any]]:
        """Domain -> its score."""
        return self.evaluation["by_domain"] if self.evaluation else {}

    @property
    def task_scores(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(task, metric) -> median, low and high over seeds."""
        return {
            (result["task"], metric): values
            for result in self.finetuned
            for metric, values in result["metrics"].items()
        }

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
            "bits_per_byte_by_window": self.by_window["bits_per_byte"] if self.by_window else None,
            "window_stride": self.by_window["stride"] if self.by_window else None,
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


def read_runs(folders: Sequence[epath.PathLike]) -> list[RunRead]:
    """Reads run folders. Raises UserError where none was given, one twice, one is not a run or a file in it is
    damaged."""
    if not folders:
        raise UserError("no runs were given; name one folder or more, e.g. `toklab report runs/byte runs/subword`")
    return _with_distinct_labels([read_run(folder) for folder in folders])


def read_run(folder: epath.PathLike) -> RunRead:
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
    if summary["representation"]["statistics"].get("lost_windows"):  # an older version has trained on such
        raise UserError(f"{folder} is over ids that lose bytes, of which there are no bits per byte; leave it out")
    return RunRead(
        label=_one_line(summary["name"]) or folder.name,
        folder=_printable(str(folder)),
        config=_printable(config),
        objective=_one_line(_printable(str(kind))),
        summary=summary,
        curve=_by_step(_read_lines(folder / "eval.jsonl", _CURVE_POINT, unfinished)),
        training=_by_step(_read_lines(folder / "metrics.jsonl", _POINT, unfinished)),
        evaluation=evaluation,
        samples=_read(folder / "samples.json", _SAMPLES) if (folder / "samples.json").exists() else [],
        finetuned=[_read(path, _FINETUNED) for path in files.matching(folder / "finetune", "*.json")],
        minimal_pairs=_read(folder / "blimp.json", _MINIMAL_PAIRS) if (folder / "blimp.json").exists() else None,
        order=_order(recipe),
        documents=read_hashes(folder / "documents"),
        documents_scored=_of_evaluation(evaluation, folder / "eval_documents.json", _DOCUMENTS),
        by_window=_of_evaluation(evaluation, folder / "eval_stride.json", _BY_WINDOW),
        noise=_of_evaluation(evaluation, folder / "noise.json", _NOISE),
    )


def _of_evaluation(evaluation: dict[str, Any] | None, path: epath.Path, form: Any) -> dict[str, Any] | None:
    """A file that goes with `eval.json`; None where there is none, or it is of another step or text."""
    if not evaluation or not path.exists():
        return None
    value = _read(path, form)
    if not value or any(value[key] != evaluation[key] for key in ("step", "corpus_content_hash")):
        return None
    columns = [column for key, column in value.items() if key in ("nats", "num_bytes", "domains", "scripts")]
    if any(len(column) != evaluation["num_documents"] or None in column for column in columns):
        raise UserError(
            f"{path} does not have an entry for each of the documents of eval.json; make it again with `toklab eval`"
        )
    return value


def _order(recipe: Any) -> tuple[str, ...]:
    """As `RunRead.order`, of a config that may lack any of it."""
    recipe = recipe if isinstance(recipe, dict) else {}
    data = recipe.get("data") if isinstance(recipe.get("data"), dict) else {}
    return str(recipe.get("seed")), str(data.get("batch_rows")), str(data.get("weights"))


def _read(path: epath.Path, form: Any) -> Any:
    return _checked(files.read_json(path, "run"), form, str(path))


def _read_lines(path: epath.Path, form: Any, unfinished: bool) -> Iterator[dict[str, Any]]:
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
            value = {
                key: default for key, default in _MAY_LACK.items() if form.keys() & {"step", "steps"} and key in form
            } | value
            if missing := [key for key in form if key is not ... and key not in value]:
                raise UserError(f"{where} lacks {', '.join(missing)}; {remedy}")
            forms = {key: form.get(key, form.get(...)) for key in value if key in form or ... in form}
            names = {key: _one_line(_printable(key)) for key in forms}
            return {names[key]: _checked(value[key], forms[key], f"{where}: {names[key]}") for key in forms}
    return value


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _by_step(points: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """In order of steps. A resumed run may have taken a step again; what it wrote last counts."""
    latest = {point["step"] or 0: point for point in points}
    return [latest[step] for step in sorted(latest)]


def _with_distinct_labels(arms: list[RunRead]) -> list[RunRead]:
    folders = collections.Counter(
        arm.folder if files.is_remote(arm.folder) else str(epath.Path(arm.folder).resolve()) for arm in arms
    )
    labels = collections.Counter(arm.label for arm in arms)
    for folder, times in folders.items():
        if times > 1:
            raise UserError(f"{folder} was given {times} times; name each run once")
    longer = [f"{arm.label} ({arm.folder})" if labels[arm.label] > 1 else arm.label for arm in arms]
    return [dataclasses.replace(arm, label=label) for arm, label in zip(arms, longer, strict=True)]
