"""The report of an experiment: its decision first."""

import csv
import dataclasses
import json

import pytest

from tokenizer_lab.errors import UserError
from train.compare.decision_report import write_decision
from train.compare.in_words import supported


def test_page_of_an_experiment_begins_with_what_is_supported(experiment, tmp_path, text_of):
    folders, design = experiment
    report, decided = write_decision(folders, tmp_path / "out", design)
    text = text_of(report)
    assert "mine: 2 arms, 2 sizes, 2 seeds" in text
    order = [
        "What the numbers support",
        "What they do not",
        "Results",
        "Bits per byte against compute and text",
        "Laws",
        "Domains and scripts at size large",
        "Costs",
        "Noise",
        "Every run by itself",
    ]
    assert [text.index(title) for title in order] == sorted(text.index(title) for title in order)
    assert (
        "Size large, equal bytes of text: subword-4k has the lowest bits per byte of 2 arms" in text
        and "clearly ahead of byte by 0.300" in text
    )
    for shown in ("1.605", "0.300", "yes", "70.0 %", "Cyrillic", "525 kFLOPs"):
        assert shown in text, shown
    in_csv = list(csv.DictReader((tmp_path / "out/decision.csv").open()))
    assert [(row["size"], row["arm"]) for row in in_csv] == [
        (size, arm) for size in ("small", "large") for arm in ("subword-4k", "byte")
    ]
    decision = json.loads((tmp_path / "out/report.json").read_text())["decision"]
    assert decision["supported"] == supported(decided) and float(in_csv[2]["bits_per_byte"]) == decision["arms"][2][
        "bits_per_byte"
    ] == pytest.approx(1.605)
    assert set(decision["laws"]) == {"subword-4k", "byte"} and decision["laws"]["byte"]["slope"] < 0


def test_encoders_of_an_experiment_have_a_table_of_their_own(experiment, tmp_path, edit, text_of):
    folders, design = experiment
    for folder in folders[-2:]:
        detected = {
            "detection_nats": 0.3 + 0.02 * (folder is folders[-1]),
            "always_real_nats": 0.42,
            "auc": 0.7,
            "predicted_nats": None,
            "predicted_right": None,
        }
        edit(folder / "eval.json", bits_per_byte=None, interval_95=None, by_domain={}, encoder=detected)
    text = text_of(write_decision(folders, tmp_path / "out", design)[0])
    assert "What encoders detect and predict" in text and "0.3100" in text and "0.183 to 0.437" in text
    assert "Encoders have no bits per byte and are not ranked (subword-4k)" in text


def test_runs_that_are_missing_are_said(experiment, tmp_path, text_of):
    folders, design = experiment
    report, decided = write_decision(
        folders[:-1], tmp_path / "out", dataclasses.replace(design, places=design.places[:-1])
    )
    assert "subword-4k of size large is in no table yet: 1 of its 2 runs are finished and evaluated." in text_of(report)


def test_documents_of_another_evaluation_do_not_count(experiment, tmp_path, edit, text_of):
    folders, design = experiment
    for folder in folders:
        edit(folder / "eval_documents.json", step=1)
    assert "nothing to compare" in text_of(write_decision(folders, tmp_path / "out", design)[0])


@pytest.mark.parametrize("changes", [{"nats": [1.0]}, {"num_bytes": [None] * 140}, {"nats": "x"}])
def test_damaged_documents_are_said(experiment, tmp_path, changes, edit):
    edit(experiment[0][0] / "eval_documents.json", **changes)
    with pytest.raises(UserError, match="eval_documents.json"):
        write_decision(experiment[0], tmp_path / "out", experiment[1])
