"""Encoders from training to fine-tuning, minimal pairs and report; and what fine-tuning promises."""

import csv
import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from tokenizer_lab.representation import CLS, SEP
from train.commands import command_line
from train.evaluate.bits_per_byte import evaluate_run, make_judge
from train.evaluate.finetune import FinetuneOptions, cut, encode_examples, finetune, layer_rates
from train.evaluate.minimal_pairs import MinimalPairsOptions, choose_score, masked_in_turn, score_minimal_pairs
from train.evaluate.tasks import Example
from train.loop import train
from train.objectives import Masked, Replaced
from train.optimizer import Budget
from train.report.report import write_report
from train.setup import load_run
from train.summary import FINISHED

CONSOLE = rich.console.Console(quiet=True)
ENCODER = EncoderConfig(
    num_layers=1,
    embed_dim=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=48,
    remat="none",
    compute_dtype="float32",
)
BERT = dataclasses.replace(ENCODER, form="bert", table_dim=16, dropout=0.1)
MODELS = {"masked": (BERT, Masked()), "replaced": (ENCODER, Replaced(generator_share=0.5))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_recipe):
    """Trained runs of two steps by objective, "causal" among them."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        recipe = make_recipe(budget=Budget(steps=2))
        for name, (model, objective) in {"causal": (recipe.model, recipe.objective), **MODELS}.items():
            assert (
                train(
                    dataclasses.replace(recipe, name=name, model=model, objective=objective),
                    str(folder / name),
                    CONSOLE,
                    make_judge,
                )
                == FINISHED
            )
            evaluate_run(str(folder / name), None, lambda *_: None)
    return folder


@pytest.fixture
def task(tmp_path):
    """Sentences that one byte tells apart."""
    random_ = random.Random(0)
    for name, count in (("train", 200), ("dev", 40)):
        lines = [
            (label, "".join(random_.choice("bcdef ") for _ in range(6)))
            for label in ("yes", "no")
            for _ in range(count // 2)
        ]
        (tmp_path / f"task-{name}.tsv").write_text(
            "".join(f"{'x' if label == 'yes' else 'a'}{text}\t{label}\n" for label, text in lines)
        )
    return tmp_path


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("objective", ["causal", "masked", "replaced"])
def test_a_task_that_one_byte_decides_is_learned_by_every_arm(runs, task, objective):
    options = FinetuneOptions(
        run=runs / objective,
        task=task / "task-train.tsv",
        dev=task / "task-dev.tsv",
        num_seeds=2,
        num_epochs=12,
        learning_rate=3e-3 if objective == "masked" else 2e-2,
        layer_decay=1.0,
        dropout=0.0,
    )
    progress = []
    result = finetune(options, lambda done, total: progress.append((done, total)))
    assert result["metrics"]["accuracy"]["low"] > 0.9, result["metrics"]
    assert result["labels"] == ["no", "yes"] and (result["num_train"], result["num_dev"]) == (200, 40)
    assert progress[-1] == (progress[-1][1],) * 2 and len(progress) == 2 * 12 * 7 and result["finetune_flops"] > 0
    assert json.loads((runs / objective / "finetune" / "task-train.json").read_text()) == result


@pytest.mark.usefixtures("one_device")
def test_numbers_are_predicted_on_their_own_scale(runs, tmp_path):
    lines = [f"{'x' * number}\t{1000 + number / 2}\n" for number in range(1, 12)] * 12
    (tmp_path / "length.tsv").write_text("".join(lines))
    options = FinetuneOptions(
        run=runs / "replaced",
        task=tmp_path / "length.tsv",
        dev=tmp_path / "length.tsv",
        num_seeds=1,
        num_epochs=15,
        learning_rate=1e-2,
        layer_decay=1.0,
        dropout=0.0,
    )
    assert finetune(options)["metrics"]["spearman"]["median"] > 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_seed_decides_everything(runs, task):
    options = FinetuneOptions(
        run=runs / "masked", task=task / "task-train.tsv", num_seeds=2, num_epochs=1, learning_rate=1e-2
    )
    first, second = finetune(options), finetune(options)
    assert first == second
    assert first["num_train"] + first["num_dev"] == 200


def test_each_layer_learns_slower_than_the_one_above():
    shapes = {
        "base": {
            "embeddings": {"table": jax.ShapeDtypeStruct((4, 2), jnp.float32)},
            "body": {
                "blocks": {"up": jax.ShapeDtypeStruct((3, 2, 2), jnp.float32)},
                "final_scale": jax.ShapeDtypeStruct((2,), jnp.float32),
            },
        },
        "kernel": jax.ShapeDtypeStruct((2, 1), jnp.float32),
    }
    rates = layer_rates(shapes, EncoderConfig(num_layers=3), 0.5)
    assert (
        rates["kernel"] == 1
        and rates["base"]["body"]["final_scale"] == 0.5
        and rates["base"]["embeddings"]["table"] == 0.5**5
    )
    assert rates["base"]["body"]["blocks"]["up"].ravel().tolist() == [0.5**4, 0.5**3, 0.5**2]


def test_the_longer_part_is_cut_first():
    parts = [np.arange(10), np.arange(4)]
    assert [len(part) for part in cut(list(parts), 20)] == [10, 4]
    assert [len(part) for part in cut(list(parts), 9)] == [5, 4]
    assert [len(part) for part in cut(list(parts), 6)] == [3, 3]
    assert [len(part) for part in cut([np.arange(10)], 6)] == [6]


@pytest.mark.usefixtures("one_device")
def test_examples_as_rows(runs):
    pair, single = [Example(("ab", "cde"), "1", "")], [Example(("ab",), "1", "")]
    rows = encode_examples(pair, load_run(str(runs / "masked")), 32)
    vocab = 257
    assert rows["ids"][0, :8].tolist() == [vocab + CLS, 97, 98, vocab + SEP, 99, 100, 101, vocab + SEP] and rows[
        "asked"
    ].tolist() == [0]
    assert rows["types"][0, :8].tolist() == [0] * 4 + [1] * 4 and rows["segment_ids"][0, :9].tolist() == [1] * 8 + [0]
    rows = encode_examples(pair, load_run(str(runs / "causal")), 32)
    assert rows["ids"][0, :8].tolist() == [256, 97, 98, 256, 99, 100, 101, 256] and rows["asked"].tolist() == [7]
    assert encode_examples(single, load_run(str(runs / "causal")), 8)["asked"].tolist() == [3]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "objective, score", [("causal", "log-likelihood"), ("masked", "pseudo-likelihood"), ("replaced", "detection")]
)
def test_minimal_pairs(runs, tmp_path, objective, score):
    pairs = [{"sentence_good": "the of and", "sentence_bad": "\x80\x81\x82 qqq"}] * 3 + [
        {"sentence_good": "same", "sentence_bad": "same"}
    ]
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "one.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "p" / "two.jsonl").write_text(json.dumps(pairs[-1]))
    result = score_minimal_pairs(MinimalPairsOptions(run=runs / objective, pairs=tmp_path / "p"))
    assert result["score"] == score and result["num_pairs"] == 5 and result["by_paradigm"]["two"] == 0.5
    _, score_texts = choose_score(load_run(str(runs / objective)))
    good, bad = score_texts([pairs[0]["sentence_good"].encode(), pairs[0]["sentence_bad"].encode()])
    assert result["by_paradigm"]["one"] == (0.875 if good > bad else 0.125), "three pairs and a tie"
    assert result["accuracy"] == np.mean(list(result["by_paradigm"].values()))
    if objective in ("causal", "masked"):
        assert result["by_paradigm"]["one"] == 0.875  # two steps teach that words are likelier than noise
    assert (
        score_minimal_pairs(MinimalPairsOptions(run=runs / objective, pairs=tmp_path / "p", max_pairs=1))["num_pairs"]
        == 2
    )
    (tmp_path / "p" / "one.jsonl").write_text('{"sentence_good": "a"}')
    with pytest.raises(UserError, match="one.jsonl, line 1: no object with texts"):
        score_minimal_pairs(MinimalPairsOptions(run=runs / objective, pairs=tmp_path / "p"))


def test_each_id_is_masked_once():
    row = {"ids": np.array([260, 5, 6, 7, 261, 0]), "segment_ids": np.array([1, 1, 1, 1, 1, 0])}
    masked = list(masked_in_turn(row, 99))
    assert [(made["asked"], made["label"], made["ids"].tolist()) for made in masked] == [
        (1, 5, [260, 99, 6, 7, 261, 0]),
        (2, 6, [260, 5, 99, 7, 261, 0]),
        (3, 7, [260, 5, 6, 99, 261, 0]),
    ]


@pytest.mark.usefixtures("one_device")
def test_a_report_sets_encoders_beside_each_other(runs, task, tmp_path, capsys):
    options = ["--task", str(task / "task-train.tsv"), "--num-seeds", "2", "--num-epochs", "1"]
    assert command_line.run(["finetune", str(runs / "masked"), *options]) == 0, capsys.readouterr().err
    assert "2 seeds" in capsys.readouterr().out
    assert command_line.run(["eval", str(runs / "replaced")]) == 0 and " auc " in capsys.readouterr().out
    assert command_line.run(["sample", str(runs / "replaced"), "--prompt", "a"]) == 2
    assert "only decoders can be sampled from" in capsys.readouterr().err
    report = write_report([runs / name for name in ("causal", *MODELS)], tmp_path / "report")
    rows = {row["arm"]: row for row in report.rows}
    assert (
        rows["replaced"]["bits_per_byte"] is None
        and 0 <= rows["replaced"]["auc"] <= 1
        and rows["replaced"]["bytes_per_id"] == 1
    )
    assert (
        rows["masked"]["auc"] is None
        and rows["masked"]["predicted_nats"] > 0
        and rows["causal"]["objective"] == "causal"
    )
    assert rows["replaced"]["always_real_nats"] > 0 and rows["causal"]["predicted_nats"] is None
    page = report.index.read_text()
    assert report.findings[0].startswith("Bits per byte of causal")
    assert (
        write_report([runs / "masked", runs / "replaced"], tmp_path / "two")
        .findings[0]
        .startswith("Encoders have no bits per byte")
    )
    assert (
        "Encoders and tasks" in page and "accuracy, median over seeds" in page and "has not been evaluated" not in page
    )
    table = {row["arm"]: row for row in csv.DictReader((tmp_path / "report" / "report.csv").read_text().splitlines())}
    finetuned = json.loads((runs / "masked" / "finetune" / "task-train.json").read_text())["metrics"]["accuracy"]
    assert finetuned["median"] == np.median(finetuned["values"]) and len(finetuned["values"]) == 2
    assert float(table["masked"]["task-train:accuracy"]) == finetuned["median"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_seeds": 0}, "--num-seeds is 0"),
        ({"layer_decay": 0.0}, "--layer-decay is 0.0; it must be more than 0"),
        ({"sequence_length": 4}, "at least 8"),
    ],
)
def test_bad_options_are_refused(wrong, message, tmp_path):
    with pytest.raises(UserError, match=message):
        FinetuneOptions(run=tmp_path, task=tmp_path, **wrong)


def test_a_position_too_far_is_refused(runs, tmp_path, monkeypatch):
    loaded = load_run(str(runs / "masked"))
    model = dataclasses.replace(loaded.setup.recipe.model, max_positions=16)
    loaded = dataclasses.replace(
        loaded,
        setup=dataclasses.replace(
            loaded.setup,
            recipe=dataclasses.replace(
                loaded.setup.recipe, model=model, data=dataclasses.replace(loaded.setup.recipe.data, sequence_length=16)
            ),
        ),
    )
    with pytest.raises(UserError, match="lower --sequence-length to 16"):
        encode_examples([Example(("x" * 40,), "1", "")], loaded, 64)
