"""A run's folder, moved to another place and without the text it was trained on."""

import json
import shutil

import jax
import numpy as np
import pytest
import rich.console
from flax import nnx

from models.decoder import DecoderConfig
from tokenizer_lab.subword.fit import SubwordFit
from train.commands import command_line
from train.evaluate.bits_per_byte import make_judge
from train.loop import train
from train.optimizer import Budget
from train.setup import load_run
from train.summary import FINISHED

NARROW = DecoderConfig(
    num_layers=1, embed_dim=36, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=40, compute_dtype="float32"
)


@pytest.fixture(scope="module")
def moved(tmp_path_factory, make_corpus, make_recipe, change):
    """(run, corpus): where both are now. The run is of subwords, of a width that eight devices do not divide."""
    folder = tmp_path_factory.mktemp("moved")
    corpus = make_corpus(folder / "before" / "corpus")
    SubwordFit(vocab_size=270).fit([b"the of and to in a is that it was"] * 9, "").save(folder / "before" / "subword")
    recipe = change(
        make_recipe(budget=Budget(steps=2), model=NARROW, representation=str(folder / "before" / "subword")),
        data={"corpora": (str(corpus),)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        run = str(folder / "before" / "run")
        assert train(recipe, run, rich.console.Console(quiet=True), make_judge) == FINISHED
    shutil.copytree(run, folder / "now" / "run")
    shutil.copytree(corpus, folder / "now" / "corpus")
    shutil.rmtree(folder / "before")
    return folder / "now" / "run", folder / "now" / "corpus"


def toklab(capsysbinary, *arguments, code=0):
    """What a command says, on one line; it ends with `code`."""
    found = command_line.run([*map(str, arguments)])
    captured = capsysbinary.readouterr()
    said = " ".join((captured.out + captured.err).decode(errors="replace").split())
    assert found == code, said
    return said


def test_its_model_is_traced_once_for_shapes(moved, one_device, monkeypatch):
    traced, eval_shape = [], nnx.eval_shape
    monkeypatch.setattr(nnx, "eval_shape", lambda build: traced.append(build) or eval_shape(build))
    load_run(str(moved[0]))
    assert len(traced) == 1


def test_it_is_sampled_from_however_long_the_prompt(moved, one_device, capsysbinary):
    options = "--max-tokens", 5
    assert "the of" in toklab(capsysbinary, "sample", moved[0], "--prompt", "the of", *options)
    assert "the prompt has" in toklab(capsysbinary, "sample", moved[0], "--prompt", "the of and" * 40, *options)
    toklab(capsysbinary, "sample", moved[0], "--prompt", "", *options)
    toklab(capsysbinary, "sample", moved[0], "--prompt", "the o", "--exact-bytes", *options)


def test_it_is_exported_and_says_what_could_not_be_checked(moved, tmp_path, one_device, capsysbinary):
    said = toklab(capsysbinary, "export", moved[0], "--to", "hf", "--out", tmp_path / "hf")
    assert "was not checked on the run's text" in said and (tmp_path / "hf" / "model.safetensors").exists()


def test_it_is_fine_tuned_and_scored_on_pairs(moved, tmp_path, one_device, capsysbinary):
    examples = [{"label": label, "sentence": f"{word} of"} for label, word in [("a", "the"), ("b", "and")] * 8]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    pair = {"sentence_good": "the of and", "sentence_bad": "and of the"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    task, once = tmp_path / "task.jsonl", ("--num-seeds", 1, "--num-epochs", 1, "--batch-rows", 8)
    assert "accuracy" in toklab(capsysbinary, "finetune", moved[0], "--task", task, "--dev", task, *once)
    assert "log-likelihood" in toklab(capsysbinary, "blimp", moved[0], "--pairs", tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("way", [(), ("--exact-bytes", "--max-bytes", 40), ("--noise",)])
def test_an_evaluation_says_that_the_text_is_missing_and_takes_it_from_where_it_is(
    moved, way, one_device, capsysbinary
):
    run, corpus = moved
    said = toklab(capsysbinary, "eval", run, *way, code=2)
    assert "before/corpus any more; give --corpus CORPUS" in said and len(said) < 400
    said = toklab(capsysbinary, "eval", run, *way, "--corpus", corpus)
    assert "bits/byte" in said and ("not looked at" in said) == ("--exact-bytes" not in way)


def test_a_report_says_that_a_run_has_no_evaluation(moved, tmp_path, capsysbinary):
    run = shutil.copytree(moved[0], tmp_path / "run")
    (run / "eval.json").unlink(missing_ok=True)
    toklab(capsysbinary, "report", run, "--out", tmp_path / "report")
    assert f"toklab eval {run}" in (tmp_path / "report" / "index.html").read_text()


def test_it_lies_over_as_many_devices_as_its_width_divides_and_says_the_same(moved, one_device, monkeypatch):
    alone = load_run(str(moved[0]))
    monkeypatch.undo()
    loaded = load_run(str(moved[0]))
    assert loaded.setup.mesh.shape == {"replica": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(run.params) for run in (alone, loaded)))
