import dataclasses
import json
import pathlib

import pytest

from models.encoder import EncoderConfig
from tokenizer_lab.errors import UserError
from train.hosts.watchdog import Deadlines
from train.objectives import ClusteredSubstitution, Masked, Replaced
from train.optimizer import Budget, total_steps
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


SECTIONS = ("data", "model", "objective", "optimizer", "mesh", "checkpoint", "evaluation", "logging", "deadlines")
ENCODER = {"model": EncoderConfig(form="bert"), "data": DataConfig(corpora=("c",))}
KINDS = [
    {},
    *(ENCODER | {"objective": kind()} for kind in (Masked, Replaced, ClusteredSubstitution)),
    *({"budget": budget} for budget in (Budget(bytes=1), Budget(flops=1.0), Budget(seconds=1.0))),
]
MAY_BE_0 = {
    "data.piece_length", "data.prefetch_batches", "data.num_processes", "evaluation.every_steps", "seed",
    "model.table_dim", "model.dropout", "optimizer.beta1", "optimizer.beta2", "optimizer.weight_decay",
    "optimizer.warmup_share", "optimizer.decay_share", "optimizer.final_share",
    "objective.z_loss", "objective.masked_share", "objective.random_share", "objective.detection_weight",
    "objective.sharpness",
}  # fmt: skip
MAY_BE_LARGE = {"evaluation.max_bytes": 10**18, "budget.bytes": 10**18, "budget.flops": 1e30, "budget.seconds": 1e30}


@pytest.mark.parametrize("change", KINDS, ids=lambda change: str([type(part).__name__ for part in change.values()]))
def test_every_number_of_a_recipe_has_its_range(recipe, change):
    recipe, tried = dataclasses.replace(recipe, **change), 0
    sections = {name: getattr(recipe, name) for name in (*SECTIONS, "budget")} | {"": recipe}
    for section, part in sections.items():
        for field in dataclasses.fields(part):
            if type(before := getattr(part, field.name)) not in (int, float):
                continue
            name, tried = f"{section}.{field.name}".lstrip("."), tried + 1

            def changed(value, section=section, part=part, field=field):
                one = dataclasses.replace(part, **{field.name: value})
                return one if section == "" else dataclasses.replace(recipe, **{section: one})

            large = 10**20 if type(before) is int else float("inf")
            for value in (large, -large, float("nan"), -7, "8", True, *([] if name in MAY_BE_0 else [0])):
                with pytest.raises(UserError) as error:
                    changed(value)
                message = str(error.value)
                assert "\n" not in message and section in message and field.name in message, (name, value)
            if name in MAY_BE_0:
                changed(type(before)(0))
            if name in MAY_BE_LARGE:
                changed(MAY_BE_LARGE[name])
            if type(before) is int:
                with pytest.raises(UserError, match="must be a whole number"):
                    changed(1.5)
    assert tried > 30


def test_a_budget_of_more_steps_than_a_counter_holds_is_refused():
    with pytest.raises(UserError, match="budget.flops 1e[+]30 pays for 1e[+]20 steps; a run has less than 2.31"):
        total_steps(Budget(flops=1e30), 1e10)


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
        (None, "seed", 12345678901234567890, "seed is 12345678901234567890; it must be at most 4294967295"),
        (None, "seed", -1, "seed is -1; it must be at least 0"),
    ],
)
def test_values_that_nothing_can_be_done_with_are_refused(recipe, change, section, name, value, message):
    with pytest.raises(UserError, match=message):
        change(recipe, **({section: {name: value}} if section else {name: value}))
