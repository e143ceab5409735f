"""The compressor: `toklab fit equal_info` from text to a ranked arm, what it is charged with, and what it refuses."""

import dataclasses
import json
import os
import pathlib
import signal

import jax
import pytest

from data.store import Corpus
from models.decoder import DecoderConfig
from tokenizer_lab import load
from tokenizer_lab.equal_info import window_stream
from train import loop
from train.commands import command_line
from train.optimizer import Budget, OptimizerConfig
from train.recipe import DataConfig, EvaluationConfig, Recipe, read_recipe, to_json
from train.run.checkpoints import CheckpointConfig
from train.run.folder import RunFolder, read_lines
from train.run.logs import LoggingConfig
from train.setup import set_up

RECIPE_FILE = """
import json, pathlib
from train.recipe import Recipe, from_json

def recipe():
    return from_json(Recipe, json.loads(pathlib.Path({path!r}).read_text()))
"""


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A folder with the recipe of a byte language model so small that it trains in a second."""

    folder: pathlib.Path
    corpus: str
    recipe: Recipe

    def write(self, **sections) -> str:
        """The file of the recipe, fields of whose sections may be changed."""
        changed = {name: dataclasses.replace(getattr(self.recipe, name), **fields) for name, fields in sections.items()}
        path = self.folder / f"recipe-{'-'.join(sections) or 'plain'}.json"
        path.write_text(json.dumps(to_json(dataclasses.replace(self.recipe, **changed))))
        path.with_suffix(".py").write_text(RECIPE_FILE.format(path=str(path)))
        return str(path.with_suffix(".py"))

    def fit(self, name: str, *options: str, lm_recipe: str = "") -> int:
        arguments = ["fit", "equal_info", "--corpus", self.corpus, "--out", str(self.folder / name)]
        sample = ["--sample-bytes", "300"]
        return command_line.run([*arguments, *sample, "--lm-recipe", lm_recipe or self.write(), *options])

    def train(self, name: str, run: str, *options: str) -> int:
        """An arm over the ids of an artifact, by the same recipe."""
        arguments = ["train", self.write(data={"piece_length": 0}), "--run-dir", str(self.folder / run)]
        return command_line.run([*arguments, "--representation", str(self.folder / name), *options])

    def costs(self, name: str) -> dict[str, float]:
        return json.loads((self.folder / name / "manifest.json").read_text())["costs"]

    def json(self, *path: str):
        return json.loads(self.folder.joinpath(*path).read_text())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, corpus, byte_artifact):
    recipe = Recipe(
        name="compressor",
        representation=str(byte_artifact),
        data=DataConfig(corpora=(str(corpus),), batch_rows=8, sequence_length=16, piece_length=4),
        budget=Budget(steps=6),
        model=DecoderConfig(
            num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16, compute_dtype="float32"
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(every_steps=100),
        evaluation=EvaluationConfig(every_steps=100, max_bytes=300, batch_rows=8),
        logging=LoggingConfig(every_steps=1, tensorboard=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        # One device, and few lanes: each number of them is compiled anew.
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        patch.setattr(window_stream, "MAX_LANES", 4)
        yield Workplace(tmp_path_factory.mktemp("workplace"), str(corpus), recipe)


@pytest.fixture(scope="module")
def fitted(workplace) -> list[str]:
    """The names of two artifacts: a table, with which a language model was trained, and one that keeps that model."""
    assert workplace.fit("w16") == 0
    assert workplace.fit("w32", "--window-bits", "32", "--id-bits", "8", "--lm", str(workplace.folder / "w16-lm")) == 0
    return ["w16", "w32"]


def refused(capsys, exit_code: int) -> str:
    """The one line of a command that was refused."""
    complaint = capsys.readouterr().err
    assert exit_code == 2 and complaint.startswith("toklab: ") and complaint.count("\n") == 1, complaint
    return complaint


def test_a_language_model_is_trained_beside_the_artifact_and_charged_to_it(workplace, fitted):
    summary = workplace.json("w16-lm", "summary.json")
    assert (summary["state"], summary["steps"]) == ("finished", 6)
    config = workplace.json("w16-lm", "config.json")
    assert config["data"]["piece_length"] == 4 and load(config["representation"]).kind == "byte"
    assert workplace.costs("w16")["fit_flops"] > summary["flops"] and workplace.costs("w16")["encode_flops_per_id"] == 0
    assert workplace.costs("w32")["fit_flops"] == summary["flops"] and workplace.costs("w32")["encode_flops_per_id"] > 0
    hashes = {load(workplace.folder / name).fit_corpus_hash for name in fitted}
    assert hashes == {Corpus.open(workplace.corpus).content_hash}


@pytest.mark.slow
def test_the_whole_path_to_a_report(workplace, fitted, capsysbinary):
    for name in fitted:
        run = f"run-{name}"
        assert workplace.train(name, run) == 0
        assert command_line.run(["eval", str(workplace.folder / run)]) == 0
        assert command_line.run(["sample", str(workplace.folder / run), "--prompt", "the an", "--max-tokens", "6"]) == 0
        summary, evaluation = workplace.json(run, "summary.json"), workplace.json(run, "eval.json")
        setup = set_up(read_recipe(RunFolder(workplace.folder / run)))
        fit_flops = workplace.costs(name)["fit_flops"]
        assert summary["flops"] == pytest.approx(fit_flops + 6 * setup.flops_per_step) == pytest.approx(setup.flops(6))
        encode = workplace.costs(name)["encode_flops_per_id"] * setup.tokens_per_step
        assert setup.flops_per_step == pytest.approx(setup.model_flops_per_step + encode)
        representation = load(workplace.folder / name)
        bits_per_id, text = representation.id_bits, evaluation["text"]
        assert text["uniform_bits_per_byte"] == pytest.approx(bits_per_id / text["bytes_per_id"])
        assert 0 < text["unigram_bits_per_byte"] <= text["uniform_bits_per_byte"]
    out = workplace.folder / "report"
    runs = [str(workplace.folder / f"run-{name}") for name in fitted]
    assert command_line.run(["report", *runs, "--out", str(out)]) == 0, capsysbinary.readouterr().err
    arms = json.loads((out / "report.json").read_text())["arms"]
    rows = {pathlib.Path(arm["folder"]).name: arm for arm in arms}
    for name in fitted:
        row, evaluation = rows[f"run-{name}"], workplace.json(f"run-{name}", "eval.json")
        assert {column: row[column] for column in evaluation["text"]} == pytest.approx(evaluation["text"])
        assert row["fit_flops"] == workplace.costs(name)["fit_flops"]
        assert row["fit_flops_per_byte"] == pytest.approx(row["fit_flops"] / row["bytes_seen"])
        assert row["stop_bits_per_byte"] >= 0 and row["closing_bits_per_byte"] > 0


def test_a_budget_that_fitting_has_spent_is_refused(workplace, fitted, capsys):
    fit_flops = workplace.costs("w16")["fit_flops"]
    for budget in (0.5 * fit_flops, fit_flops):
        exit_code = workplace.train("w16", "run-poor", "--budget.steps", "None", "--budget.flops", repr(budget))
        assert "is no more than the" in (complaint := refused(capsys, exit_code)) and "w16" in complaint
        assert not (workplace.folder / "run-poor").exists()


def test_a_budget_pays_for_fitting_first(workplace, fitted):
    setup = set_up(dataclasses.replace(workplace.recipe, representation=str(workplace.folder / "w16")))
    budget = setup.fit_flops + 2.5 * setup.flops_per_step
    with_budget = dataclasses.replace(setup.recipe, budget=Budget(flops=budget))
    assert set_up(with_budget).num_steps == 3
    assert setup.flops(3) >= budget > setup.flops(2)


def test_a_run_over_other_ids_is_no_compressor(workplace, capsys):
    subword, run = str(workplace.folder / "subword"), str(workplace.folder / "run-subword")
    assert (
        command_line.run(["fit", "subword", "--corpus", workplace.corpus, "--out", subword, "--vocab-size", "270"]) == 0
    )
    assert workplace.train("subword", "run-subword", "--budget.steps", "1") == 0
    capsys.readouterr()
    for lm, message in (
        (run, "run-subword is a run of a decoder over subword ids; a compressor is a decoder over bytes"),
        (str(workplace.folder / "nothing"), "nothing is not a run"),
    ):
        assert message in refused(capsys, workplace.fit("no-compressor", "--window-bits", "32", "--lm", lm))
    assert not list(workplace.folder.glob("no-compressor*"))


def test_a_corpus_smaller_than_a_batch_is_refused(workplace, capsys):
    recipe = workplace.write(data={"sequence_length": 1 << 20})
    complaint = refused(capsys, workplace.fit("w16-of-little", lm_recipe=recipe))
    assert "less than one batch (8,388,608)" in complaint
    assert "ingest more text, or choose a smaller --lm-recipe" in complaint
    assert not list(workplace.folder.glob("w16-of-little*"))


def test_a_recipe_of_another_model_is_refused_before_it_is_trained(workplace, capsys):
    complaint = refused(capsys, workplace.fit("w16-of-encoder", lm_recipe="electra_small"))
    assert "electra_small trains a model of kind 'encoder'; a compressor is a decoder over bytes" in complaint
    assert not list(workplace.folder.glob("w16-of-encoder*"))


@pytest.mark.parametrize(("window_bits", "id_bits"), [("24", "16"), ("20", "8")])
def test_windows_that_ids_do_not_fill_are_refused_before_anything_is_trained(workplace, capsys, window_bits, id_bits):
    complaint = refused(capsys, workplace.fit("odd", "--window-bits", window_bits, "--id-bits", id_bits))
    assert f"windows of {window_bits} bits in ids of {id_bits}" in complaint
    assert not list(workplace.folder.glob("odd*"))


def test_training_the_language_model_goes_on_after_a_signal(workplace, fitted, capsys, monkeypatch):
    looked, look_at = [], loop.look_at

    def stopping(*arguments):
        looked.append(None)
        if len(looked) == 1:  # it takes effect up to three steps later
            os.kill(os.getpid(), signal.SIGTERM)
        return look_at(*arguments)

    monkeypatch.setattr(loop, "look_at", stopping)
    options = ["--window-bits", "32", "--id-bits", "8"]
    assert workplace.fit("stopped", *options) == 75
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (workplace.folder / "stopped").exists()
    steps = workplace.json("stopped-lm", "summary.json")["steps"]
    assert 0 < steps < 6
    assert workplace.fit("stopped", *options) == 0
    lines = read_lines(RunFolder(workplace.folder / "stopped-lm").metrics)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    straight = load(workplace.folder / "w32")
    assert load(workplace.folder / "stopped").fingerprint == straight.fingerprint, "another model than straight through"


def test_tied_embeddings_are_quantized_as_both_tables(workplace):
    recipe = workplace.write(model={"tied_embeddings": True}, budget={"steps": 1})
    assert workplace.fit("tied", "--window-bits", "32", lm_recipe=recipe) == 0
    representation = load(workplace.folder / "tied")
    assert representation.decode(representation.encode(b"tied")) == b"tied"
