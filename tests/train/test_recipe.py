import dataclasses
import json
import pathlib

import pytest

from tokenizer_lab.errors import UserError
from train.hosts.watchdog import Deadlines
from train.optimizer import Budget
from train.recipe import (
    DataConfig,
    EvaluationConfig,
    Recipe,
    from_json,
    load_recipe,
    recipe_names,
    refused_changes,
    to_json,
)
from train.run.checkpoints import CheckpointConfig
from train.run.logs import LoggingConfig
from train.sharding import MeshConfig


def test_a_config_goes_through_json_and_back(recipe):
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["model"].update(num_layer=3), "unknown 'num_layer', did you mean num_layers?"),
        (lambda config: config["model"].update(num_layers="3"), "config.model.num_layers is '3'"),
        (lambda config: config["model"].update(remat="some"), "config.model.remat is 'some'"),
        (lambda config: config.update(model=[1]), "config.model: a list where a DecoderConfig should be"),
        (lambda config: config["model"].update(kind=[1]), "config.model: no [1]; it is one of decoder, encoder"),
        (
            lambda config: config["objective"].update(kind="guess"),
            "config.objective: no 'guess'; it is one of causal, masked",
        ),
        (lambda config: config.pop("name"), "'name' is missing"),
        (lambda config: config.update(seed=None), "config.seed is None"),
        (lambda config: config["data"].update(corpora=[1]), "config.data.corpora is 1"),
        (lambda config: config["data"].update(batch_rows=0), "data.batch_rows is 0; it must be at least 1"),
    ],
)
def test_a_damaged_config_is_named(recipe, change, message):
    config = json.loads(json.dumps(to_json(recipe)))
    change(config)
    with pytest.raises(UserError) as error:
        from_json(Recipe, config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_may_and_may_not_change_when_a_run_goes_on(recipe):
    changed = dataclasses.replace(
        recipe,
        budget=Budget(bytes=10),
        seed=3,
        kernels="reference",
        deadlines=Deadlines(step_seconds=5, heartbeat_seconds=7),
        mesh=MeshConfig(tensor=2),
        checkpoint=CheckpointConfig(every_steps=3),
        evaluation=EvaluationConfig(every_steps=3),
        logging=LoggingConfig(every_steps=3),
        data=dataclasses.replace(recipe.data, num_workers=7, sequence_length=64),
    )
    assert refused_changes(to_json(recipe), to_json(changed)) == ["data.sequence_length: 32 -> 64", "seed: 0 -> 3"]


def test_kernels_are_the_ones_there_are(recipe):
    with pytest.raises(UserError, match="^kernels is 'triton'; it is one of auto, reference$"):
        dataclasses.replace(recipe, kernels="triton")


def test_recipes_are_found_by_name_and_by_path(tmp_path):
    assert load_recipe("demo_byte").name == "demo_byte" and "demo_byte" in recipe_names()
    file = tmp_path / "mine.py"
    file.write_text("from configs.demo_byte import recipe")
    assert load_recipe(str(file)) == load_recipe("demo_byte")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 +", "SyntaxError"),
        ("x = 1", "no attribute 'recipe'; a recipe is a file with a function"),
        ("def recipe(): return 3", "recipe() gives a int"),
        ("def recipe(): return undefined", "NameError: name 'undefined' is not defined"),
    ],
)
def test_a_recipe_file_that_is_none_says_why(tmp_path, content, message):
    (tmp_path / "bad.py").write_text(content)
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "bad.py"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(
        UserError, match="no recipe 'demo_bite', did you mean demo_byte\\?; there are .*demo_byte, .*demo_subword"
    ):
        load_recipe("demo_bite")


def test_data_that_does_not_fit_together_is_refused():
    for message, fields in {
        "data.corpora is empty": {"corpora": ()},
        "do not fit 1 corpora": {"corpora": ("a",), "weights": (1.0, 2.0)},
        "give one number above 0 for each": {"corpora": ("a", "b"), "weights": (1.0, 0.0)},
    }.items():
        with pytest.raises(UserError, match=message):
            DataConfig(**fields)


def test_importing_a_recipe_by_name_never_leaves_configs():
    with pytest.raises(UserError, match="no recipe"):
        load_recipe("../train/cli")
    assert all(pathlib.Path(name).name == name for name in recipe_names())


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("evaluation", "every_steps", -1, "evaluation.every_steps is -1; it must be at least 0"),
        ("evaluation", "max_bytes", 0, "evaluation.max_bytes is 0; it must be at least 1"),
        ("evaluation", "batch_rows", 0, "evaluation.batch_rows is 0; it must be at least 1"),
        (None, "seed", 12345678901234567890, "seed is 12345678901234567890; a seed is from 0 to 4294967295"),
        (None, "seed", -1, "seed is -1; a seed is from 0 to 4294967295"),
    ],
)
def test_values_that_nothing_can_be_done_with_are_refused(recipe, change, section, name, value, message):
    with pytest.raises(UserError, match=message):
        change(recipe, **({section: {name: value}} if section else {name: value}))
