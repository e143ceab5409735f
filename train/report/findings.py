"""What runs come to side by side: which may be ranked together, in what order, and what a reader must know first."""

import collections
import dataclasses
import functools
import math
from typing import Any

import numpy as np
from etils import epath

from train.evaluate.intervals import Interval, middle_95, resampled_bits_per_byte
from train.report.page import fixed, short, si
from train.report.runs import RunRead
from train.run.document_hashes import common_documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Arms that one ranking may hold: they have the same held-out text.

    Attributes:
      text: content hash of that text.
      arms: best first; those without an evaluation last.
    """

    text: str
    arms: list[RunRead]

    @property
    def name(self) -> str:
        return f"held-out text {short(self.text)}"

    @functools.cached_property  # the page, the JSON and the terminal have it, and a bootstrap is in it
    def finding(self) -> str:
        """The result in a sentence or two."""
        ranked = [arm.row for arm in self.arms if arm.row["bits_per_byte"] is not None]
        if not ranked and all(arm.is_encoder for arm in self.arms):
            return (
                "Encoders have no bits per byte to rank them by; what they detect, predict and come to on tasks is"
                " below."
            )
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
            return (
                f"{found} On the same documents {second.label} is behind by {fixed(low, 3)} to {fixed(high, 3)} (95 %,"
                f" a bootstrap over documents; other seeds may differ){settled}."
            )
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
class Opening:
    """What a report begins with where its runs are those of an experiment.

    Attributes:
      title: of the page.
      html: its first sections, finished.
      data: the same for `report.json`.
    """

    title: str
    html: str
    data: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `write_report` wrote.

    Attributes:
      arms: every run, in the order given.
      groups: the same arms, by what they may be compared with.
      warnings: what a reader must know before comparing, an entry each.
      order: which arms have read the same documents, an entry each that shows it.
      index: the page.
      opening: what the page begins with, of an experiment.
    """

    arms: list[RunRead]
    groups: list[Group]
    warnings: list[str]
    order: list[str]
    index: epath.Path
    opening: Opening | None

    @property
    def ranked_arms(self) -> list[RunRead]:
        """Group after group, best first in each."""
        return [arm for group in self.groups for arm in group.arms]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """`RunRead.row` of `ranked_arms`."""
        return [arm.row for arm in self.ranked_arms]

    @property
    def findings(self) -> list[str]:
        """The finding of each group, which is named where there are several."""
        if len(self.groups) == 1:
            return [self.groups[0].finding]
        return [f"{group.name.capitalize()}: {group.finding}" for group in self.groups]


def group_arms(arms: list[RunRead]) -> list[Group]:
    """Puts arms with the same held-out text together."""
    by_text = collections.defaultdict(list)
    for arm in sorted(arms, key=_bits_per_byte):
        by_text[arm.held_out_text].append(arm)
    return [Group(text=text, arms=members) for text, members in by_text.items()]


def _bits_per_byte(arm: RunRead) -> float:
    number = arm.row["bits_per_byte"]
    return math.inf if number is None else number


def comparing_warnings(arms: list[RunRead], groups: list[Group]) -> list[str]:
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
            warnings.append(
                f"{fixed(seen)} of the held-out documents of {arm.label} are also among those it was trained on, byte"
                " for byte."
            )
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


def orders(arms: list[RunRead]) -> tuple[list[str], list[str]]:
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
            same.append(
                f"{', '.join([first.label, *agreeing])} have read the same documents in the same order, by the running"
                f" hashes of their {len(least):,} rows: {sum(least.values()):,} documents at least,"
                f" {min(least.values()):,} to {max(least.values()):,} of each row."
            )
        other += [
            f"{label} and {first.label} have not read the same documents in the same order, though seed, rows and text"
            " are the same."
            for label, number in through.items()
            if number is None
        ]
    return same, other


def _paired_difference(first: dict[str, Any], second: dict[str, Any]) -> Interval:
    """95 % interval of what the second takes more than the first, in bits per byte, over documents."""
    nats_an = np.array([first["nats"], second["nats"]])
    resampled_ra = resampled_bits_per_byte(nats_an, np.array(first["num_bytes"]))
    return middle_95(resampled_ra[:, 1] - resampled_ra[:, 0])


def _score(row: dict[str, Any]) -> str:
    interval = f" (95 % interval {fixed(row['bits_per_byte_low'], 3)} to {fixed(row['bits_per_byte_high'], 3)})"
    return fixed(row["bits_per_byte"], 3) + ("" if row["bits_per_byte_low"] is None else interval)


def _spread(rows: list[dict[str, Any]], key: str, name: str, unit: str) -> str:
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key])
    if len(known) < len(rows):
        return f"{name} unknown for some"
    least, most = known[0], known[-1]
    if most[key] <= 1.01 * least[key]:  # a budget ends at a whole step
        return f"the same {name}, {si(most[key], unit)}"
    return f"different {name}, {si(least[key], unit)} ({least['arm']}) to {si(most[key], unit)} ({most['arm']})"
