"""A trained run, its export, and the harness on it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import rich.console
import safetensors.numpy

from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from train.commands import command_line
from train.evaluate.bits_per_byte import evaluate_run, make_judge
from train.evaluate.harness import Answers, as_the_harness_cuts, evaluate_tasks, language_model
from train.export.hugging_face import ExportOptions, export_run
from train.loop import train
from train.objectives import Replaced
from train.optimizer import Budget
from train.setup import load_run
from train.summary import FINISHED

CONSOLE = rich.console.Console(quiet=True)
BERT = EncoderConfig(
    form="bert",
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=48,
    remat="none",
    compute_dtype="float32",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_recipe):
    """Trained runs of two steps, "causal" and "replaced"."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        recipe = make_recipe(budget=Budget(steps=2))
        for name, fields in {
            "causal": {},
            "replaced": {"model": BERT, "objective": Replaced(generator_share=0.5)},
        }.items():
            assert (
                train(dataclasses.replace(recipe, name=name, **fields), str(folder / name), CONSOLE, make_judge)
                == FINISHED
            )
    return folder


def test_a_run_becomes_a_folder_that_says_how_to_load_it(runs, tmp_path, one_device, capsys):
    out = tmp_path / "export"
    assert command_line.run(["export", str(runs / "causal"), "--to", "hf", "--out", str(out)]) == 0
    assert "Qwen3ForCausalLM" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config, tensors = (
        json.loads((out / "config.json").read_text()),
        safetensors.numpy.load_file(out / "model.safetensors"),
    )
    assert config["max_position_embeddings"] == 32 and tensors["model.embed_tokens.weight"].shape == (257, 32)
    loaded = load_run(str(runs / "causal"))
    # The library writes memory as it lies there: a matrix that was only turned over must not come back unturned.
    gate = np.asarray(loaded.params["blocks"]["mlp"]["gate"])[1]
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.gate_proj.weight"], gate.T)
    assert "AutoModelForCausalLM" in (out / "README.md").read_text()


def test_an_electra_run_becomes_two(runs, tmp_path, one_device):
    exported = export_run(ExportOptions(run=runs / "replaced", to="hf", out=tmp_path / "export"))
    assert exported.architectures == {"": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"}
    assert (tmp_path / "export" / "generator" / "tokenizer.json").exists()
    assert "AutoModelForPreTraining" in (tmp_path / "export" / "README.md").read_text()


def test_a_folder_that_is_there_is_left_alone(runs, tmp_path):
    with pytest.raises(UserError, match="already exists"):
        export_run(ExportOptions(run=runs / "causal", to="hf", out=tmp_path))


def test_bits_per_byte_come_out_of_the_export(runs, tmp_path, one_device, monkeypatch, capsys, corpus):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("transformers")
    import runpy

    export_run(ExportOptions(run=runs / "causal", to="hf", out=tmp_path / "export"))
    monkeypatch.setattr("sys.argv", ["hf_bits_per_byte.py", str(tmp_path / "export"), "--corpus", str(corpus)])
    monkeypatch.syspath_prepend("benchmarks")
    runpy.run_path("benchmarks/hf_bits_per_byte.py", run_name="__main__")
    found = float(capsys.readouterr().out.split(" bits/byte")[0].split()[-1])
    assert found == pytest.approx(evaluate_run(str(runs / "causal"), None, lambda *_: None)["bits_per_byte"], abs=1e-3)


def test_spaces_at_a_context_s_end_go_to_the_continuation():
    assert as_the_harness_cuts("one  ", "two") == (b"one", b"  two")
    assert as_the_harness_cuts("", " two") == (b"", b" two")


def test_text_is_generated_up_to_the_first_of_its_ends(runs, one_device):
    answers = Answers(load_run(str(runs / "causal")))
    untils = [None, ["\x00never"], "\x00never"]
    whole, *others = answers.generate([("the of", {"max_gen_toks": 8, "until": until}) for until in untils])
    assert whole and others == [whole, whole]
    [part] = answers.generate([("the of", {"max_gen_toks": 8, "until": [whole[-1], "never"]})])
    assert part == whole[: whole.index(whole[-1])] and (answers.num_requests, answers.num_cut) == (4, 0)


def test_empty_and_long_requests_are_answered_and_the_long_ones_counted(runs, one_device):
    answers, long = Answers(load_run(str(runs / "causal"))), "The lamp follows the river. " * 40
    options = {"max_gen_toks": 20}
    asked = [("", options), ("The", options), (long, options), (long, {"max_gen_toks": 300}), ("The", options)]
    texts = answers.generate(asked)
    assert all(texts) and texts[1] == texts[4] and answers.num_cut == 2
    # A whole row but its first id, which takes the place of the document's beginning.
    found = answers.likelihoods([("", "x"), (long, "x"), (long[-31:], "x"), ("", "")])
    assert answers.num_cut == 3 and all(np.isfinite(nats) for nats, _ in found) and found[3][0] == 0
    assert np.isfinite(answers.rolling(["", "x", long])).all() and answers.num_requests == 12


TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "byte_perplexity"}],
    },
    "generation": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_the_harness_runs_on_a_run(runs, tmp_path, one_device, capsys):
    pytest.importorskip("lm_eval", reason="the lm-evaluation-harness is not installed")
    import yaml

    texts = ["the of and to in a is that it was", "for on are as with his"]
    lines = [{"text": text, "choices": [" the", " zzz"], "answer": 0} for text in texts]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks").mkdir()
    for name, task in TASKS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
            "test_split": "test",
        } | task
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(task))
    assert command_line.run(["eval", str(runs / "causal"), "--tasks", str(tmp_path / "tasks")]) == 0
    results = json.loads((runs / "causal" / "tasks.json").read_text())["results"]
    assert set(results) == set(TASKS) and results["choice"]["acc,none"] in (0.0, 0.5, 1.0)

    class Request:
        def __init__(self, text):
            self.args = (text,)

    answers = Answers(load_run(str(runs / "causal")))
    nats = -sum(language_model(answers).loglikelihood_rolling([Request(text) for text in texts]))
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(nats / np.log(2) / sum(map(len, texts)), rel=1e-5)
    assert (
        evaluate_tasks(str(runs / "causal"), tmp_path / "tasks" / "rolling.yaml")["results"]["rolling"]
        == results["rolling"]
    )


def test_tasks_that_are_not_there_are_told(runs, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        evaluate_tasks(str(runs / "causal"), tmp_path / "none.yaml")
