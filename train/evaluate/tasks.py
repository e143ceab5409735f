"""Tasks to fine-tune on: files of labelled sentences and pairs, and the metrics of what was predicted.

A file is jsonl, an object a line with the field `label` and one or two texts, under names in `FIELDS` or as they are
told; or tab-separated, with those names in its first line, or without names and with the label last.
"""

import csv
import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats

from tokenizer_lab.errors import UserError, reason

FIELDS = (
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)  # of one text or two, the first of which all are there
_WHOLE = re.compile(r"([+-]?\d{1,300})\.0*")  # a whole number, written as a fraction
DEV_SHARE = 0.1  # held out where no file of its own is given


@dataclasses.dataclass(frozen=True)
class Example:
    """One or two texts and their label."""

    texts: tuple[str, ...]
    label: str
    where: str
    """File and line, for messages."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned and what it is judged by.

    Attributes:
      labels: the classes, sorted; empty where a number is predicted.
    """

    name: str
    train: list[Example]
    dev: list[Example]
    labels: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        return len(self.labels) or 1

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """i32[n] numbers of classes, or f32[n]. Raises UserError for a label that training never saw."""
        if not self.labels:
            return np.array([_number(example) for example in examples], np.float32)
        known = {label: number for number, label in enumerate(self.labels)}
        for example in examples:
            if example.label not in known:
                shown = ", ".join(map(repr, self.labels[:8]))
                raise UserError(
                    f"{example.where}: label {example.label!r} is in no training example, which have {shown}; correct"
                    " it, or train on such a label"
                )
        return np.array([known[example.label] for example in examples], np.int32)


def read_task(train: pathlib.Path, dev: pathlib.Path | None, kind: str = "auto", fields: Sequence[str] = ()) -> Task:
    """A task from its files.

    Args:
      train: examples to learn from.
      dev: examples to be judged by; a tenth of the training examples, chosen by their text, if there is no such file.
      kind: "classification", "regression", or "auto": numbers that are not all whole are predicted as numbers.
      fields: names of the one or two texts of an example; by default the first of `FIELDS`, if no other text is there.

    Raises:
      UserError: a file is missing or damaged, in the words of the module, or leaves nothing to learn.
    """
    examples = read_examples(train, fields)
    if dev is None:
        held_out = [_chance(example) < DEV_SHARE for example in examples]
        learned = [example for example, out in zip(examples, held_out) if not out]
        judged = [example for example, out in zip(examples, held_out) if out]
    else:
        learned, judged = examples, read_examples(dev, fields)
    for what, found in (("learn from", learned), ("be judged by", judged)):
        if not found:
            raise UserError(f"{train} leaves no examples to {what}; give more of them, or a file of its own with --dev")
    lengths = {len(example.texts) for example in learned + judged}
    if len(lengths) > 1:
        raise UserError(
            f"{dev or train} has single sentences and {train} has pairs, or the other way round; give both files the"
            " same columns"
        )
    is_regression = kind == "regression" or (
        kind == "auto"
        and all(_is_number(example.label) for example in learned)
        and any(not float(example.label).is_integer() for example in learned)
    )
    labels = () if is_regression else tuple(sorted({example.label for example in learned}))
    if not is_regression and len(labels) < 2:
        raise UserError(f"{train}: every example has the label {labels[0]!r}; there is nothing to tell apart")
    return Task(task_name(train), learned, judged, labels)


def task_name(train: pathlib.Path) -> str:
    """A file's name up to its first dot, or its folder's name where that is just "train"."""
    name = train.name.split(".")[0]
    return train.absolute().parent.name if name == "train" else name


