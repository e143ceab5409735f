"""Runs on published splits: scored on valid while they train, and not at all where nothing is held out."""

import dataclasses
import json

import pytest

from data.ingest import IngestOptions, ingest
from train.commands import command_line
from train.optimizer import Budget
from train.run.folder import RunFolder, read_lines

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def run_on(recipe, write_recipe, tmp_path, capsys):
    """run_on(valid=("text", ...), ...): trains on 40 documents and these splits for 2 steps; gives the run's folder and
    what was said."""

    def run(**splits):
        for split, texts in {"train": [f"some text {number}" for number in range(40)], **splits}.items():
            file = tmp_path / f"{split}.jsonl"
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            ingest(IngestOptions(sources=(str(file),), out=tmp_path / "corpus", split=split))
        data = dataclasses.replace(recipe.data, corpora=(str(tmp_path / "corpus"),))
        path = write_recipe(dataclasses.replace(recipe, data=data, budget=Budget(steps=2)))
        assert command_line.run(["train", path, "--run-dir", str(tmp_path / "run")]) == 0
        return RunFolder(str(tmp_path / "run")), " ".join(capsys.readouterr().out.split())

    return run


def test_valid_is_scored_while_training_and_test_is_reported(run_on, capsys):
    run, _ = run_on(valid=["twelve bytes"], test=["a test text of", "22 bytes"])
    assert read_lines(run.evaluations)[-1]["num_bytes"] == 12
    assert command_line.run(["eval", str(run.path)]) == 0
    assert json.loads(run.evaluation.read_text())["num_bytes"] == 22
    assert command_line.run(["eval", str(run.path), "--split", "valid"]) == 0
    result = json.loads(run.evaluation.read_text())
    assert result["num_bytes"] == 12 and result["num_documents"] == 1
    assert result["corpus_content_hash"].endswith(" valid")


def test_a_corpus_without_held_out_text_is_trained_on(run_on, capsys):
    run, said = run_on()
    assert "no corpus holds anything out, so that nothing is scored while training" in said
    assert json.loads(run.summary.read_text())["steps"] == 2
    assert command_line.run(["eval", str(run.path)]) == 2
    assert "there are no test documents in" in capsys.readouterr().err
    assert command_line.run(["report", str(run.path), "--out", str(run.path / "report")]) == 0
