"""A model that trainer and commands have never heard of: the n-gram network of CONTRIBUTING.md goes through everything
that is asked of a run, and through a plan."""

import dataclasses
import json
import pathlib
import re
import sys
import types

import jax
import pytest
import rich.console

from models.decoder import DecoderConfig
from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from train.compressor import load_byte_lm
from train.evaluate.bits_per_byte import evaluate_run, make_judge
from train.evaluate.finetune import FinetuneOptions, finetune
from train.evaluate.generation import Draw
from train.evaluate.minimal_pairs import MinimalPairsOptions, score_minimal_pairs
from train.evaluate.sampling import sample_run
from train.export.hugging_face import ExportOptions, export_run
from train.loop import train
from train.optimizer import Budget
from train.plan.compiled_step import compile_step
from train.plan.plan import summarize_plan
from train.plan.pod import Pod
from train.plan.representations import ASSUMED
from train.plan.search import candidates, least_bytes
from train.recipe import Recipe
from train.summary import FINISHED

PAGE = pathlib.Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def config():
    """The config of the page's model, which recipes can name."""
    [source] = re.findall(r"^```python file=models/ngram.py\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    module = types.ModuleType("models.ngram")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, PAGE, "exec"), module.__dict__)
        patch.setitem(Recipe.__annotations__, "model", DecoderConfig | EncoderConfig | module.NgramConfig)
        yield module.NgramConfig(embed_dim=16, mlp_dim=32)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory, make_recipe):
    """A trained run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "ngram"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        recipe = make_recipe(name="ngram", model=config, budget=Budget(steps=2))
        assert train(recipe, str(folder), rich.console.Console(quiet=True), make_judge) == FINISHED
    return folder


@pytest.fixture(autouse=True)
def few_devices(one_device):
    """See `one_device`."""


def test_it_is_evaluated_with_what_it_costs(run):
    found = evaluate_run(str(run), None, lambda *_: None)
    assert 0 < found["bits_per_byte"] < 10
    assert found["costs"]["generate_flops_per_byte"] == pytest.approx(found["costs"]["train_flops_per_byte"] / 3)
    assert found["costs"]["kv_cache_bytes_per_byte"] == 0


@pytest.mark.parametrize("exact_bytes", [False, True])
def test_text_is_drawn_from_it(run, exact_bytes):
    text, _ = sample_run(str(run), "the ", 3, Draw(temperature=0.0), exact_bytes)
    assert len(text) == 3


def test_it_scores_minimal_pairs(run, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "the of", "sentence_bad": "zqzqzqzq"}\n')
    assert score_minimal_pairs(MinimalPairsOptions(run=run, pairs=tmp_path / "pairs.jsonl"))["accuracy"] == 1


def test_it_is_fine_tuned(run, tmp_path):
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(json.dumps({"label": label, "sentence": label}) for label in "abab"))
    found = finetune(FinetuneOptions(run=run, task=task, dev=task, num_seeds=1, num_epochs=1))
    assert found["finetune_flops"] > 0 and found["metrics"]["accuracy"]["values"]


def test_a_plan_knows_its_layouts(config, make_recipe):
    pod, ids = Pod("v5e:2x2"), ASSUMED["byte"]
    recipe = make_recipe(model=config)
    tried = list(candidates(recipe, ids.vocab_size, pod))
    assert {one.model.remat for one in tried} == {"none", "dots", "full"}
    assert {(one.mesh.fsdp, one.mesh.tensor) for one in tried} == {(4, 1), (2, 2), (1, 4)}
    assert all(0 < least_bytes(one, ids.vocab_size, pod) < pod.chip.hbm_bytes for one in tried)
    plan = summarize_plan(recipe, pod, ids, compile_step(recipe, ids.vocab_size, jax.devices()))
    assert plan["remat"] == "full" and plan["flops"]["vocab_padding"] > 0


def test_a_layout_splits_what_it_can_split(config, make_recipe):
    recipe = make_recipe(model=dataclasses.replace(config, mlp_dim=30))
    assert {one.mesh.tensor for one in candidates(recipe, 257, Pod("v5e:2x4"))} == {1, 2}


def test_what_only_others_do_is_said_in_one_line(run, tmp_path):
    with pytest.raises(UserError, match="of kind 'ngram', which no class .* 'decoder' and 'encoder' can be exported"):
        export_run(ExportOptions(run=run, to="hf", out=tmp_path / "hf"))
    with pytest.raises(UserError, match="of a ngram over byte ids; a compressor is a decoder over bytes"):
        load_byte_lm(run)


@pytest.mark.parametrize(
    "field, value, rule", [("context", 0, "at least 1"), ("remat", "some", "one of none, dots, full")]
)
def test_its_options_are_checked(config, field, value, rule):
    with pytest.raises(UserError, match=rf"model\.{field} is .*{rule}"):
        dataclasses.replace(config, **{field: value})