def read_examples(path: pathlib.Path, fields: Sequence[str] = ()) -> list[Example]:
    """Every example of a file. Raises UserError naming file, line and what is missing, or would be left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; a task is a .jsonl or .tsv file in UTF-8") from error
    if path.suffix in (".jsonl", ".json"):
        return _from_json_lines(path, text, fields)
    if path.suffix in (".tsv", ".txt"):
        return _from_columns(path, text, fields)
    raise UserError(f"{path} is neither .jsonl nor .tsv; rename it, or convert it")


def _from_json_lines(path: pathlib.Path, text: str, fields: Sequence[str]) -> list[Example]:
    examples = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not JSON ({reason(error)}); each line is one object"
                ) from error
            examples.append(_example(record if isinstance(record, dict) else {}, fields, f"{path}, line {number}"))
    return examples


def _from_columns(path: pathlib.Path, text: str, fields: Sequence[str]) -> list[Example]:
    rows = list(csv.reader(text.rstrip("\n").split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE))
    if not any(rows):
        return []
    named = "label" in rows[0]
    width = len(rows[0])
    if not named and width not in (2, 3):
        raise UserError(
            f"{path} has {width} columns and no names; columns are a text (or two) and a label, or named in the first"
            " line, one of them 'label'"
        )
    names = rows[0] if named else ["sentence1", "sentence2", "label"] if width == 3 else ["sentence", "label"]
    examples = []
    for number, row in enumerate(rows[named:], 1 + named):
        if row:
            if len(row) != len(names):
                raise UserError(
                    f"{path}, line {number}: {len(row)} columns where there should be {len(names)} ({', '.join(names)})"
                )
            examples.append(_example(dict(zip(names, row)), fields, f"{path}, line {number}"))
    return examples


def _example(record: dict[str, Any], fields: Sequence[str], where: str) -> Example:
    """The example in a record.

    Args:
      record: name -> value.
      fields: names of its texts, if they were told.
      where: file and line.
    """
    is_text = lambda name: isinstance(record.get(name), str)
    chosen = next((names for names in ([fields] if fields else FIELDS) if all(map(is_text, names))), None)
    label = record.get("label")
    if chosen is None or isinstance(label, bool) or not isinstance(label, str | int | float):
        wanted = " and ".join(map(repr, fields)) or "'sentence', 'text', or 'sentence1' and 'sentence2'"
        raise UserError(
            f"{where}: there should be 'label' and {wanted}; there is {', '.join(record) or 'nothing'}; name the texts"
            " with --fields"
        )
    left_out = [name for name in record if name not in ("label", *chosen) and is_text(name) and _is_words(record[name])]
    if left_out and not fields:
        raise UserError(
            f"{where}: besides {' and '.join(chosen)} there is text in {', '.join(left_out)}, which would be left out;"
            f" name the one or two to take, e.g. --fields {' '.join([left_out[0], chosen[0]])}"
        )
    texts = tuple(record[field] for field in chosen)
    if not any(text.strip() for text in texts):
        raise UserError(f"{where}: the text is empty; take the line out")
    return Example(texts, _label(label), where)


def _is_words(value: str) -> bool:
    return bool(value.strip()) and not _is_number(value)


def _label(value: str | int | float) -> str:
    """A label in one form: 0, 0.0, "0" and "0.0" are the same."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    whole = _WHOLE.fullmatch(text)
    return str(int(whole[1])) if whole else text


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False


def _number(example: Example) -> float:
    if not _is_number(example.label):
        raise UserError(
            f"{example.where}: label {example.label!r} is no number, as the labels of the training examples are;"
            " correct it, or use --kind classification"
        )
    return float(example.label)


def _chance(example: Example) -> float:
    return int.from_bytes(hashlib.blake2b("\t".join(example.texts).encode(), digest_size=8).digest(), "little") / 2**64


def metrics(predicted: np.ndarray, targets: np.ndarray, num_classes: int) -> dict[str, float]:
    """What predictions are worth.

    Args:
      predicted, targets: classes i[n], or numbers f[n] with num_classes 0.

    Returns:
      accuracy, f1 (of class 1 where there are two classes, else the mean over classes) and matthews; or pearson and
      spearman. 0 where a metric is not defined because all predictions are the same.
    """
    if not num_classes:
        constant = np.ptp(predicted) == 0 or np.ptp(targets) == 0
        return {
            "pearson": 0.0 if constant else float(scipy.stats.pearsonr(predicted, targets).statistic),
            "spearman": 0.0 if constant else float(scipy.stats.spearmanr(predicted, targets).statistic),
        }
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion, (targets, predicted), 1)
    right, of_class, as_class = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * right / np.maximum(1, of_class + as_class)
    return {
        "accuracy": float(right.sum() / len(targets)),
        "f1": float(f1[1] if num_classes == 2 else f1.mean()),
        "matthews": _matthews(confusion),
    }


def _matthews(confusion: np.ndarray) -> float:
    """The correlation of two labelings (Gorodkin 2004, R_K)."""
    total, right, of_class, as_class = (
        confusion.sum(),
        np.trace(confusion),
        confusion.sum(axis=1),
        confusion.sum(axis=0),
    )
    scale = (total**2 - as_class @ as_class) * (total**2 - of_class @ of_class)
    return float((right * total - of_class @ as_class) / math.sqrt(scale)) if scale else 0.0
